"""Deviations: dated, signed, chained, printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cytosae_core.errors import StudyError
from cytosae_core.keys import SigningKey
from cytosae_core.report.inputs import StudyResult
from cytosae_server.deviations import Deviations
from tests.federation import study_config
from tests.unit.test_plan import study

KEY = SigningKey.generate()


def notes(folder: Path) -> Deviations:
    return Deviations(folder, KEY, study_config())


def test_what_was_recorded_is_read_again_in_order(tmp_path: Path) -> None:
    assert notes(tmp_path).printed() == []
    assert notes(tmp_path).add("One", "A", today="2026-01-01")
    assert notes(tmp_path).add("Two", "B", today="2026-01-02")
    assert notes(tmp_path).printed() == [
        {"at": "2026-01-01", "what": "One", "why": "A"},
        {"at": "2026-01-02", "what": "Two", "why": "B"},
    ]
    assert not notes(tmp_path).add("Two", "B", today="2026-01-02")
    assert len(notes(tmp_path).entries) == 2


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "x" * 501, "left\u202eright", "\x00"])
def test_a_sentence_is_one_printable_line(tmp_path: Path, text: str) -> None:
    for what, why in ((text, "fine"), ("fine", text)):
        with pytest.raises(StudyError):
            notes(tmp_path).add(what, why)
    assert not (tmp_path / "deviations.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["entries"][0].update(what="Nothing"),
        lambda c: c["entries"].pop(0),
        lambda c: c["entries"].reverse(),
        lambda c: c["entries"].append(c["entries"][0]),
        lambda c: c["entries"][1].update(signature="00" * 64),
        lambda c: c["entries"][1].update(signature="zz"),
        lambda c: c["entries"][1].pop("why"),
        lambda c: c["entries"][1].update(extra="1"),
        lambda c: c["entries"].append(3),
        lambda c: c.update(entries={}),
        lambda c: c.update(urn="urn:other"),
    ],
)
def test_a_changed_file_is_refused(tmp_path: Path, change: object) -> None:
    notes(tmp_path).add("One", "A")
    notes(tmp_path).add("Two", "B")
    path = tmp_path / "deviations.json"
    content = json.loads(path.read_text())
    change(content)  # type: ignore[operator]
    path.write_text(json.dumps(content))
    with pytest.raises(StudyError, match="as the study key signed it"):
        notes(tmp_path)


def test_another_key_or_no_json_is_refused(tmp_path: Path) -> None:
    notes(tmp_path).add("One", "A")
    with pytest.raises(StudyError):
        Deviations(tmp_path, SigningKey.generate(), study_config())
    (tmp_path / "deviations.json").write_bytes(b"[1")
    with pytest.raises(StudyError):
        notes(tmp_path)


def test_a_run_says_by_itself_who_dropped_out(tmp_path: Path) -> None:
    result = StudyResult()
    result.faults = [("b", "round 2", "deadline"), ("b", "round 4", "deadline"), ("c", "score", "withdrawn")]
    printed = notes(tmp_path).of_run(result, skipped="the pooled dictionary")
    assert [item["what"] for item in printed] == [
        "b gave no usable answer in 2 steps, round 2 to round 4.",
        "c gave no usable answer in score.",
        "Left out: the pooled dictionary.",
    ]
    assert "withdrew" in printed[1]["why"]
    assert notes(tmp_path).of_run(result, skipped="the pooled dictionary") == printed  # a resumed run: once


def test_a_missed_quorum_is_recorded_and_raised(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="quorum"), notes(tmp_path).stops():
        raise StudyError("Expected quorum=2 sites to answer, got 1: {'a': 'deadline'}.", hint="Look.")
    (entry,) = notes(tmp_path).printed()
    assert "stopped" in entry["what"] and "quorum=2" in entry["why"] and "Hint" not in entry["why"]


def test_those_of_earlier_stages_are_printed_with_their_stage_and_other_studies_not(tmp_path: Path) -> None:
    signed = study()
    Deviations(tmp_path, KEY, signed).add("Late start", "Holidays", today="2026-01-01")
    Deviations(tmp_path, KEY, signed.for_stage("poc")).add("One", "A", today="2026-01-01")
    later = Deviations(tmp_path, KEY, signed.for_stage("external"))
    assert [item["what"] for item in later.printed()] == [
        "Before the first stage: Late start",
        "Stage poc: One",
    ]
    assert Deviations(tmp_path, KEY, replace(signed, seed=5)).printed() == []
