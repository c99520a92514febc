"""A whole study in memory, its bundle on disk, and what an auditor does with it: verify, replay, explain."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytosae_core.audit.recompute import audit_bundle
from cytosae_core.audit.recompute.__main__ import main, read_bundle
from cytosae_core.canonical import canonical_json, sha256_hex
from cytosae_core.cohort import Ratings
from cytosae_core.config import TrainingConfig, study_from_dict
from cytosae_core.errors import StudyError, VerificationError
from cytosae_core.keys import SigningKey
from cytosae_core.policy import POLICIES
from cytosae_core.report import columns
from cytosae_core.report.build import build_report
from cytosae_core.tensors import pack_tensors
from cytosae_local import cli
from cytosae_local.audit_explain import explain
from cytosae_local.verifier_pyz import build_pyz
from cytosae_server import record
from cytosae_server.bundle import bundle_files, write_bundle
from cytosae_server.deviations import Deviations
from cytosae_server.loop import CANARY_TOLERANCE
from cytosae_server.replay import replay_bundle
from cytosae_server.study import rebuild_report, write_report
from cytosae_server.transport import LocalGrid
from tests.bundles import Files, relisted
from tests.federation import Federation, study_config
from tests.integration.test_study import Handler, dead, kill_at

ROOT = Path(__file__).resolve().parents[2]


def finished(federation: Federation, deviations: list[dict[str, str]] | None = None) -> Path:
    """The folder of a study that ran (or was resumed) to its report, which prints `deviations`."""
    home = federation.home
    with closing(LocalGrid(federation.handlers())) as grid:
        run = federation.study_run(grid, home / "run")
        result = run.run()
        result.deviations = deviations or []
        report = dict(build_report(federation.study, result, None, canary_tolerance=CANARY_TOLERANCE))
        run.close(*write_report(home, report))
        run.record.close()
    return home


def bundled(federation: Federation) -> Files:
    """The bundle of a study that is run to its end."""
    return bundle_files(finished(federation))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study."""
    return finished(Federation(tmp_path_factory.mktemp("study")))


