"""`study new`: every way in gives a protocol that reads back, or an error that says what to do, and no half file."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_core.errors import StudyError
from cytosae_core.invite import read_invite
from cytosae_core.sae.checkpoint import load_checkpoint, save_checkpoint
from cytosae_local import study_new
from cytosae_local.cli import main
from cytosae_local.study_new import collect
from cytosae_local.study_questions import BY_KEY, QUESTIONS
from cytosae_local.study_yaml import commented
from cytosae_server.study import read_protocol
from tests.unit.test_plan import study

BASE = ["--site", "a", "--site", "b", "--site", "c", "--class", "x", "--class", "y", "--yes"]


def new(*arguments: str) -> int:
    return main(["study", "new", *arguments])


def test_every_question_has_a_flag() -> None:
    assert {*study_new.FLAGS, *study_new.REPEATED} == set(BY_KEY)
    assert len(BY_KEY) == len(QUESTIONS)


def test_defaults_give_a_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert new(str(tmp_path / "my-study"), *BASE, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    made = read_protocol(tmp_path / "my-study" / "study.yaml")
    assert told["sha256"] == made.digest and made.name == "my-study" and made.sites == ("a", "b", "c")
    assert (made.kind, made.profile, made.simulation, made.plan.primary.name) == (
        "train",
        "masked",
        False,
        "replication",
    )
    assert made.encoder.d == 384 and made.encoder.layer == 6 and made.dictionary.init == "random"
    assert os.listdir(tmp_path / "my-study") == ["study.yaml"]


def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    assert new(str(tmp_path), *BASE) == 0
    before = (tmp_path / "study.yaml").read_bytes()
    assert new(str(tmp_path), *BASE, "--seed", "3") == 1
    assert (tmp_path / "study.yaml").read_bytes() == before
    assert os.listdir(tmp_path) == ["study.yaml"]


def test_folders_make_a_simulation_that_can_run(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "out").mkdir()
    folder = tmp_path / "images"
    sites = ["--site", f"a={folder}", "--site", f"b={folder}", "--class", "x", "--class", "y", "--yes"]
    assert new(str(tmp_path / "out"), *sites) == 0
    text = (tmp_path / "out" / "study.yaml").read_text()
    assert read_protocol(tmp_path / "out" / "study.yaml").simulation
    assert 'a: "../images"' in text and "policy: masked" in text
    assert new(str(tmp_path / "other"), *sites[:-1], "--site", "c", "--yes") == 1
    assert new(str(tmp_path / "other"), "--site", "a=nowhere", "--class", "x", "--class", "y", "--yes") == 1
    assert not (tmp_path / "other").exists()


def test_a_start_file_sets_rows_and_digest(tmp_path: Path) -> None:
    digest = save_checkpoint(
        tmp_path / "start", {"centroids": np.eye(20, 384, dtype=np.float32)}, {"encoder": "e" * 64}
    )
    assert new(str(tmp_path / "t"), *BASE, "--start", str(tmp_path / "start")) == 0
    made = read_protocol(tmp_path / "t" / "study.yaml")
    assert (made.dictionary.n, made.dictionary.digest, made.dictionary.init) == (20, digest, "public-kmeans")
    assert made.encoder.digest == "e" * 64
    assert new(str(tmp_path / "v"), *BASE, "--kind", "validate", "--start", str(tmp_path / "start")) == 1
    tensors = {"dictionary": np.eye(20, 384, dtype=np.float32)}
    digest = save_checkpoint(tmp_path / "trained", tensors, {"model": "pursuit", "k": 3})
    assert new(str(tmp_path / "v"), *BASE, "--kind", "validate", "--start", str(tmp_path / "trained")) == 0
    made = read_protocol(tmp_path / "v" / "study.yaml")
    assert (made.profile, made.dictionary.k, made.dictionary.init) == ("evaluate_only", 3, "file")
    assert load_checkpoint(tmp_path / "v" / "start").sha256 == digest  # where invites and `study start` look


def test_the_start_file_goes_along_and_no_invite_is_written_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sites elsewhere fetch the start file from the study's folder; an invite names its digest."""
    table = np.eye(20, 384, dtype=np.float32)
    for name, scale in (("start", 1), ("other", 2)):
        save_checkpoint(tmp_path / name, {"centroids": scale * table}, {"encoder": "e" * 64})
    out, start = tmp_path / "out", ["--start", str(tmp_path / "start")]
    assert new(str(out), *BASE, *start) == 0
    assert "study invite a" in capsys.readouterr().out
    assert sorted(os.listdir(out)) == ["start.json", "start.safetensors", "study.yaml"]
    file, digest = tmp_path / "a.json", load_checkpoint(out / "start").sha256
    invite = ["study", "invite", "a", str(out), "--endpoint", "localhost:8443", "--to", str(file)]
    assert main(invite) == 0 and read_invite(file.read_bytes()).start_sha256 == digest
    (out / "start.json").rename(tmp_path / "away.json")
    assert main(invite) == 1 and "start.safetensors and start.json" in capsys.readouterr().err
    assert main(["study", "start", str(out)]) == 1 and "start file" in capsys.readouterr().err
    taken = tmp_path / "taken"
    save_checkpoint(taken / "start", {"centroids": 2 * table}, {"encoder": "e" * 64})
    assert new(str(taken), *BASE, *start) == 1 and "no other start file" in capsys.readouterr().err
    assert not (taken / "study.yaml").exists()


