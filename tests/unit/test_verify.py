"""The auditor alone: honest bundles pass; every lie, loss and change is found, at the right link."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_core import signatures as signature_module
from cytosae_core.audit import note as note_module
from cytosae_core.audit import statement as statement_module
from cytosae_core.audit.log import tile_files
from cytosae_core.audit.log.signing import sign_checkpoint
from cytosae_core.audit.note import origin_of
from cytosae_core.audit.recompute import audit_bundle
from cytosae_core.audit.recompute.rounds import epsilon_of
from cytosae_core.audit.verify import Verdict, verify_bundle
from cytosae_core.audit.verify.logs import cosigners_needed
from cytosae_core.canonical import canonical_json, sha256_hex
from cytosae_core.keys import SigningKey
from cytosae_core.privacy.accountant import exact_epsilon
from tests.bundles import COORDINATOR, Fields, Files, Study, relisted

SITES = ("site-a", "site-b", "site-c")


def audited(files: Files, **options: Any) -> Verdict:
    """The verdict with the bundle's own keys pinned."""
    return audit_bundle(files, **{"pinned": json.loads(files["keys.json"]), **options})


def states(verdict: Verdict) -> dict[str, str]:
    return {check.name: check.state for check in verdict.checks}


def first(verdict: Verdict) -> tuple[str, str]:
    """Name and link of the first check that failed."""
    return next((check.name, check.link) for check in verdict.checks if check.state == "FAIL")


def broken(files: Files, name: str, link: str) -> None:
    """The first failed check has this name, and its link names this."""
    verdict = audited(files)
    assert verdict.exit_code == 1, "nothing was found"
    found = first(verdict)
    assert found[0] == name and link in found[1], found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Study(tmp_path_factory.mktemp("trained"), SITES, rounds=2, n=4).build()


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Study(tmp_path_factory.mktemp("frozen")).build()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Files:
    home = tmp_path_factory.mktemp("small")
    return Study(home, ("site-a",), hello=False, report_edit=only_recomputed).build()


def only_recomputed(report: Fields) -> None:
    """Leave what the auditor computes again or reads: every byte of this report is flipped."""
    needed = (
        "agreement", "concepts", "dictionary", "drift", "egress", "experts", "failures", "headlines", "integrity",
        "overall", "protocol", "rounds", "sites", "study", "verdict",
    )  # fmt: skip
    for name in report.keys() - set(needed):
        del report[name]
    del report["headlines"][1:]
    sent, drift = report["egress"]["sites"]["site-a"], report["drift"]["sites"]["site-a"]
    report["egress"] = {"sites": {"site-a": {"by_kind": sent["by_kind"]}}}
    report["drift"] = {"sites": {"site-a": {"alarms": drift["alarms"]}}}


def lying(home: Path, kind: str, change: Callable[[str, Fields], Fields | None], **options: Any) -> Files:
    """A bundle of parties that sign what `change` makes of their entries of one kind."""

    def edit(party: str, what: str, fields: Fields) -> Fields | None:
        return change(party, fields) if what == kind else fields

    return Study(home, **{"sites": SITES, "edit": edit, **options}).build()


# Honest bundles


def test_honest_bundles_pass_every_check(trained: Files, frozen: Files, small: Files) -> None:
    for files in (trained, frozen, small):
        verdict = audited(files)
        assert verdict.exit_code == 0, [check for check in verdict.checks if check.state != "PASS"]
        assert [check.number for check in verdict.checks] == list(range(1, len(verdict.checks) + 1))
    assert {"log of coordinator", "cosignatures", "messages of site-b", "numbers of the concepts"} <= set(
        states(audited(trained))
    )


def test_without_pinned_keys_says_so(frozen: Files) -> None:
    verdict = audit_bundle(frozen)
    assert verdict.exit_code == 2 and states(verdict)["keys"] == "NOT CHECKED"
    assert list(states(verdict).values()).count("NOT CHECKED") == 1


def test_other_keys_than_the_pinned_ones_fail(frozen: Files) -> None:
    pinned = json.loads(frozen["keys.json"])
    pinned["site-b"]["cosign"] = pinned["site-a"]["cosign"]
    verdict = audit_bundle(frozen, pinned=pinned)
    assert verdict.exit_code == 1 and first(verdict) == ("keys", "keys.json site-b")


