"""A new site against a finished study: inside, outside, and when nothing can be said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_client.session import Session
from cytosae_client.site import Site
from cytosae_core.config import RoundsConfig, StudyConfig
from cytosae_core.errors import CytosaeError, StudyError
from cytosae_core.policy import SitePolicy
from cytosae_core.report.admission import admission_report, endpoint, render_admission, verdict
from cytosae_local.cli import main
from cytosae_server.admission import AdmissionRun, admission_protocol, read_finished
from cytosae_server.runfolder import RunFolder
from cytosae_server.transport import LocalGrid
from tests.federation import CLASSES, FakeStore, make_site, make_tokens, study_config
from tests.unit.test_stages import run_in

METRICS = SitePolicy("metrics", "evaluate_only")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("finished") / "four"
    run_in(home, study_config(4))
    return home


def admit(folder: Path, out: Path, site: Site) -> tuple[dict[str, Any], StudyConfig]:
    done = read_finished(folder)
    study = admission_protocol(done, site.name)
    session = Session(site, study, done.key.public_hex)
    grid = LocalGrid({site.name: session.handle})
    run = AdmissionRun(done, study, site.key.public_hex, grid, RunFolder(out / "run", study))
    try:
        return admission_report(study, run.run(), done.report, done.report_sha256), study
    finally:
        grid.close()
        run.record.close()
        session.close()


def test_a_site_like_the_others_lies_inside(finished: Path, tmp_path: Path) -> None:
    site = make_site("new", tmp_path, METRICS, seed=2, patients=40)
    report, study = admit(finished, tmp_path, site)
    assert (study.kind, study.profile, study.sites) == ("validate", "evaluate_only",
                                                        ("site-0", "site-1", "site-2", "site-3", "new"))  # fmt: skip
    by_id = {part["id"]: part for part in report["endpoints"]}
    assert by_id["fvu"]["status"] == by_id["transfer"]["status"] == "inside"
    assert report["verdict"]["state"] == "inside" and "lies inside" in report["verdict"]["sentence"]
    stated = json.loads((finished / "report.json").read_text())
    for part in stated["headlines"]:
        assert by_id[part["id"]]["prediction"] == part["prediction"]
    assert by_id["transfer"]["se"] > 0 and by_id["transfer"]["units"] == 40
    assert set(report["left"]) == {"hello", "describe", "score"}


def test_a_site_of_other_cells_lies_outside(finished: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(5).standard_normal((80, 257, 16)) * 3
    site = replace(make_site("noise", tmp_path, METRICS, seed=2, patients=40), store=FakeStore(noise))
    report, _ = admit(finished, tmp_path, site)
    by_id = {part["id"]: part for part in report["endpoints"]}
    assert by_id["fvu"]["status"] == "above" and by_id["fvu"]["reaches"] is False
    assert by_id["transfer"]["value"] < 0.5 and by_id["transfer"]["reaches"] is False
    assert "above" in verdict({**report, "endpoints": [{**by_id["fvu"], "primary": True}]})["sentence"]


def test_the_new_sites_probe_is_made_from_all_finished_sites(finished: Path, tmp_path: Path) -> None:
    """A site of the study, admitted under another name, does about as well as when it was left out."""
    labels = [index % len(CLASSES) for index in range(60)]
    twin = make_site("twin", tmp_path, METRICS, seed=1)
    twin = replace(twin, store=FakeStore(make_tokens(60, labels, 0.3, 1)))
    report, _ = admit(finished, tmp_path, twin)
    stated = json.loads((finished / "report.json").read_text())
    headline = next(part for part in stated["headlines"] if part["id"] == "transfer")
    own = next(part for part in report["endpoints"] if part["id"] == "transfer")
    assert own["value"] >= headline["sites"]["site-1"]["value"] - 0.05


def test_two_finished_sites_are_too_few(tmp_path: Path) -> None:
    run_in(tmp_path / "two", study_config(2))
    report, _ = admit(tmp_path / "two", tmp_path, make_site("new", tmp_path, METRICS, seed=2))
    assert report["verdict"]["state"] == "not_estimable" and "No answer" in report["verdict"]["sentence"]
    assert {part["status"] for part in report["endpoints"]} <= {"not_estimable", "suppressed", "not_assessed"}
    assert all(part["reason"] for part in report["endpoints"])


def test_the_page_is_a_pure_function_of_the_report(finished: Path, tmp_path: Path) -> None:
    report, _ = admit(finished, tmp_path, make_site("new", tmp_path, METRICS, seed=2))
    page = render_admission(report)
    assert page == render_admission(json.loads(json.dumps(report)))
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    hostile = render_admission({**report, "site": "<b>x</b>", "title": "<img src=x>"})
    assert "<img" not in hostile and "<b>x" not in hostile


def part(value: float | None, se: float | None, prediction: list[float] | None) -> dict[str, Any]:
    headline = {
        "id": "transfer", "name": "N", "unit": "u", "primary": True, "prediction": prediction, "value": 0.6,
        "interval": None, "n": {"sites": 4, "units": 9}, "threshold": 0.5, "direction": "at_least",
    }  # fmt: skip
    own = {"value": value, "se": se, "units": 11, "missing": "withheld", "withheld": value is None}
    return endpoint(headline, own, trained=True)


@pytest.mark.parametrize(
    ("value", "se", "prediction", "status", "within"),
    [
        (0.6, 0.01, [0.5, 0.7], "inside", True),
        (0.5, 0.01, [0.5, 0.7], "inside", True),
        (0.45, 0.05, [0.5, 0.7], "below", True),
        (0.45, 0.01, [0.5, 0.7], "below", False),
        (0.8, None, [0.5, 0.7], "above", None),
        (0.6, 0.01, None, "not_estimable", None),
        (None, None, [0.5, 0.7], "suppressed", None),
    ],
)
def test_where_a_value_lies(
    value: float | None, se: float | None, prediction: list[float] | None, status: str, within: bool | None
) -> None:
    found = part(value, se, prediction)
    assert (found["status"], found["inside_with_error"]) == (status, within)
    assert bool(found["reason"]) is (status in ("not_estimable", "suppressed"))


def test_other_golden_features_are_refused(finished: Path, tmp_path: Path) -> None:
    site = make_site("new", tmp_path, METRICS, seed=2)
    site.store.canary = site.store.canary * 1.01
    with pytest.raises(StudyError, match="golden cells"):
        admit(finished, tmp_path, site)


@pytest.mark.parametrize("name", ["site-0", "coordinator", "a b", "", "x" * 65, "../up"])
def test_names_that_are_no_new_site(finished: Path, name: str) -> None:
    with pytest.raises(StudyError):
        admission_protocol(read_finished(finished), name)


@pytest.mark.parametrize(
    "file", ["report.json", "dictionary.safetensors", "run/replies/describe-final/site-1.reply"]
)
def test_a_changed_finished_study_is_refused(tmp_path: Path, file: str) -> None:
    home = tmp_path / "s"
    run_in(home, replace(study_config(3), rounds=RoundsConfig(quorum=2, deadline_s=60.0)))
    read_finished(home)
    data = bytearray((home / file).read_bytes())
    data[len(data) // 2] ^= 1
    (home / file).write_bytes(bytes(data))
    with pytest.raises(CytosaeError):
        read_finished(home)


@pytest.mark.parametrize("text", ["new", "=folder", "new=", "new=nowhere"])
def test_the_command_says_what_is_missing(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "admit", str(tmp_path), "--site", text]) == 1
    assert "NAME=FOLDER" in capsys.readouterr().err


def test_an_unfinished_study_admits_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "admit", str(tmp_path), "--site", f"new={tmp_path}"]) == 1
    assert "finished study" in capsys.readouterr().err
