"""The protocol: strict in, one digest out."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytosae_core.config import MAX_SITES, StudyConfig, load_yaml, study_from_dict
from cytosae_core.errors import CytosaeError, SetupError, StudyError
from cytosae_core.policy import SitePolicy, named_policy
from cytosae_server.study import read_protocol, write_study_folder
from tests.federation import study_config


def test_protocol_survives_the_file(tmp_path: Path) -> None:
    study = study_config()
    write_study_folder(tmp_path, study, {}, {"site-0": "ab"}, "cd")
    assert read_protocol(tmp_path / "study.yaml") == study
    assert read_protocol(tmp_path / "study.yaml").digest == study.digest


def test_any_change_changes_the_digest() -> None:
    assert study_config().digest != study_config(seed=1).digest != study_config(name="other").digest


GOOD = study_config().to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"urn": "urn:other"},
        {"kind": "guess"},
        {"profile": "evaluate_only"},
        {"surprise": 1},
        {"seed": "0"},
        {"seed": True},
        {"sites": "site-0"},
        {"sites": ["a", "a"]},
        {"sites": []},
        {"encoder": 3},
        {"encoder": {"name": "x", "lair": 2}},
        {"dictionary": {"model": "topk"}},
        {"dictionary": {"n": 0}},
        {"dictionary": {"n": 8, "k": 9}},
        {"training": {"learning_rate": -1.0}},
        {"training": {"aggregation": "median"}},
        {"rounds": {"quorum": 9}},
        {"statistics": {"test_share": 0.9}},
        {"statistics": {"attributes": [{"name": "x"}]}},
        {"min_units": 0},
        {"simulation": False, "min_units": 3},
    ],
)
def test_bad_protocols_are_study_errors(change: dict[str, object]) -> None:
    with pytest.raises(StudyError):
        study_from_dict({**GOOD, **change})


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2\n",
        "a: &x 1\nb: *x\n",
        "a: !!python/object/apply:os.system ['true']\n",
        "- 1\n",
        "a: [1\n",
        "1: a\n",
        "\x00",
    ],
)
def test_loose_yaml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(StudyError):
        load_yaml(path)


def test_missing_and_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError):
        load_yaml(tmp_path / "none.yaml")
    (tmp_path / "big.yaml").write_text("a: " + "x" * (1 << 20))
    with pytest.raises(StudyError):
        load_yaml(tmp_path / "big.yaml")


def test_line_of_a_duplicate_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(StudyError, match="line 3"):
        load_yaml(tmp_path / "s.yaml")


def test_policies() -> None:
    assert named_policy("masked").min_units == 11
    assert named_policy("masked").digest != named_policy("evaluate_only").digest
    for make in (
        lambda: named_policy("none"),
        lambda: SitePolicy("x", "open"),
        lambda: SitePolicy("x", "masked", 1),
    ):
        with pytest.raises(SetupError):
            make()


def test_errors_carry_hint_and_code() -> None:
    error = CytosaeError("Expected a=1.", hint="Do b.")
    assert str(error) == "Expected a=1. Hint: Do b." and error.code == "internal"
    assert StudyError("x").code == "study"


def test_defaults_are_the_design() -> None:
    study = StudyConfig("s", ("a", "b"))
    assert (study.dictionary.model, study.training.aggregation, study.encoder.layer) == (
        "pursuit",
        "firing-weighted",
        6,
    )


def test_a_study_has_as_many_sites_as_a_coordinator_was_tried_with() -> None:
    names = tuple(f"site-{index:05d}" for index in range(MAX_SITES))
    assert len(StudyConfig(name="large", sites=names).sites) == MAX_SITES
    with pytest.raises(StudyError, match="at most 2000 sites"):
        StudyConfig(name="large", sites=(*names, "one-more-site"))