@pytest.fixture(scope="module")
def bundle(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("auditor") / "bundle"
    assert cli.main(["study", "bundle", str(study), "--to", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def files(bundle: Path) -> Files:
    return read_bundle(bundle)


def pinned(files: Files) -> dict[str, dict[str, str]]:
    return dict(json.loads(files["keys.json"]))


def test_a_real_study_verifies(files: Files) -> None:
    verdict = audit_bundle(files, pinned=pinned(files))
    left = {check.name: check.text for check in verdict.checks if check.state != "PASS"}
    assert verdict.exit_code == 0, left
    assert sum(path.startswith("payloads/") for path in files) == 33
    assert sum(path.startswith("dictionaries/") for path in files) == 2


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The bundle of a study whose log names its lists by digest and whose copies of logs are not all open at once, as
    with hundreds of sites."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "MAX_LISTED", 10)
        patch.setattr(record, "MAX_OPEN", 1)
        return bundled(Federation(tmp_path_factory.mktemp("listed")))


def test_lists_beside_the_log_verify_and_replay(listed: Files) -> None:
    lists = [path for path in listed if path.startswith("lists/")]
    assert len(lists) == 1 + study_config().training.rounds + 1  # sites, inputs of every round, heads
    verdict = audit_bundle(listed, pinned=pinned(listed))
    assert verdict.exit_code == 0, verdict.to_dict()["first_broken"]
    assert replay_bundle(listed).exit_code == 0


@pytest.mark.parametrize("damage", ["changed", "missing", "no_list"])
def test_a_list_that_is_not_the_one_of_the_log_is_found(listed: Files, damage: str) -> None:
    for path in sorted(path for path in listed if path.startswith("lists/")):
        files = dict(listed)
        content = files.pop(path)
        if damage != "missing":
            files[path] = b"{}" if damage == "no_list" else content.replace(b"site-1", b"site-2")
        verdict = audit_bundle(relisted(files), pinned=pinned(listed))
        assert verdict.exit_code == 1 and "lists/" in verdict.to_dict()["first_broken"]


def test_a_list_lost_or_changed_in_the_run_folder_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "MAX_LISTED", 10)
    home = finished(Federation(tmp_path / "study"))
    for number, path in enumerate(sorted((home / "run" / "lists").iterdir())):
        kept = path.read_bytes()
        for damage in (path.unlink, lambda path=path, kept=kept: path.write_bytes(kept + b" ")):
            damage()
            words = ["study", "bundle", str(home), "--to", str(tmp_path / f"bundle-{number}")]
            assert cli.main(words) == 1
            assert "the list that the log names" in (said := capsys.readouterr().err) and "backup" in said
            path.write_bytes(kept)
    assert len(bundle_files(home)) > 0


def test_only_so_many_copies_of_logs_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MAX_OPEN", 1)
    federation = Federation(tmp_path)
    with closing(LocalGrid(federation.handlers())) as grid:
        run = federation.study_run(grid, tmp_path / "run")
        run.run()
        assert len(run.record._mirrors) == 1 < len(run.record._seen)
        run.record.close()


def test_the_bundle_is_the_same_bytes_again(study: Path, files: Files, tmp_path: Path) -> None:
    assert cli.main(["study", "bundle", str(study), "--to", str(tmp_path / "again")]) == 0
    assert read_bundle(tmp_path / "again") == files


def test_replay_redoes_rounds_report_and_page(files: Files) -> None:
    verdict = replay_bundle(files)
    assert verdict.exit_code == 0, verdict.to_dict()["first_broken"]
    assert [check.name for check in verdict.checks] == ["bundle", "rounds", "report", "page"]


def test_the_report_made_again_from_the_run_folder_is_the_same_bytes(tmp_path: Path) -> None:
    home = finished(Federation(tmp_path, wrap={"site-2": dead}))
    names = ("report.json", "report.html", "report.csv")
    before = {name: (home / name).read_bytes() for name in names}
    assert json.loads(before["report.json"])["integrity"]["status"] == "logged"
    for name in names[1:]:
        (home / name).unlink()
    rebuild_report(home)
    assert {name: (home / name).read_bytes() for name in names} == before
    with pytest.raises(StudyError, match="finished study"):
        rebuild_report(tmp_path / "nothing")


def test_a_deviation_recorded_later_needs_a_report_that_prints_it(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    home = finished(federation)
    before = (home / "report.json").read_bytes()
    study = study_from_dict(json.loads((home / "run" / "study.json").read_bytes()))
    notes = Deviations(home, SigningKey.load_or_create(home / "study.key"), study)
    assert notes.add("One slide was stained twice.", "Found when the report was read.", today="2026-11-20")
    with pytest.raises(StudyError, match=r"all 1 deviations.*got one with 0"):
        bundle_files(home)
    assert (
        finished(federation, notes.printed()) == home
    )  # nobody computes again; the sites cosign the new report
    files = bundle_files(home)
    assert files["report.json"] != before and "deviations.json" in files
    verdict = audit_bundle(files, pinned=pinned(files))
    told = {check.name: check for check in verdict.checks}
    assert [check.name for check in verdict.checks if check.state == "FAIL"] == []
    assert told["report"].text.endswith("report 2 of it.") and told["deviations"].text.startswith(
        "1 deviations"
    )

    def broken(**changed: bytes) -> str:
        named = {name.replace("_json", ".json"): data for name, data in changed.items()}
        found = audit_bundle(relisted({**files, **named}), pinned=pinned(files))
        return next(
            check.link for check in found.checks if check.name == "deviations" and check.state == "FAIL"
        )

    report, signed = json.loads(files["report.json"]), json.loads(files["deviations.json"])
    quiet = {**report, "protocol": {**report["protocol"], "deviations": []}}
    assert broken(report_json=json.dumps(quiet).encode()) == "report.json protocol/deviations"
    report["protocol"]["deviations"][0]["why"] = "No reason."
    assert broken(report_json=json.dumps(report).encode()) == "deviations.json 0"
    signed["entries"][0]["why"] = "No reason."
    assert broken(deviations_json=canonical_json(signed))
    assert broken(deviations_json=canonical_json({"urn": signed["urn"], "entries": []}))


def test_per_site_values_in_a_file_are_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "INLINE_VALUES", 10)
    files = bundled(Federation(tmp_path))
    assert columns.FILE in files
    assert audit_bundle(files, pinned=pinned(files)).exit_code == 0 and replay_bundle(files).exit_code == 0
    data = bytearray(files[columns.FILE])
    data[-3] ^= 1
    changed = audit_bundle(relisted({**files, columns.FILE: bytes(data)}), pinned=pinned(files))
    assert changed.to_dict()["first_broken"].startswith(columns.FILE)
    without = relisted({path: found for path, found in files.items() if path != columns.FILE})
    assert audit_bundle(without, pinned=pinned(files)).exit_code == 2


def test_replay_finds_what_signatures_cannot(files: Files) -> None:
    page = files["report.html"].replace(b"</h1>", b" (validated)</h1>", 1)
    assert page != files["report.html"]
    assert (
        replay_bundle(relisted({**files, "report.html": page}))
        .to_dict()["first_broken"]
        .startswith("report.html")
    )
    report = json.loads(files["report.json"])
    report["agreement"]["firing_rate"][0]["rho"] = 0.99
    changed = replay_bundle(relisted({**files, "report.json": json.dumps(report, indent=1).encode()}))
    assert "agreement/firing_rate/0/rho" in changed.to_dict()["first_broken"]
    without = {
        path: d for path, d in files.items() if not (path.startswith("payloads/") and b'"kind":"round"' in d)
    }
    states = {check.name: check.state for check in replay_bundle(relisted(without)).checks}
    assert states["rounds"] == "NOT CHECKED" and states["report"] == "FAIL"


def test_replay_finds_another_average(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the coordinator had averaged with another rule than the one it logs."""
    from cytosae_server import replay

    class Sizes(replay.RowAverage):
        def __init__(self, dictionary: object, rule: str, rate: float) -> None:
            super().__init__(dictionary, "size-weighted", rate)  # type: ignore[arg-type]

    monkeypatch.setattr(replay, "RowAverage", Sizes)
    assert "coordinator leaf" in replay_bundle(files).to_dict()["first_broken"]


def test_a_bundle_without_updates(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    assert cli.main(["study", "bundle", str(study), "--to", str(out), "--no-updates"]) == 0
    assert audit_bundle(read_bundle(out)).exit_code == 2
    with pytest.raises(StudyError, match="empty"):
        write_bundle(out, {})


def test_an_unfinished_study_has_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "bundle", str(tmp_path)]) == 1
    assert "finished study" in capsys.readouterr().err


# The auditor's commands


def test_exit_codes_and_words(
    bundle: Path, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_bytes(files["keys.json"])
    assert cli.main(["audit", "verify", str(bundle), "--keys", str(keys), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"][0]["state"] == "PASS"
    assert cli.main(["audit", "verify", str(bundle)]) == 2
    assert "not everything was checked" in capsys.readouterr().out
    other = pinned(files)
    other["site-1"]["signing"] = other["site-0"]["signing"]
    keys.write_text(json.dumps(other))
    assert cli.main(["audit", "verify", str(bundle), "--keys", str(keys)]) == 1
    assert "FAILED. First broken link: keys.json site-1" in capsys.readouterr().out
    assert cli.main(["audit", "verify", str(bundle), "--keys", str(tmp_path / "none")]) == 1
    assert "file with keys" in capsys.readouterr().err
    assert cli.main(["audit", "replay", str(bundle)]) == 0
    assert "VERIFIED" in capsys.readouterr().out


def test_folders_with_odd_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(VerificationError, match="regular"):
        read_bundle(tmp_path)
    with pytest.raises(VerificationError, match="bundle folder"):
        read_bundle(tmp_path / "nothing")
    assert main([str(tmp_path)]) == 1


def test_explain_says_what_an_entry_binds(bundle: Path) -> None:
    text = "\n".join(explain(f"{bundle}/site-1/3"))
    assert "site-1" in text and "How it is bound" in text and "leaf 3 of" in text
    kinds = set()
    for party, count in (("coordinator", 47), ("site-0", 20)):
        for index in range(count):
            lines = explain(f"{bundle}/{party}/{index}")
            assert len(lines) > 5 and not re.search(r"\{\w*\}", lines[0])
            kinds.add(json.loads(lines[lines.index("All of it:") + 1])["seq"])
    assert kinds == set(range(47))
    for wrong in ("site-1/999", "site-1/x", "site-9/0"):
        with pytest.raises(VerificationError):
            explain(f"{bundle}/{wrong}")


def test_explain_of_a_lone_entry(files: Files, tmp_path: Path) -> None:
    data = next(data for path, data in files.items() if path.startswith("logs/site-0/tile/entries"))
    first = data[2 : 2 + int.from_bytes(data[:2], "big")]
    (tmp_path / "leaf.json").write_bytes(first)
    assert "enrolment on its own" in explain(str(tmp_path / "leaf.json"))[0]


def test_the_standalone_verifier(bundle: Path, tmp_path: Path) -> None:
    """One file, no project beside it: stdlib and `cryptography` only, and the same bytes every time."""
    assert build_pyz() == build_pyz()
    program = tmp_path / "verifier.pyz"
    assert cli.main(["audit", "pyz", str(program)]) == 0
    command = [sys.executable, "-I", str(program), str(bundle), "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert done.returncode == found["exit"] == 2  # no keys were pinned
    assert found["verifier_sha256"] == sha256_hex(program.read_bytes())
    assert [c["name"] for c in found["checks"] if c["state"] != "PASS"] == ["keys"]
    with zipfile.ZipFile(program) as archive:
        names = archive.namelist()
        assert names == sorted(names) and {entry.date_time[0] for entry in archive.infolist()} == {1980}
    assert not [n for n in names if "report" in n.split("/")[1:2] or "egress" in n]


def test_the_verifier_needs_no_numpy() -> None:
    code = "import sys, cytosae_core.audit.recompute.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"numpy", "scipy", "torch", "yaml", "flwr", "safetensors"} & set(done.stdout.split())


# Studies that did not go smoothly


@pytest.mark.parametrize(("event", "number"), [("site", 3), ("round", 2), ("step", 8)])
def test_a_study_that_was_killed_and_resumed_verifies(tmp_path: Path, event: str, number: int) -> None:
    kill_at(Federation(tmp_path), event, number)
    files = bundled(Federation(tmp_path))
    verdict = audit_bundle(files, pinned=pinned(files))
    assert verdict.exit_code == 0, verdict.to_dict()["first_broken"]


def test_a_site_that_never_answered_is_named(tmp_path: Path) -> None:
    files = bundled(Federation(tmp_path, wrap={"site-2": dead}))
    verdict = audit_bundle(files, pinned=pinned(files))
    assert verdict.exit_code == 0 and "site-2" not in pinned(files)
    assert "never answered: site-2" in next(
        check.text for check in verdict.checks if check.name == "enrolment"
    )
    assert replay_bundle(files).exit_code == 0


def test_a_reply_that_was_cut_on_the_way_has_a_reason(tmp_path: Path) -> None:
    def cut(handle: Handler) -> Handler:
        answers: list[bytes] = []

        def wrapped(request: bytes) -> bytes:
            answers.append(handle(request))
            return answers[-1][:-5] if len(answers) == 4 else answers[-1]

        return wrapped

    files = bundled(Federation(tmp_path, wrap={"site-1": cut}))
    verdict = audit_bundle(files, pinned=pinned(files))
    assert verdict.exit_code == 0, verdict.to_dict()["first_broken"]
    text = next(check.text for check in verdict.checks if check.name == "messages of site-1")
    assert "did not, each with a reason" in text and "arrived, 0 did not" not in text


def test_a_frozen_dictionary_with_a_review_verifies_and_replays(tmp_path: Path) -> None:
    trained = Federation(tmp_path / "train", study=study_config(training=TrainingConfig(rounds=1))).run()
    scale = np.array([trained.scale.scale], np.float32)
    start = {"dictionary": np.asarray(trained.result.final), "mean": trained.scale.mean, "scale": scale}
    study = study_config(kind="validate", profile="evaluate_only")
    frozen = replace(study.dictionary, init="file", digest=sha256_hex(pack_tensors(start)))
    study = replace(study, dictionary=frozen)
    federation = Federation(tmp_path / "v", study=study, policy=POLICIES["evaluate_only"], start=start)
    for name, raters in (("site-0", 4), ("site-1", 3), ("site-2", 2)):  # two votes stay at the third site
        session = federation.sessions[name]
        votes = tuple((row, row % 2) for row in range(6) for _ in range(raters))
        session.site = replace(session.site, ratings=Ratings(frozen.digest, votes))
    home = finished(federation)
    files = bundle_files(home)
    report = json.loads(files["report.json"])
    assert report["experts"]["raters"] == 7 and report["experts"]["sites"] == ["site-0", "site-1"]
    assert report["experts"]["ac1"]["value"] == 1 and report["experts"]["ac1"]["n"] == {"concepts": 6}
    named = dict(
        zip(report["concepts"]["columns"]["row"], report["concepts"]["gate_values"]["naming"], strict=True)
    )
    assert {row for row, mark in named.items() if mark == 1} == set(range(6)) and named[7] == -1
    assert audit_bundle(files, pinned=pinned(files)).exit_code == 0 and replay_bundle(files).exit_code == 0
    assert not any(path.startswith("payloads/") and b'"kind":"round"' in data for path, data in files.items())