def test_pinning_the_signing_keys_is_enough(frozen: Files) -> None:
    """The other keys are in the enrolment, which the signing key signed. A party without a pin fails."""
    pinned = {party: {"signing": keys["signing"]} for party, keys in json.loads(frozen["keys.json"]).items()}
    assert (
        audit_bundle(frozen, pinned={**pinned, "site-that-never-answered": {"signing": "0" * 64}}).exit_code
        == 0
    )
    for bad in ({**pinned, "site-a": {}}, {**pinned, "site-a": {"signing": "0" * 64}}, {}, [], {"site-a": 3}):
        assert first(audit_bundle(frozen, pinned=bad))[0] == "keys"  # type: ignore[arg-type]


def test_updates_that_are_not_there_are_not_checked(trained: Files) -> None:
    steps = [path for path in trained if path.startswith("payloads/") and b'"kind":"round"' in trained[path]]
    assert len(steps) == 6
    verdict = audited(relisted({path: data for path, data in trained.items() if path not in steps}))
    assert verdict.exit_code == 2
    assert {name for name, state in states(verdict).items() if state != "PASS"} == {
        "replies",
        "numbers of the study",
    }


def test_the_verdict_is_json(frozen: Files) -> None:
    found = json.loads(json.dumps(audited(frozen).to_dict()))
    assert found["exit"] == 0 and found["first_broken"] == "" and found["checks"][0]["name"] == "files"


# Every byte


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A good signature is verified once (a bad one always): the same verdicts, several times faster."""
    memory = functools.lru_cache(maxsize=None)(signature_module.verify_raw)
    for module in (signature_module, note_module, statement_module):
        monkeypatch.setattr(module, "verify_raw", memory)


def test_every_flipped_byte_of_a_small_bundle_is_found(small: Files, remembered: None) -> None:
    assert sum(map(len, small.values())) <= 20 * 1024
    rng = np.random.default_rng(0)
    missed = []
    for path, data in small.items():
        for position in range(len(data)):
            mask = 1 << int(rng.integers(8)) if position % 3 else int(rng.integers(1, 256))
            changed = data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]
            if audit_bundle({**small, path: changed}).exit_code != 1:
                missed.append((path, position, mask))
    assert missed == []


def test_flips_under_a_new_manifest_are_found_too(trained: Files, remembered: None) -> None:
    """Somebody who changes a file also writes its new digest into bundle.json."""
    rng, missed = np.random.default_rng(1), []
    for path in trained:
        for _ in range(0 if path == "bundle.json" else 12):
            data, position = trained[path], int(rng.integers(len(trained[path])))
            changed = (
                data[:position] + bytes([data[position] ^ (1 << int(rng.integers(8)))]) + data[position + 1 :]
            )
            pinned = json.loads(trained["keys.json"])
            if audit_bundle(relisted({**trained, path: changed}), pinned=pinned).exit_code != 1:
                missed.append((path, position))
    assert missed == []


# Files


def test_files_added_removed_renamed_swapped(trained: Files) -> None:
    replies = sorted(path for path in trained if path.startswith("payloads/"))
    broken({**trained, "notes.txt": b"x"}, "files", "notes.txt")
    broken({path: data for path, data in trained.items() if path != "report.html"}, "files", "report.html")
    renamed = {
        ("logs/site-x" + path[11:] if path.startswith("logs/site-a") else path): d
        for path, d in trained.items()
    }
    broken(renamed, "files", "logs/site-")
    broken({**trained, replies[0]: trained[replies[1]]}, "files", replies[0])
    broken(relisted({**trained, "notes.txt": b"x"}), "files", "notes.txt")
    broken(relisted(renamed), "protocol", "keys.json")
    broken(relisted({**trained, replies[0]: trained[replies[1]]}), "replies", replies[0])
    broken(relisted({**trained, f"payloads/{'0' * 64}.reply": b"x"}), "replies", "0" * 64)
    broken(relisted({**trained, f"dictionaries/{'0' * 64}.safetensors": b"x"}), "aggregation", "0" * 64)


def test_another_protocol_or_page_or_policy(trained: Files) -> None:
    protocol = json.loads(trained["protocol.json"]) | {"kind": "validate"}
    broken(relisted({**trained, "protocol.json": canonical_json(protocol)}), "protocol", "protocol.json")
    broken(relisted({**trained, "report.html": b"<html>better</html>"}), "report", "report.html")
    policy = json.loads(trained["policies/site-b.json"])
    policy["limits"]["rounds"] = 10_000
    broken(
        relisted({**trained, "policies/site-b.json": canonical_json(policy)}),
        "policy of site-b",
        "policies/site-b",
    )


# Logs


def entries(files: Files, party: str) -> tuple[str, list[bytes]]:
    path = next(path for path in files if path.startswith(f"logs/{party}/tile/entries/"))
    data, leaves = files[path], []
    while data:
        size = int.from_bytes(data[:2], "big")
        leaves.append(data[2 : 2 + size])
        data = data[2 + size :]
    return path, leaves


@pytest.mark.parametrize("party", [COORDINATOR, "site-b"])
def test_a_deleted_swapped_or_cut_leaf(trained: Files, party: str) -> None:
    path, leaves = entries(trained, party)
    for changed in (leaves[:5] + leaves[6:], [*leaves[:4], leaves[5], leaves[4], *leaves[6:]], leaves[:-1]):
        packed = b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in changed)
        broken(relisted({**trained, path: packed}), f"log of {party}", party)


def rewritten(home: Path, party: str, make: Callable[[Study], bytes]) -> Files:
    """A bundle in which `party`'s log ends in another checkpoint, made from its own keys."""
    study, held = Study(home, SITES), {}

    def before_the_report(running: Study) -> None:
        held["note"] = make(running)
        held["files"] = tile_files(running.parties[party].log, held["note"])

    study.extra = before_the_report
    files = study.build()
    kept = {path: data for path, data in files.items() if not path.startswith(f"logs/{party}/")}
    return relisted({**kept, **{f"logs/{party}/{path}": data for path, data in held["files"].items()}})


