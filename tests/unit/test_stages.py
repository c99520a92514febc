"""Stages: the next one opens only after a report that meets the criteria and is what was logged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cytosae_core.config import RoundsConfig, StudyConfig
from cytosae_core.errors import CytosaeError, StudyError
from cytosae_core.keys import SigningKey
from cytosae_core.plan import Criterion, PlanConfig, Stage
from cytosae_core.report.build import build_report
from cytosae_core.sae.checkpoint import save_checkpoint
from cytosae_local.cli import main
from cytosae_server.deviations import Deviations
from cytosae_server.stages import Stages, checked_report, logged_reports
from cytosae_server.study import run_study_folder, trained_tensors, write_report, write_study_folder
from cytosae_server.transport import LocalGrid
from tests.federation import Federation, study_config

EASY = Stage("poc", ("site-0", "site-1"), (Criterion("fvu", 5.0, 2), Criterion("transfer", 0.01, 2)))
HARD = Stage("poc", ("site-0", "site-1"), (Criterion("transfer", 0.01, 2), Criterion("fvu", 0.01, 2)))


def signed(first: Stage = EASY, **changes: Any) -> StudyConfig:
    plan = PlanConfig(stages=(first, Stage("external")))
    return replace(study_config(), rounds=RoundsConfig(quorum=2, deadline_s=60.0), plan=plan, **changes)


def plan_folder(home: Path, study: StudyConfig) -> Path:
    key = SigningKey.load_or_create(home / "study.key")
    write_study_folder(home, study, {}, {name: "ab" * 32 for name in study.sites}, key.public_hex)
    return home


def run_in(folder: Path, study: StudyConfig) -> dict[str, Any]:
    """A whole study in `folder`, as `run_local` does it, without images; report.json's values."""
    federation = Federation(folder, study=study)
    grid = LocalGrid(federation.handlers())
    run = federation.study_run(grid)
    try:
        notes = Deviations(folder, federation.key, study)
        result = run.run()
        result.stage, result.deviations = study.stage or None, notes.of_run(result)
        report = dict(build_report(study, result))
        run.close(*write_report(folder, report))
    finally:
        grid.close()
        run.record.close()
    for session in federation.sessions.values():
        session.close()
    facts = {"model": "pursuit", "k": study.dictionary.k, "study": study.digest}
    save_checkpoint(folder / "dictionary", trained_tensors(run), facts)
    return report


