"""`cytosae audit report diff` and `check`: what CI sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.made_studies import made_result, made_study
from cytosae_core.errors import StudyError
from cytosae_core.report.build import build_report
from cytosae_core.report.checks import require
from cytosae_core.report.diff import diff, lines
from cytosae_core.report.text_json import report_bytes
from cytosae_local.cli import main

Json = dict[str, Any]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Json:
    study = made_study(5, 200, d=8)
    result = made_result(study, tmp_path_factory.mktemp("made"))
    return dict(json.loads(report_bytes(build_report(study, result))))


def written(path: Path, report: Json) -> str:
    path.write_bytes(report_bytes(report))
    return str(path)


def test_conditions_that_hold(report: Json) -> None:
    assert report["verdict"]["state"] == "generalises"
    met = [
        "verdict=generalises", "integrity = logged", "status=simulation", "sites>=5", "sites == 5", "deviations<=0",
        "headline.transfer.value>=0.5", "headline.transfer.prediction.low >= 0.4", "headline.fvu.n.sites=5",
        "headline.replication.passes=yes", "headline.transfer.status=estimated", "concepts.generalising>=0",
        "concepts.holds>=5", "verdict!=provisional",
    ]  # fmt: skip
    assert require(report, met) == []


@pytest.mark.parametrize(
    "text",
    [
        "verdict=provisional", "status=real", "sites>5", "headline.transfer.value>=0.99",
        "headline.transfer_gain.threshold<=1", "headline.transfer.prediction.high<0.1", "concepts.validated>=201",
        "stage=poc",
    ],
)  # fmt: skip
def test_conditions_that_do_not_hold(report: Json, text: str) -> None:
    found = require(report, [text, "sites=5"])
    assert len(found) == 1 and found[0].startswith(text)


@pytest.mark.parametrize(
    "text",
    ["", "verdict", "verdict>=generalises", "foo=1", "headline.foo.value>1", "headline.transfer.colour>1",
     "headline.transfer.prediction>1", "concepts.foo>1", "sites>=many", "headline>1", "verdict.state=x"],
)  # fmt: skip
def test_conditions_that_make_no_sense(report: Json, text: str) -> None:
    with pytest.raises(StudyError):
        require(report, [text])


def test_a_number_that_is_not_there_meets_nothing(report: Json) -> None:
    gone = json.loads(json.dumps(report))
    gone["headlines"][0].update(
        status="not_estimable", reason="x", value=None, interval=None, prediction=None
    )
    name = gone["headlines"][0]["id"]
    for sign in (">=", "<=", "!=", "="):
        assert require(gone, [f"headline.{name}.value{sign}0.5"])


def test_check_has_exit_codes(report: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "report.json", report)
    assert main(["audit", "report", "check", path, "--require", "sites>=5", "verdict=generalises"]) == 0
    assert main(["audit", "report", "check", str(tmp_path), "--require", "sites>=6", "--json"]) == 1
    said = capsys.readouterr().out.strip().splitlines()
    assert said[0] == "All 2 conditions are met." and json.loads(said[1])["failed"] == [
        "sites>=6: sites is 5"
    ]
    assert main(["audit", "report", "check", path, "--require", "nothing=1"]) == 2
    assert main(["audit", "report", "check", str(tmp_path / "none.json"), "--require", "sites>=5"]) == 2
    (tmp_path / "bad.json").write_text("{")
    assert main(["audit", "report", "check", str(tmp_path / "bad.json"), "--require", "sites>=5"]) == 2
    (tmp_path / "other.json").write_text('{"urn": "urn:cytosae:report:v1"}')
    assert main(["audit", "report", "check", str(tmp_path / "other.json"), "--require", "sites>=5"]) == 2
    assert "Expected a study's report.json" in capsys.readouterr().err


def test_diff_names_what_changed(report: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = json.loads(json.dumps(report))
    other["headlines"][1]["value"] += 0.01
    other["verdict"]["state"] = "provisional"
    other["study"]["protocol_sha256"] = "0" * 64
    other["sites"]["site-004"]["status"] = "failed: deadline"
    other["concepts"]["columns"]["state"][0] = 0
    found = {(item["part"], item["name"]) for item in diff(report, other)}
    name = report["headlines"][1]["id"]
    assert {
        ("headlines", f"{name}.value"), ("verdict", "state"), ("study", "protocol"), ("sites", "site-004"),
        ("concepts", "same row, other state"),
    } <= found  # fmt: skip
    assert len(lines(diff(report, other))) == len(diff(report, other))
    a, b = written(tmp_path / "a.json", report), written(tmp_path / "b.json", other)
    assert main(["audit", "report", "diff", a, a]) == 0
    assert main(["audit", "report", "diff", a, b, "--json"]) == 1
    assert main(["audit", "report", "diff", a, str(tmp_path / "none.json")]) == 2
    out = capsys.readouterr().out
    assert "Nothing differs." in out and len(json.loads(out.splitlines()[-1])["differences"]) == len(found)


def test_diff_of_a_report_with_itself_is_empty(report: Json) -> None:
    assert diff(report, json.loads(json.dumps(report))) == []


def test_a_comparison_of_statistics_is_named_as_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"study": {"kind": "compare"}}))
    assert main(["audit", "report", "check", str(path), "--require", "verdict=generalises"]) == 2
    assert main(["audit", "report", "diff", str(path), str(path)]) == 2
    assert "compares statistics of data sets" in capsys.readouterr().err