def test_answers_from_a_file_and_stages(tmp_path: Path) -> None:
    answers = tmp_path / "answers.yaml"
    answers.write_text(
        "name: From a file\nsites: [a, b, c]\nclasses: [x, y]\nprimary: transfer\nthreshold: 0.6\n"
        "endpoints: {fvu: 0.4}\nstages: [poc, external]\npoc_sites: [a, b]\n"
        "poc_criteria: [{endpoint: fvu, threshold: 0.4, sites: 2}]\nfdr: 0.1\n"
    )
    assert new(str(tmp_path / "s"), "--answers", str(answers), "--threshold", "0.7", "--yes") == 0
    plan = read_protocol(tmp_path / "s" / "study.yaml").plan
    assert (plan.primary.name, plan.primary.threshold, plan.fdr) == ("transfer", 0.7, 0.1)
    assert [stage.name for stage in plan.stages] == ["poc", "external"]
    assert plan.stages[0].sites == ("a", "b") and plan.stages[0].criteria[0].sites == 2
    answers.write_text("colour: red\n")
    assert new(str(tmp_path / "x"), "--answers", str(answers), "--yes") == 1
    assert new(str(tmp_path / "x"), "--answers", str(tmp_path / "none.yaml"), "--yes") == 1
    assert not (tmp_path / "x").exists()


