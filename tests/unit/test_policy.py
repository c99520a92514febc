"""The site's policy: strict file, defaults, periods, what a study may ask, explanations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cytosae_core.allowed import ALLOWED
from cytosae_core.canonical import canonical_json
from cytosae_core.config import (
    Attribute,
    DictionaryConfig,
    EncoderConfig,
    StatisticsConfig,
    StudyConfig,
    TrainingConfig,
)
from cytosae_core.errors import CytosaeError, SetupError, StudyError
from cytosae_core.keys import SigningKey, fingerprint
from cytosae_core.policy import (
    POLICIES,
    SitePolicy,
    conflicts,
    demand,
    explain,
    load_policy,
    parse_policy,
    policy_from_json,
    render_policy,
    tightened,
    write_policy,
)
from cytosae_core.policy.keys import KEYS, check_key, names_of

MASKED = SitePolicy("masked-a", "masked", site="a", valid_from="2026-11-01", valid_until="2027-05-01")
NOON = 1_793_534_400  # 2026-11-01 12:00 UTC
DAY = 86_400


def study(**changes: Any) -> StudyConfig:
    return StudyConfig(**{"name": "s", "sites": ("a", "b"), **changes})


def text(*pairs: tuple[str, str]) -> bytes:
    """A good file with replacements; every one must change it."""
    out = render_policy(MASKED)
    for old, new in pairs:
        assert old in out
        out = out.replace(old, new, 1)
    return out.encode()


def refused(data: bytes) -> SetupError:
    with pytest.raises(SetupError) as error:
        parse_policy(data)
    assert error.value.code == "policy" and "site-policy.yaml" in str(error.value)
    return error.value


# The dataclass


def test_two_words_make_a_policy_with_the_documented_defaults() -> None:
    policy = SitePolicy("masked", "masked")
    assert (policy.min_units, policy.round_to, policy.max_message_bytes) == (11, 5, 512 * 1024**2)
    assert (policy.max_unit_share, policy.nk_n, policy.nk_k, policy.p_ratio) == ("0.50", 2, "0.90", "0.10")
    assert (policy.rounds, policy.messages_total, policy.metrics_per_round) == (100, 1000, 8 * 1024**2)
    assert (policy.approval, policy.officers, policy.studies) == ("never", (), ())
    assert policy.tensors + policy.metrics == names_of("masked", "tensors") + names_of("masked", "metrics")
    assert {field.name for field in ALLOWED if policy.allows(field.name)} == {
        field.name for field in ALLOWED if policy.profile in field.profiles
    }
    assert policy == POLICIES["masked"] and policy.digest == POLICIES["masked"].digest


def test_default_deny_by_profile_and_by_name() -> None:
    evaluate = POLICIES["evaluate_only"]
    assert evaluate.allows("auroc") and not evaluate.allows("delta") and not evaluate.allows("W_enc")
    narrow = SitePolicy("narrow", "masked", tensors=("canary",), metrics=("counts",))
    assert [name for name in ("canary", "counts", "delta", "auroc") if narrow.allows(name)] == [
        "canary",
        "counts",
    ]


def test_every_value_changes_the_digest() -> None:
    changes: dict[str, Any] = {
        "name": "b", "min_units": 12, "round_to": 10, "rounds": 1, "site": "x", "officers": ("a" * 64,),
        "tensors": ("canary",), "approval": "always", "valid_until": "2027-05-02", "nk_k": "0.80",
        "disclosure_control": False, "studies": (fingerprint("a" * 64),),
    }  # fmt: skip
    digests = {MASKED.digest, *(replace(MASKED, **{key: value}).digest for key, value in changes.items())}
    assert len(digests) == len(changes) + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"profile": "open"},
        {"min_units": 1},
        {"min_units": True},
        {"rounds": -1},
        {"rounds": 1.5},
        {"name": "patient 4711"},
        {"name": "p-12345678"},
        {"name": "x" * 21},
        {"max_unit_share": "0.60"},
        {"max_unit_share": "nan"},
        {"max_unit_share": 0.5},
        {"nk_k": "1e-1"},
        {"p_ratio": "0.05"},
        {"tensors": ("*",)},
        {"metrics": ("auroc", "auroc")},
        {"metrics": ("delta",)},
        {"officers": ("A" * 64,)},
        {"signatures_needed": 2, "officers": ("a" * 64,)},
        {"studies": ("a" * 64,)},
        {"valid_until": ""},
        {"valid_from": "2027-05-02"},
        {"approval": "sometimes"},
        {"profile": "dp"},
        {"profile": "dp", "epsilon_total": "inf", "delta_max": "0.00001"},
        {"profile": "dp", "epsilon_total": "-1", "delta_max": "0.00001"},
        {"epsilon_total": "8", "delta_max": "0.00001"},
    ],
)
def test_bad_values_are_refused(changes: dict[str, Any]) -> None:
    names = {"tensors": (), "metrics": ()} if changes.get("profile") == "dp" else {}
    with pytest.raises(SetupError):
        replace(MASKED, **{**names, **changes})


def test_dp_has_a_total_epsilon() -> None:
    policy = SitePolicy("dp", "dp", epsilon_total="8", delta_max="0.00001")
    assert policy.to_dict()["privacy"] == {"epsilon_total": "8", "delta_max": "0.00001"}
    assert "epsilon 8 at delta 0.00001" in str(explain(policy))


# The file


def test_a_written_policy_reads_back_with_the_same_digest(tmp_path: Path) -> None:
    path = tmp_path / "site-policy.yaml"
    for policy in (
        MASKED,
        replace(MASKED, officers=("a" * 64, "b" * 64), signatures_needed=2, approval="always"),
        SitePolicy("e", "evaluate_only", site="3rd-site", valid_from="2026-11-01", valid_until="2026-11-01"),
        SitePolicy("dp", "dp", site="a", valid_from="2026-11-01", valid_until="2027-05-01", epsilon_total="8",
                   delta_max="0.00001"),
        replace(MASKED, studies=(fingerprint("a" * 64),), metrics=("counts",), tensors=(), min_units=20),
    ):  # fmt: skip
        write_policy(path, policy)
        assert load_policy(path) == policy and load_policy(path).digest == policy.digest
        assert policy_from_json(policy.to_json()) == policy
        assert path.read_text().count("#") > 20


def test_public_data_cannot_be_a_file(tmp_path: Path) -> None:
    public = replace(POLICIES["public-data"], site="a", valid_from="2026-11-01", valid_until="2027-05-01")
    with pytest.raises(SetupError):
        write_policy(tmp_path / "p.yaml", public)
    assert not (tmp_path / "p.yaml").exists()
    assert policy_from_json(public.to_json()) == public  # auditors read it from a bundle
    assert refused(text(("profile:", "disclosure_control: false\nprofile:"))).reason == "POLICY"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("rounds: 100", "rounds: !!python/object/apply:os.system ['true']", "YAML_TAG"),
        ("rounds: 100", "rounds: !!int 100", "YAML_TAG"),
        ("rounds: 100", "rounds: &a 100", "YAML_ALIAS"),
        ("- canary", "- *x", "YAML_ALIAS"),
        ("- canary", "- *", "YAML_SYNTAX"),
        ("- canary", '- "*"', "POLICY"),
        ("rounds: 100", "rounds: 100\n  rounds: 100", "YAML_DUP"),
        ("name: ", "name: masked\nname: ", "YAML_DUP"),
        ("rounds: 100", "rounds: NO", "YAML_TYPE"),
        ("rounds: 100", "rounds: yes", "YAML_TYPE"),
        ('name: "masked-a"', "name: NO", "YAML_TYPE"),
        ('name: "masked-a"', "name: off", "YAML_TYPE"),
        ('name: "masked-a"', "name: null", "YAML_TYPE"),
        ('name: "masked-a"', "name: |\n  masked", "YAML_TYPE"),
        ("rounds: 100", "rounds: true", "YAML_TYPE"),
        ("rounds: 100", "rounds: 1_000", "YAML_TYPE"),
        ("rounds: 100", "rounds: 010", "YAML_TYPE"),
        ("rounds: 100", "rounds: 0x10", "YAML_TYPE"),
        ("rounds: 100", "rounds: 1e2", "YAML_TYPE"),
        ("rounds: 100", "rounds: 100.0", "YAML_TYPE"),
        ("rounds: 100", "rounds: 1:30", "YAML_TYPE"),
        ("rounds: 100", 'rounds: "100"', "YAML_TYPE"),
        ("rounds: 100", "rounds: ~", "YAML_TYPE"),
        ("rounds: 100", "rounds:", "YAML_TYPE"),
        ("rounds: 100", "rounds: [100]", "YAML_TYPE"),
        ("rounds: 100", "rounds: -1", "POLICY"),
        ("rounds: 100", "rounds: 100001", "POLICY"),
        ("rounds: 100", "rouns: 100", "POLICY"),
        ("min_units: 11", "min_units: 10", "POLICY"),
        ("round_to: 5", "round_to: 1", "POLICY"),
        ('max_unit_share: "0.50"', "max_unit_share: 0.50", "YAML_TYPE"),
        ('max_unit_share: "0.50"', 'max_unit_share: ".inf"', "POLICY"),
        ('max_unit_share: "0.50"', 'max_unit_share: "0.51"', "POLICY"),
        ('from: "2026-11-01"', "from: 2026-11-01", "YAML_TYPE"),
        ('from: "2026-11-01"', 'from: "2026-13-01"', "POLICY"),
        ('until: "2027-05-01"', 'until: "2026-05-01"', "POLICY_TIME"),
        ("limits:", "limits: 5\nlimit:", "YAML_TYPE"),
        ("urn:cytosae:site-policy:v1", "urn:cytosae:site-policy:v2", "POLICY"),
        ("profile: masked", "profile: dp", "POLICY"),
        ("profile: masked", 'profile: "*"', "POLICY"),
        ("officers: []", "officers: [admin]", "POLICY"),
        ("studies: []", "studies: {}", "YAML_TYPE"),
        ("studies: []", "studies: []\n---\nx: 1", "YAML_TYPE"),
        ("studies: []", "studies: [[[[[[[[[[]]]]]]]]]]", "YAML_TYPE"),
        ("studies: []", "studies: []\nlater: 1", "POLICY"),
        ("name: ", "nome: ", "POLICY"),
    ],
)
def test_every_bad_file_is_refused_by_reason(old: str, new: str, reason: str) -> None:
    assert refused(text((old, new))).reason == reason


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"- 1\n",
        b"\xff\xfe",
        b"a: [1\n",
        b"\x00",
        b"1: 2\n",
        b"? [a]\n: 1\n",
        b"? {a: 1}\n: 1\n",
        b"<<: {a: 1}\n",
    ],
)
def test_what_is_no_policy_at_all(data: bytes) -> None:
    assert refused(data).reason in ("YAML_SYNTAX", "YAML_TYPE", "POLICY")


def test_too_large_and_missing_files(tmp_path: Path) -> None:
    assert refused(text() + b"#" * 65536).reason == "YAML_SIZE"
    with pytest.raises(SetupError, match="policy new"):
        load_policy(tmp_path / "none.yaml")


@pytest.mark.parametrize("old", ["rounds: 100", "min_units: 11", 'nk_k: "0.90"'])
def test_the_line_is_named(old: str) -> None:
    lines = text().decode().splitlines()
    line = next(index for index, content in enumerate(lines, 1) if content.strip().startswith(old))
    for bad in (f"{old.split(':')[0]}: NO", f"{old.split(':')[0]}: -5"):
        assert f"site-policy.yaml:{line}" in str(refused(text((old, bad))))


def test_a_bomb_of_aliases_is_refused_before_it_grows() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefghi", "bcdefghij", strict=True)
    )
    assert refused(bomb.encode()).reason == "YAML_ALIAS"


def test_a_newer_name_is_not_allowed_by_an_older_file() -> None:
    """The file lists what may leave: a name that a later version adds stays refused until it is signed."""
    older = parse_policy(text(("    - site_recall\n", "")))
    assert not older.allows("site_recall") and POLICIES["masked"].allows("site_recall")


# Period, simulation, study keys


def test_expired_or_not_yet_valid_is_closed() -> None:
    assert MASKED.starts_at == NOON - DAY / 2
    for now in (NOON - DAY / 2, NOON, NOON + 181.4 * DAY):
        MASKED.check_time(now)
    for now in (NOON - DAY / 2 - 1, NOON + 181.5 * DAY, 0):
        with pytest.raises(SetupError) as error:
            MASKED.check_time(now)
        assert (error.value.code, error.value.reason) == ("policy", "POLICY_TIME")
    POLICIES["masked"].check_time(0)


def test_below_the_floor_only_in_simulations() -> None:
    for policy in (SitePolicy("low", "masked", min_units=5), SitePolicy("fine", "masked", round_to=1)):
        policy.check_simulation(True)
        with pytest.raises(SetupError):
            policy.check_simulation(False)
    MASKED.check_simulation(False)


def test_study_keys() -> None:
    key, other = SigningKey.generate().public_hex, SigningKey.generate().public_hex
    listed = replace(MASKED, studies=(fingerprint(key),))
    listed.check_study_key(key)
    MASKED.check_study_key(other)
    with pytest.raises(SetupError, match=fingerprint(other)):
        listed.check_study_key(other)


# Studies


def test_a_study_can_only_tighten() -> None:
    strict = tightened(MASKED, study(min_units=15))
    assert strict.min_units == 15
    assert tightened(replace(MASKED, min_units=20), study()).min_units == 20
    validate = tightened(MASKED, study(kind="validate", profile="evaluate_only"))
    assert validate.profile == "evaluate_only" and not validate.allows("delta") and validate.allows("auroc")
    everything = StatisticsConfig(recurrence_steps=1, subgroups=(Attribute("sex", 0.5),))
    assert tightened(MASKED, study(statistics=everything)) == MASKED
    plain = tightened(MASKED, study())
    assert not plain.allows("recurrence") and not plain.allows("subgroup") and plain.allows("ablation")
    public = POLICIES["public-data"]
    assert tightened(public, study(simulation=True)).min_units == 1


@pytest.mark.parametrize(
    ("policy", "changes", "words"),
    [
        (replace(MASKED, rounds=10), {}, "limits.rounds: 10 | study training.rounds: 15"),
        (replace(MASKED, messages_total=22), {}, "limits.messages_total: 22 | study messages in all: 23"),
        (replace(MASKED, bytes_total=1 << 20), {}, "limits.bytes_total: 1048576 | study"),
        (replace(MASKED, max_message_bytes=1 << 19), {}, "limits.bytes_per_message: 524288 | study"),
        (replace(MASKED, metrics_per_round=100), {}, "limits.metrics_per_round: 100 | study"),
        (replace(MASKED, metrics=("counts",)), {}, "release.metrics: without auroc"),
        (replace(MASKED, tensors=("canary",)), {}, "release.tensors: without delta"),
        (replace(MASKED, site="c"), {}, "site: c | study sites: a, b"),
        (SitePolicy("e", "evaluate_only"), {}, "profile: evaluate_only | study profile: masked"),
        (
            SitePolicy("dp", "dp", epsilon_total="8", delta_max="0.00001"),
            {},
            "profile: dp | study profile: masked",
        ),
        (SitePolicy("low", "masked", min_units=5), {}, "disclosure.min_units: 5"),
    ],
)
def test_a_study_that_asks_for_more_is_refused_line_by_line(
    policy: SitePolicy, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(StudyError) as error:
        tightened(policy, study(**changes))
    assert (error.value.code, error.value.reason) == ("policy", "POLICY")
    assert words in str(error.value)


def test_the_conflict_names_the_line_of_the_file() -> None:
    policy = parse_policy(text(("rounds: 100", "rounds: 3")))
    line = (
        text().decode().splitlines().index("  rounds: 100  # Dictionary updates that may leave, in all.") + 1
    )
    assert conflicts(policy, study()) == [
        f"policy masked-a (line {line}) limits.rounds: 3 | study training.rounds: 15"
    ]


def test_the_default_fits_a_description_of_the_published_dictionary() -> None:
    """49,152 concepts of 768 dimensions, 10 classes and 11 attributes."""
    from cytosae_core.config import Attribute

    big = study(
        kind="validate", profile="evaluate_only",
        encoder=EncoderConfig(name="dinobloom-b", d=768),
        dictionary=DictionaryConfig(model="relu", n=49_152, init="file"),
        statistics=StatisticsConfig(
            classes=tuple(f"c{i}" for i in range(10)), attributes=tuple(Attribute(f"a{i}", 0.5) for i in range(11))
        ),
    )  # fmt: skip
    asked = demand(big)
    assert 5_000_000 < asked.numbers < POLICIES["evaluate_only"].metrics_per_round
    assert conflicts(POLICIES["evaluate_only"], big) == []


def test_demand_counts_what_a_study_sends() -> None:
    small = study(training=TrainingConfig(rounds=4))
    asked = demand(small)
    assert (asked.rounds, asked.messages) == (4, 12)
    assert demand(study(kind="validate", profile="evaluate_only")).rounds == 0
    assert asked.message_bytes > small.dictionary.n * small.encoder.d * 2
    assert "delta" in asked.names and "delta" not in demand(study(kind="validate")).names


# Explanations


def test_the_explanation_follows_the_policy() -> None:
    plain = str(explain(MASKED))
    assert "at least 11 patients" in plain and "until the end of 1 May 2027" in plain and "delta" in plain
    assert "WARNING" in str(explain(POLICIES["public-data"])) and "WARNING" not in plain
    evaluate = explain(POLICIES["evaluate_only"])
    assert "delta" not in str(evaluate["What may leave"]) and "nothing is trained here" in str(evaluate)
    for field in ALLOWED:
        assert field.name in (plain if "masked" in field.profiles else str(explain(POLICIES["dp"])))
    changed = replace(MASKED, min_units=25, round_to=10, approval="always", officers=("a" * 64,), rounds=7)
    for words in (
        "at least 25 patients",
        "multiples of 10",
        "every reply before",
        fingerprint("a" * 64),
        "At most 7 ",
    ):
        assert words in str(explain(changed)), words


def test_epsilon_is_never_claimed_outside_dp() -> None:
    for policy in (MASKED, POLICIES["evaluate_only"]):
        assert "epsilon_total" not in canonical_json(policy.to_dict()).decode()
        assert "Privacy loss" not in str(explain(policy)) and "privacy loss" not in str(explain(policy))


# The documentation


def test_docs_list_every_key_with_its_range() -> None:
    table = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
    for key in KEYS:
        row = next((line for line in table.splitlines() if line.startswith(f"| `{key.path}` ")), "")
        assert row, key.path
        for bound in (key.low, key.high, *key.choices):
            assert bound in row.replace(",", ""), (key.path, bound)


def test_every_default_is_in_its_range() -> None:
    for key in KEYS:
        value = getattr(MASKED, key.attribute)
        if value != "":
            check_key(key, value, "masked")


def test_errors_are_of_the_site() -> None:
    with pytest.raises(CytosaeError):
        policy_from_json(b"[]")