@pytest.fixture(scope="module")
def poc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose first stage has run; tests copy it."""
    home = plan_folder(tmp_path_factory.mktemp("stages") / "easy", signed())
    stages = Stages(home)
    run_in(stages.start(), stages.protocol)
    return home


def copy(poc: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(poc, to / "study", symlinks=True))


def test_a_stage_folder_is_a_study_folder_of_the_stages_sites(poc: Path) -> None:
    stages = Stages(poc)
    assert (stages.current, stages.folder, stages.protocol.sites) == ("poc", poc / "poc", EASY.sites)
    assert set(json.loads((poc / "poc" / "site-keys.json").read_text())) == set(EASY.sites)
    report = json.loads((poc / "poc" / "report.json").read_text())
    assert report["protocol"]["stage"] == "poc" and set(report["sites"]) == set(EASY.sites)
    assert report["protocol"]["sha256"] == signed().for_stage("poc").digest
    assert (poc / "poc" / "study.key").is_symlink()


def test_met_criteria_open_the_next_stage_once(poc: Path, tmp_path: Path) -> None:
    home = copy(poc, tmp_path)
    assert Stages(home).check().met and Stages(home).current == "poc"
    outcome = Stages(home).advance()
    assert outcome.opened and outcome.next == "external" and all(item.met for item in outcome.findings)
    assert (
        Stages(home).current == "external" and Stages(home).opened[1].report_sha256 == outcome.report_sha256
    )
    assert Stages(home).protocol.sites == signed().sites
    with pytest.raises(StudyError, match="report"):
        Stages(home).advance()  # external has not run


def test_criteria_that_are_not_met_keep_it_closed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = plan_folder(tmp_path, signed(HARD))
    stages = Stages(home)
    run_in(stages.start(), stages.protocol)
    before = (home / "stage.json").read_bytes()
    assert main(["study", "advance", str(home)]) == 1
    assert "NOT MET  fvu at most 0.01" in capsys.readouterr().out
    assert main(["study", "advance", str(home), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [row["met"] for row in told["criteria"]] == [True, False] and not told["opened"]
    assert (home / "stage.json").read_bytes() == before and Stages(home).current == "poc"


def test_the_report_is_in_the_coordinators_log(poc: Path, tmp_path: Path) -> None:
    stages = Stages(copy(poc, tmp_path))
    report, digest = checked_report(stages.folder, stages.protocol, stages.key)
    assert logged_reports(stages.folder, stages.protocol, stages.key) == [digest]
    assert report["protocol"]["sha256"] == stages.protocol.digest


def test_a_changed_report_opens_nothing(poc: Path, tmp_path: Path) -> None:
    home = copy(poc, tmp_path)
    path = home / "poc" / "report.json"
    report = json.loads(path.read_text())
    report["headlines"][0]["value"] = 0.99
    path.write_text(json.dumps(report))
    with pytest.raises(StudyError, match="log holds it"):
        Stages(home).advance()
    assert Stages(home).current == "poc"


def test_a_report_that_opened_a_stage_must_stay(poc: Path, tmp_path: Path) -> None:
    home = copy(poc, tmp_path)
    Stages(home).advance()
    path = home / "poc" / "report.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(StudyError, match="opened stage=external"):
        Stages(home)
    path.unlink()
    with pytest.raises(StudyError, match="opened stage=external"):
        Stages(home)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["opened"].append({"stage": "external", "at": "2026-01-01", "report_sha256": "0" * 64}),
        lambda c: c["opened"][0].update(stage="external"),
        lambda c: c["opened"].clear(),
        lambda c: c.update(protocol="0" * 64),
        lambda c: c.update(signature="00" * 64),
        lambda c: c.update(signature=3),
        lambda c: c.pop("signature"),
        lambda c: c.pop("opened"),
    ],
)
def test_a_changed_stage_file_is_refused(poc: Path, tmp_path: Path, change: Any) -> None:
    home = copy(poc, tmp_path)
    content = json.loads((home / "stage.json").read_text())
    change(content)
    (home / "stage.json").write_text(json.dumps(content))
    with pytest.raises(StudyError, match=r"stage\.json"):
        Stages(home)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"3", b'{"signature": "ab"}'])
def test_no_stage_file_at_all_is_refused_too(poc: Path, tmp_path: Path, data: bytes) -> None:
    home = copy(poc, tmp_path)
    (home / "stage.json").write_bytes(data)
    with pytest.raises(CytosaeError):
        Stages(home)
    (home / "stage.json").unlink()
    with pytest.raises(StudyError, match="poc has run"):
        Stages(home)


def test_a_changed_protocol_is_another_study(poc: Path, tmp_path: Path) -> None:
    home = copy(poc, tmp_path)
    text = (home / "study.yaml").read_text()
    (home / "study.yaml").write_text(text.replace("support: 11", "support: 5"))
    with pytest.raises(StudyError, match="another study"):
        Stages(home)


def test_deviations_go_along_to_the_next_stage(poc: Path, tmp_path: Path) -> None:
    home = copy(poc, tmp_path)
    assert main(["study", "deviate", str(home), "--what", "One", "--why", "A"]) == 0
    assert (home / "poc" / "deviations.json").exists() and not (home / "deviations.json").exists()
    stages = Stages(home)
    stages.advance()
    printed = Deviations(home / "external", stages.key, stages.protocol).printed()
    assert [item["what"] for item in printed] == ["Stage poc: One"]


def test_a_study_without_stages_has_nothing_to_open(tmp_path: Path) -> None:
    plan_folder(tmp_path, study_config())
    with pytest.raises(StudyError, match=r"plan\.stages"):
        Stages(tmp_path)
    assert main(["study", "advance", str(tmp_path)]) == 1
    assert main(["study", "advance", str(tmp_path / "nowhere")]) == 1


def test_the_stages_own_folder_is_not_where_stages_are_opened(poc: Path) -> None:
    with pytest.raises(StudyError, match="folder above"):
        Stages(poc / "poc")


def test_a_stage_folder_runs_as_any_study_folder(tmp_path: Path) -> None:
    """What Flower's ServerApp does with a study folder, done with a stage's."""
    study = signed()
    places = {name: tmp_path / "poc" / name / "site.key" for name in study.sites}
    keys = {name: SigningKey.load_or_create(place).public_hex for name, place in places.items()}
    write_study_folder(
        tmp_path, study, {}, keys, SigningKey.load_or_create(tmp_path / "study.key").public_hex
    )
    stages = Stages(tmp_path)
    folder = stages.start()
    federation = Federation(folder, study=stages.protocol)
    assert run_study_folder(folder, LocalGrid(federation.handlers())) == 0
    assert Stages(tmp_path).advance().opened


def test_the_report_can_be_made_again_without_asking_anybody(
    poc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = copy(poc, tmp_path)
    assert main(["study", "report", str(home), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(home / "poc") and "report.json" in told["files"]
    path = home / "poc" / "report.json"
    report = json.loads(path.read_text())
    report["headlines"][0]["value"] = 0.99
    path.write_text(json.dumps(report))
    assert main(["study", "report", str(home)]) == 0
    again = json.loads(path.read_text())["headlines"][0]["value"]
    assert again == json.loads((poc / "poc" / "report.json").read_text())["headlines"][0]["value"] != 0.99
    assert Stages(home).advance().opened  # it follows from the sites' replies
    assert main(["study", "report", str(tmp_path / "nowhere")]) == 1