def test_a_rolled_back_log_is_found(tmp_path: Path) -> None:
    """An earlier head of the coordinator, validly signed: the report is not in it, and nobody cosigned it."""
    files = rewritten(tmp_path / "a", COORDINATOR, lambda study: study.parties[COORDINATOR].log.checkpoint())
    broken(files, "cosignatures", "logs/coordinator/checkpoint")
    verdict = states(audited(files))
    assert verdict["report"] == "FAIL"
    files = rewritten(tmp_path / "b", "site-b", lambda study: study.parties["site-b"].log.checkpoint_at(4))
    verdict = states(audited(files))
    assert verdict["cosignatures"] == verdict["heads"] == verdict["messages of site-b"] == "FAIL"
    assert verdict["messages of site-a"] == "PASS"


def test_a_forked_log_is_found(tmp_path: Path) -> None:
    """The coordinator shows one site another log: that site's own log holds the head that it saw."""

    def other(party: str, fields: Fields) -> Fields:
        if party == "site-c":
            fields["coordinator"] = {**fields["coordinator"], "root": "5" * 64}
        return fields

    broken(lying(tmp_path / "a", "accepted", other), "heads", "site-c leaf 3 (accepted)")

    def site_forks(party: str, fields: Fields) -> Fields:
        if fields["site"] == "site-b":
            fields["site_log"] = {**fields["site_log"], "root": "6" * 64}
        return fields

    broken(lying(tmp_path / "b", "ingress", site_forks), "heads", "coordinator leaf")


def test_wrong_role_of_a_key(tmp_path: Path) -> None:
    """A head signed with the cosignature key, or the signing key, is not a head."""

    def by(role: str) -> Callable[[Study], bytes]:
        def make(study: Study) -> bytes:
            party = study.parties["site-a"]
            return sign_checkpoint(
                origin_of(study.digest, "site-a"), party.log.size, party.log.root, party.keys[role]
            )

        return make

    for role in ("cosign", "signing"):
        broken(rewritten(tmp_path / role, "site-a", by(role)), "log of site-a", "log of site-a")
    assert (
        audited(rewritten(tmp_path / "log", "site-a", by("log"))).exit_code == 1
    )  # not cosigned, and too short