BAD = [
    ["--name", "../up"],
    ["--name", "n" * 101],
    ["--kind", "guess"],
    ["--site", "a"],
    ["--site", "coordinator"],
    ["--site", "a b"],
    ["--class", "x"],
    ["--hypothesis", "two\nlines"],
    ["--hypothesis", "x" * 501],
    ["--encoder", "resnet"],
    ["--start", "nowhere"],
    ["--kind", "validate"],
    ["--profile", "dp"],
    ["--profile", "evaluate_only"],
    ["--primary", "auc"],
    ["--threshold", "2"],
    ["--threshold", "nan"],
    ["--threshold", "half"],
    ["--endpoints", "transfer"],
    ["--endpoints", "transfer 0.5, transfer 0.6"],
    ["--endpoints", "replication 0.5"],
    ["--endpoints", "auc 0.5"],
    ["--selection", "best"],
    ["--selection", "listed"],
    ["--selection", "listed", "--concepts", "c9999"],
    ["--concepts", "c0001"],
    ["--support", "1"],
    ["--support", "eleven"],
    ["--support", "11.5"],
    ["--min-sites", "2"],
    ["--fdr", "0"],
    ["--fdr", "0.9"],
    ["--stages", "external, poc"],
    ["--stages", "pilot"],
    ["--poc-sites", "a"],
    ["--stages", "poc", "--poc-sites", "z"],
    ["--stages", "poc", "--poc-criteria", "fvu"],
    ["--stages", "poc", "--poc-criteria", "fvu >= 0.5"],
    ["--stages", "poc", "--poc-criteria", "auc 0.5"],
    ["--stages", "poc", "--poc-criteria", "transfer >= 0.5"],
    ["--stages", "poc", "--poc-criteria", "fvu <= 0.5 from 9 sites"],
    ["--quorum", "4"],
    ["--quorum", "0"],
    ["--min-units", "5"],
    ["--rows", "1"],
    ["--active", "5000"],
    ["--policy", "masked"],
    ["--simulation", "maybe"],
    ["--seed", "-1"],
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_answers_are_errors_and_write_nothing(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert new(str(tmp_path / "s"), *BASE, *arguments) == 1
    told = capsys.readouterr().err
    assert told.startswith("cytosae: Expected") and "Traceback" not in told
    assert not (tmp_path / "s").exists()


def test_without_classes_only_fvu_can_decide(tmp_path: Path) -> None:
    sites = ["--site", "a", "--site", "b", "--class", "none", "--yes"]
    assert new(str(tmp_path / "a"), *sites) == 0
    assert read_protocol(tmp_path / "a" / "study.yaml").plan.primary.name == "fvu"
    assert new(str(tmp_path / "b"), *sites, "--primary", "transfer") == 1


def test_without_a_terminal_it_says_which_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert new(str(tmp_path / "s")) == 1
    told = capsys.readouterr().err
    assert "no terminal" in told and "--site" in told and "--yes" in told
    assert new(str(tmp_path / "s"), "--yes") == 1
    assert "--site" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_questions_are_asked_again_until_they_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["Trial", "", "", "guess", "train", "", "a b", "a, b", "", "x, y", *[""] * 30]
    monkeypatch.setattr("sys.stdin", Terminal("\n".join(lines)))
    assert new(str(tmp_path / "s")) == 0
    told = capsys.readouterr()
    assert "Expected one of train, validate" in told.err and "An answer is needed" in told.err
    made = read_protocol(tmp_path / "s" / "study.yaml")
    assert made.name == "Trial" and made.sites == ("a", "b") and "sha256" in told.out


@pytest.mark.parametrize("lines", ["Trial\n", "Trial\n\n\ntrain\n"])
def test_leaving_half_way_writes_nothing(tmp_path: Path, lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(lines))
    assert new(str(tmp_path / "s")) == 130
    assert not (tmp_path / "s").exists()


def test_a_crash_while_writing_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cytosae_local.study_yaml.read_protocol", crash)
    assert new(str(tmp_path / "s"), *BASE) == 130
    assert os.listdir(tmp_path / "s") == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert new(str(tmp_path / "file"), *BASE) == 1
    assert "can be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["no", "y", "null", "1e5", "0x1", "a:b", "#x", "- x", "'", '"', "a, b", "~", "é"]
)
def test_class_names_survive_yaml(tmp_path: Path, name: str) -> None:
    answers = {"sites": ["a", "b"], "classes": [name, "other"]}
    (tmp_path / "answers.yaml").write_text(json.dumps(answers))
    assert new(str(tmp_path / "s"), "--answers", str(tmp_path / "answers.yaml"), "--yes") == 0
    assert read_protocol(tmp_path / "s" / "study.yaml").statistics.classes == (name, "other")


def test_the_commented_file_reads_back_whatever_it_holds(tmp_path: Path) -> None:
    made = study(hypothesis='Quotes " and # and: colons', fdr=1e-07)
    (tmp_path / "study.yaml").write_text(commented(made, {"policy": "masked"}))
    assert read_protocol(tmp_path / "study.yaml") == made


def test_an_answer_that_is_not_asked_for_is_an_error() -> None:
    with pytest.raises(StudyError, match="not asked"):
        collect({"sites": ["a"], "classes": [], "policy": "masked"}, None, {"name": "n"})