def test_a_revoked_key_signs_nothing_that_counts(tmp_path: Path) -> None:
    def revoke(at: int) -> Callable[[Study], None]:
        def late(study: Study) -> None:
            key = study.parties["site-b"].keys["signing"].public_hex
            study.append("site-b", "key_revoke", {"role": "signing", "key": key, "from_seq": at})

        return late

    broken(Study(tmp_path / "a", SITES, extra=revoke(3)).build(), "log of site-b", "site-b leaf 3 (accepted)")
    assert audited(Study(tmp_path / "b", SITES, extra=revoke(99)).build()).exit_code == 0

    def cosign_key(study: Study) -> None:
        for site in SITES[1:]:
            key = study.parties[site].keys["cosign"].public_hex
            study.append(site, "key_revoke", {"role": "cosign", "key": key, "from_seq": 0})

    broken(
        Study(tmp_path / "c", SITES, extra=cosign_key).build(), "cosignatures", "logs/coordinator/checkpoint"
    )

    def log_key(study: Study) -> None:
        key = study.parties["site-a"].keys["log"].public_hex
        study.append("site-a", "key_revoke", {"role": "log", "key": key, "from_seq": 0})

    broken(Study(tmp_path / "d", SITES, extra=log_key).build(), "log of site-a", "logs/site-a/checkpoint")


def test_a_rotated_key_goes_on(tmp_path: Path) -> None:
    def rotate(study: Study) -> None:
        party = study.parties["site-a"]
        for role in ("signing", "log"):
            new = SigningKey.generate()
            party.log.rotate(role, party.keys[role], new)
            party.keys[role] = new
        study.append("site-a", "incident", {"code": "replay", "evidence_sha256": "1" * 64})

    assert audited(Study(tmp_path, SITES, extra=rotate).build()).exit_code == 0


def test_too_few_cosignatures(trained: Files, frozen: Files) -> None:
    def without(files: Files, party: str, count: int) -> Files:
        path = f"logs/{party}/checkpoint"
        lines = files[path].decode().splitlines(keepends=True)
        return relisted({**files, path: "".join(lines[: len(lines) - count]).encode()})

    assert [cosigners_needed(sites) for sites in (1, 2, 3, 4, 5, 15)] == [1, 2, 2, 3, 3, 8]
    assert audited(without(trained, COORDINATOR, 1)).exit_code == 0  # 2 of 3 are enough
    broken(without(trained, COORDINATOR, 2), "cosignatures", "logs/coordinator/checkpoint")
    broken(
        without(frozen, COORDINATOR, 1), "cosignatures", "logs/coordinator/checkpoint"
    )  # 2 of 2 are needed
    broken(without(trained, "site-b", 1), "cosignatures", "logs/site-b/checkpoint")


def test_other_sites_or_keys_enrolled(tmp_path: Path) -> None:
    def sybil(party: str, fields: Fields) -> Fields:
        more = {"site-d": "1" * 64} if party == COORDINATOR else {}
        return {**fields, **({"sites": {**fields["sites"], **more}} if more else {})}

    broken(lying(tmp_path / "a", "enrol", sybil), "enrolment", "coordinator leaf 0")

    def other_key(party: str, fields: Fields) -> Fields:
        more = {"site-b": "1" * 64} if party == COORDINATOR else {}
        return {**fields, **({"sites": {**fields["sites"], **more}} if more else {})}

    broken(lying(tmp_path / "b", "enrol", other_key), "enrolment", "coordinator leaf 0")


def test_a_site_that_answered_cannot_be_left_out(trained: Files) -> None:
    kept = {
        p: d for p, d in trained.items() if not p.startswith("logs/site-c") and p != "policies/site-c.json"
    }
    keys = json.loads(trained["keys.json"])
    del keys["site-c"]
    verdict = audited(relisted({**kept, "keys.json": canonical_json(keys)}))
    assert first(verdict)[0] == "enrolment" and states(verdict)["heads"] == "FAIL"


# Messages


def test_split_models(tmp_path: Path) -> None:
    """One step in two versions: within the coordinator's log, or in what a site was really given."""

    def second_version(study: Study) -> None:
        asked = {"kind": "describe", "round": 0, "site": "*", "body_sha256": "3" * 64, "body_bytes": 9}
        study.append(COORDINATOR, "release", {**asked, "dictionary_sha256": "4" * 64})

    broken(Study(tmp_path / "a", SITES, extra=second_version).build(), "releases", "coordinator leaf")

    def targeted(study: Study) -> None:
        asked = {"kind": "describe", "round": 0, "site": "site-b", "body_sha256": "3" * 64, "body_bytes": 9}
        study.append(COORDINATOR, "release", {**asked, "dictionary_sha256": "4" * 64})

    broken(Study(tmp_path / "b", SITES, extra=targeted).build(), "releases", "coordinator leaf")

    def given(party: str, fields: Fields) -> Fields:
        return {**fields, "body_sha256": "7" * 64} if party == "site-b" else fields

    files = lying(tmp_path / "c", "accepted", given)
    broken(files, "releases", "site-b leaf 3 (accepted)")
    assert "split models" in audited(files).to_dict()["first_broken"]


def test_an_answer_to_what_was_never_asked(tmp_path: Path) -> None:
    hidden = lying(tmp_path, "release", lambda party, fields: None if fields["kind"] == "hello" else fields)
    broken(hidden, "releases", "site-a leaf 2")


def test_a_result_that_the_coordinator_drops(tmp_path: Path) -> None:
    """The coordinator hides one site's message; that site's own log shows that it left."""

    def drop(party: str, fields: Fields) -> Fields | None:
        return None if (fields["site"], fields["kind"]) == ("site-b", "hello") else fields

    broken(
        lying(tmp_path, "ingress", drop, hello=True, report_edit=_no_hello),
        "messages of site-b",
        "site-b leaf 2",
    )


def _no_hello(report: Fields) -> None:
    for name in ("images", "units", "train_units", "test_units", "classes"):
        report["sites"]["site-b"].pop(name)


def test_a_lost_message_with_a_reason_is_fine(tmp_path: Path) -> None:
    def drop(party: str, fields: Fields) -> Fields | None:
        return None if (fields["site"], fields["kind"]) == ("site-b", "hello") else fields

    def fault(study: Study) -> None:
        request = sha256_hex(b"site-bhello0")
        fields = {"site": "site-b", "kind": "hello", "round": 0, "code": "deadline", "requests": [request]}
        study.append(COORDINATOR, "fault", fields)

    files = lying(tmp_path, "ingress", drop, extra=fault, report_edit=_no_hello)
    assert states(audited(files))["messages of site-b"] == "PASS"


def test_a_message_that_no_site_logged(tmp_path: Path) -> None:
    def unlogged(party: str, fields: Fields) -> Fields | None:
        return None if (party, fields["kind"]) == ("site-c", "hello") else fields

    broken(lying(tmp_path, "egress", unlogged), "messages of site-c", "coordinator leaf")


def test_a_replayed_message(tmp_path: Path) -> None:
    seen: list[Fields] = []

    def twice(party: str, kind: str, fields: Fields) -> Fields:
        if kind == "ingress" and fields["site"] == "site-a":
            seen.append(fields)
        return fields

    def again(study: Study) -> None:
        study.append(COORDINATOR, "ingress", seen[0])

    broken(
        Study(tmp_path / "a", SITES, edit=twice, extra=again).build(),
        "messages of site-a",
        "coordinator leaf",
    )
    sent: list[Fields] = []

    def remember(party: str, kind: str, fields: Fields) -> Fields:
        if kind == "egress" and party == "site-a":
            sent.append(fields)
        return fields

    repeat = Study(
        tmp_path / "b", SITES, edit=remember, extra=lambda s: s.append("site-a", "egress", sent[-1]) and None
    )
    broken(repeat.build(), "messages of site-a", "site-a")


def test_a_receipt_that_says_other_things(tmp_path: Path) -> None:
    def another_round(party: str, fields: Fields) -> Fields:
        return {**fields, "status": "refused"} if fields["site"] == "site-b" else fields

    broken(lying(tmp_path, "ingress", another_round), "messages of site-b", "coordinator leaf")


def test_repeats_must_be_of_the_same_question(tmp_path: Path) -> None:
    def repeats(party: str, fields: Fields) -> Fields:
        return {**fields, "repeats": 2} if (party, fields["kind"]) == ("site-a", "describe") else fields

    broken(lying(tmp_path, "egress", repeats), "messages of site-a", "site-a leaf 4")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("policy_sha256", "8" * 64, "another policy"),
        ("min_units", 3, "other rules"),
        ("profile", "evaluate_only", "other rules"),
        ("budget", {"rounds": 0, "messages": 0, "bytes": 0}, "budget"),
        ("budget", {"rounds": 0, "messages": 100, "bytes": 9999}, "budget"),
    ],
)
def test_what_leaves_keeps_to_the_policy(tmp_path: Path, name: str, value: Any, text: str) -> None:
    def other(party: str, fields: Fields) -> Fields:
        return {**fields, name: value} if (party, fields["kind"]) == ("site-b", "describe") else fields

    files = lying(tmp_path, "egress", other)
    broken(files, "policy of site-b", "site-b leaf 4 (egress)")
    assert text in audited(files).to_dict()["first_broken"]


def test_a_tensor_outside_the_policy(tmp_path: Path) -> None:
    def embeddings(study: Study) -> None:
        asked = {"kind": "survey", "round": 0, "site": "*", "body_sha256": "3" * 64, "body_bytes": 9}
        study.append(COORDINATOR, "release", {**asked, "dictionary_sha256": ""})
        job = {"kind": "survey", "round": 0, "request_sha256": "4" * 64}
        study.send("site-a", job, {"embeddings": np.zeros((2, 2), np.float32)})

    broken(Study(tmp_path, SITES, extra=embeddings).build(), "policy of site-a", "site-a leaf 5 (egress)")


def test_egress_before_a_policy(tmp_path: Path) -> None:
    files = lying(tmp_path, "policy", lambda party, fields: None if party == "site-a" else fields)
    broken(files, "policy of site-a", "site-a leaf 1 (egress)")


def test_epsilon_is_neither_invented_nor_miscounted(tmp_path: Path) -> None:
    def claims(report: Fields) -> None:
        report["sites"]["site-a"]["epsilon"] = 2.1

    broken(Study(tmp_path / "a", SITES, report_edit=claims).build(), "privacy", "report.json")

    def noised(**wrong: str) -> Callable[[str, Fields], Fields]:
        """Two releases of noise 4: each epsilon at delta 1e-6, both together; `wrong` in the second."""

        def change(party: str, fields: Fields) -> Fields:
            dp = {
                "mechanism": "gaussian",
                "unit": "patient",
                "delta": "1e-6",
                "clip": "1",
                "noise_multiplier": "4",
                "accountant": "pld",
                "epsilon": repr(epsilon_of(1 / 4, 1e-6)),
            }
            count = {"hello": 1, "describe": 2}[fields["kind"]]
            dp["epsilon_total"] = repr(epsilon_of(math.sqrt(count) / 4, 1e-6))
            dp |= wrong if count == 2 else {}
            return {**fields, "dp": dp} if party == "site-a" else fields

        return change

    assert audited(lying(tmp_path / "b", "egress", noised(), report_edit=claims)).exit_code == 0
    for name, wrong in enumerate(({"epsilon_total": "1.1"}, {"epsilon": "0.5"}, {"noise_multiplier": "3"})):
        broken(lying(tmp_path / f"c{name}", "egress", noised(**wrong)), "privacy", "site-a leaf 4 (egress)")


@pytest.mark.parametrize("mu", [0.05, 0.2681, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_the_auditors_epsilon_is_the_accountants(mu: float, delta: float) -> None:
    assert epsilon_of(mu, delta) == pytest.approx(exact_epsilon(mu, delta), rel=1e-7, abs=1e-9)


# Replies and rounds


def test_a_reply_that_another_key_signed(tmp_path: Path) -> None:
    study = Study(tmp_path, SITES)
    study.parties["site-b"].keys["signing"] = (
        SigningKey.generate()
    )  # its log goes on with the key that it was opened with
    broken(study.build(), "replies", "payloads/")


def test_an_aggregate_of_other_inputs(tmp_path: Path) -> None:
    def swapped(party: str, fields: Fields) -> Fields:
        if fields["round"] == 2:
            fields["inputs"] = [
                {**fields["inputs"][0], "payload_sha256": fields["inputs"][1]["payload_sha256"]}
            ]
            fields["inputs"] += []
        return fields

    broken(lying(tmp_path / "a", "aggregate", swapped, rounds=2), "aggregation", "(aggregate)")

    def left_out(party: str, fields: Fields) -> Fields:
        return {**fields, "inputs": fields["inputs"][:-1]}

    broken(lying(tmp_path / "b", "aggregate", left_out, rounds=1), "aggregation", "(aggregate)")

    def other_base(party: str, fields: Fields) -> Fields:
        return {**fields, "base_sha256": "2" * 64} if fields["round"] == 2 else fields

    broken(lying(tmp_path / "c", "aggregate", other_base, rounds=2), "aggregation", "(aggregate)")

    def other_result(party: str, fields: Fields) -> Fields:
        return {**fields, "result_sha256": "2" * 64} if fields["round"] == 2 else fields

    broken(lying(tmp_path / "d", "aggregate", other_result, rounds=2), "aggregation", "coordinator (release)")


# The report


def tables(report: Fields) -> Fields:
    return report["concepts"]["tables"]


def put(report: Fields, name: str, site: str, place: int, value: Any) -> None:
    tables(report)[name]["sites"][site][place] = value


def head(report: Fields) -> Fields:
    return report["headlines"][0]


def change(report: Fields, column: str, place: int, value: Any) -> None:
    report["concepts"]["columns"][column][place] = value


CHANGES: dict[str, tuple[Callable[[Fields], None], str]] = {
    "sites/site-b/fvu": (lambda r: r["sites"]["site-b"].update(fvu=r["sites"]["site-b"]["fvu"] + 1e-6), "site-b"),
    "sites/site-c/units": (lambda r: r["sites"]["site-c"].update(units=31), "site-c"),
    "sites/site-c/classes/x": (lambda r: r["sites"]["site-c"]["classes"].update(x=31), "site-c"),
    "sites/site-a/bytes_out": (lambda r: r["sites"]["site-a"].update(bytes_out=1), "site-a"),
    "sites/site-a/messages_out": (lambda r: r["sites"]["site-a"].update(messages_out=1), "site-a"),
    "overall/federated_fvu": (lambda r: r["overall"].update(federated_fvu=0.1), "the study"),
    "rounds/1/fvu": (lambda r: r["rounds"][1].update(fvu=0.1), "the study"),
    "concepts/tables/auroc/sites/site-b/1": (lambda r: put(r, "auroc", "site-b", 1, 0), "the concepts"),
    "concepts/tables/auroc_se/sites/site-b/1": (lambda r: put(r, "auroc_se", "site-b", 1, 0.02), "the concepts"),
    "concepts/tables/firing_rate/sites/site-a/2": (lambda r: put(r, "firing_rate", "site-a", 2, 3), "the concepts"),
    "concepts/tables/firing_rate": (lambda r: tables(r)["firing_rate"]["sites"].pop("site-a"), "the concepts"),
    "concepts/columns/verdict/0": (lambda r: change(r, "verdict", 0, 1), "the concepts"),
    "concepts/columns/target/1": (lambda r: change(r, "target", 1, -1), "the concepts"),
    "concepts/columns/digest/0": (lambda r: change(r, "digest", 0, "0" * 16), "the concepts"),
    "concepts/columns/tau2/0": (lambda r: change(r, "tau2", 0, 0.5), "the concepts"),
    "concepts/columns/p/3": (lambda r: change(r, "p", 3, 0.9), "the concepts"),
    "concepts/columns/prediction_low/2": (lambda r: change(r, "prediction_low", 2, 0.001), "the concepts"),
    "concepts/columns/sites/2": (lambda r: change(r, "sites", 2, 2), "the concepts"),
    "concepts/columns/row": (lambda r: r["concepts"]["columns"]["row"].pop(), "the concepts"),
    "concepts/columns": (lambda r: r["concepts"]["columns"]["mean"].pop(), "the concepts"),
    "headlines/0/value": (lambda r: head(r).update(value=0.5), "headlines"),
    "headlines/0/prediction/0": (lambda r: head(r)["prediction"].__setitem__(0, 0.01), "headlines"),
    "headlines/0/interval/1": (lambda r: head(r)["interval"].__setitem__(1, 9.9), "headlines"),
    "headlines/0/passes": (lambda r: head(r).update(passes=not head(r)["passes"]), "headlines"),
    "headlines/0/sites/site-b/value": (lambda r: head(r)["sites"]["site-b"].update(value=0.1), "headlines"),
    "headlines/0/n/sites": (lambda r: head(r)["n"].update(sites=9), "headlines"),
    "headlines/0/leaves": (lambda r: head(r)["leaves"].pop(), "headlines"),
    "integrity/leaves": (lambda r: r["integrity"]["leaves"]["site-a"]["describe"].append(0), "integrity"),
    "integrity/root": (lambda r: r["integrity"].update(root="0" * 64), "integrity"),
    "integrity/log_size": (lambda r: r["integrity"].update(log_size=3), "integrity"),
    "round 2 site-a": (lambda r: r["rounds"].pop(), "the study"),
    "round 1 site-b": (lambda r: r["rounds"][0]["sites"].pop("site-b"), "the study"),
    "sites site-d": (lambda r: r["sites"].update({"site-d": r["sites"]["site-a"]}), "the study"),
    "study/protocol_sha256": (lambda r: r["study"].update(protocol_sha256="0" * 64), "the study"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_number_names_site_and_metric(tmp_path: Path, name: str) -> None:
    """The coordinator itself logs and cosigns a report with one changed value."""
    change, where = CHANGES[name]
    files = Study(tmp_path, SITES, rounds=2, n=4, report_edit=change).build()
    alone = where in ("headlines", "integrity")
    broken(files, where if alone else f"numbers of {where}", f"report.json {name}")
    failed = {check for check, state in states(audited(files)).items() if state == "FAIL"}
    assert len(failed - {"verdict"}) == 1  # the verdict rests on the headlines


def test_a_second_report_is_mentioned(tmp_path: Path) -> None:
    """Both reports stay in the log; the bundle's is the last, and the verdict says that there was another."""

    def first_try(study: Study) -> None:
        heads = {
            s: {"size": p.log.size, "root": p.log.root.hex()} for s, p in study.parties.items() if s in SITES
        }
        study.append(COORDINATOR, "report", {"report_sha256": "1" * 64, "heads": heads})

    verdict = audited(Study(tmp_path, SITES, extra=first_try).build())
    text = next(check.text for check in verdict.checks if check.name == "report")
    assert verdict.exit_code == 0 and "report 2 of it" in text


def test_one_digit_of_the_report_after_it_was_logged(trained: Files) -> None:
    shown = json.loads(trained["report.json"])["sites"]["site-b"]["fvu"]
    changed = trained["report.json"].replace(str(shown).encode(), str(shown)[:-1].encode() + b"0", 1)
    assert changed != trained["report.json"]
    broken(relisted({**trained, "report.json": changed}), "report", "report.json")


def test_malformed_files_are_findings_not_crashes(trained: Files) -> None:
    for path in trained:
        for data in (
            b"",
            b"[]",
            b"{}",
            b"null",
            b"\xff",
            b'{"a":1}',
            trained[path][: len(trained[path]) // 2],
        ):
            if path != "bundle.json":
                assert audit_bundle(relisted({**trained, path: data}), pinned={}).exit_code == 1, (path, data)
            assert audit_bundle({**trained, path: data}).exit_code == 1, (path, data)
    assert audit_bundle({}).exit_code == 1


def test_the_evidence_alone_needs_no_numbers(trained: Files) -> None:
    """`verify_bundle` leaves arithmetic to `audit_bundle`: the smaller part can be read and trusted first."""
    verdict = verify_bundle(trained, pinned=json.loads(trained["keys.json"]))
    assert verdict.exit_code == 0 and not [name for name in states(verdict) if name.startswith("numbers")]
