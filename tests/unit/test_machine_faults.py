"""Faults of machines, each with the message that names it and what to do: rows of docs/operations.md."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import tarfile
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from cytosae_client import preflight
from cytosae_client.home import Home
from cytosae_client.join import _why_not, enrolment, join
from cytosae_client.preflight import FAIL, OK, WARN, Preflight, Row
from cytosae_client.serve_site import SiteServer
from cytosae_core.canonical import canonical_json
from cytosae_core.config import StudyConfig
from cytosae_core.encoder import load_encoder
from cytosae_core.errors import SetupError, StudyError, VerificationError
from cytosae_core.keys import SigningKey, fingerprint
from cytosae_core.phantom import DEMO_SITES, generate_site
from cytosae_core.processes import only_one
from cytosae_local import cli, doctor
from cytosae_server import pki, runner
from cytosae_server.backup import backup, restore
from cytosae_server.enrolment import Enrolments
from cytosae_server.study import write_study_folder
from tests.hospitals import CYTOSAE

STUDY = StudyConfig(name="faults", sites=("alder", "birch"), simulation=True)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def held(tmp_path: Path) -> Enrolments:
    folder = tmp_path / "out"
    key = SigningKey.load_or_create(folder / "study.key")
    write_study_folder(folder, STUDY, {}, {}, key.public_hex)
    return Enrolments(folder)


@pytest.fixture
def home(held: Enrolments, tmp_path: Path) -> Home:
    """A confirmed site's home."""
    made = join(held.invite("alder", "study.example.org:8443"), tmp_path / "home")
    held.receive(enrolment(made))
    held.confirm("alder", fingerprint(made.site_key.public_hex))
    made.take_confirmation(held.confirmed("alder") or b"")
    return made


class Coordinator:
    """Answers in place of the network. clock_s: how far its clock is ahead."""

    def __init__(self, held: Enrolments, clock_s: float = 0.0, up: bool = True) -> None:
        self.held, self.clock_s, self.up = held, clock_s, up

    def __call__(self, home: Home, method: str, path: str, body: bytes = b"") -> tuple[int, bytes, str]:
        if not self.up:
            raise SetupError("Expected the coordinator at study.example.org:8443, got ConnectionRefusedError.",
                             hint="Outgoing TCP to this address must be open; see deploy/README.md.")  # fmt: skip
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=self.clock_s), usegmt=True)
        if path.startswith("/enrol/"):
            return 200, self.held.confirmed("alder") or b"", date
        return 200, canonical_json({"study": STUDY.name, "protocol": STUDY.digest}), date


def rows(home: Home, data: Path) -> dict[str, Row]:
    return {row.name: row for row in Preflight(home, data, quick=True).rows()}


def test_a_clock_that_is_off(
    held: Enrolments, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "ask", Coordinator(held, clock_s=400))
    row = rows(home, tmp_path)["clock"]
    assert row.state == FAIL and "s off the coordinator's" in row.found and "NTP" in row.fix
    monkeypatch.setattr(preflight, "ask", Coordinator(held))
    assert rows(home, tmp_path)["clock"].state == OK


def test_a_coordinator_that_cannot_be_reached(
    held: Enrolments, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "ask", Coordinator(held, up=False))
    found = rows(home, tmp_path)
    assert found["coordinator"].state == FAIL and "Outgoing TCP" in found["coordinator"].fix
    assert found["disk"].state == OK and found["policy"].state == WARN  # the other rows are still looked at


def test_a_disk_that_is_nearly_full(
    held: Enrolments, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "ask", Coordinator(held))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - 10**8, 10**8))
    found = rows(home, tmp_path)
    assert (
        found["disk"].state == FAIL and "needed" in found["disk"].found and "Free space" in found["disk"].fix
    )


def test_a_changed_policy(
    held: Enrolments, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "ask", Coordinator(held))
    path = home.folder / "site-policy.yaml"
    path.write_text(path.read_text().replace("masked", "evaluate_only"))
    assert rows(home, tmp_path)["policy"].state == FAIL


def test_memory_that_does_not_suffice_is_a_row_or_a_line(
    held: Enrolments,
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(preflight, "ask", Coordinator(held))
    monkeypatch.setattr(preflight, "read_cohort", full)
    assert rows(home, tmp_path)["images"].found == "the memory did not suffice"
    monkeypatch.setattr(doctor, "rows", full)
    assert cli.main(["doctor"]) == 1 and "Expected more memory" in capsys.readouterr().err


def test_a_full_disk_is_one_line_without_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "/secret/name.png")

    monkeypatch.setattr(doctor, "rows", full)
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said and "secret" not in said and "Traceback" not in said


def test_gpu_memory_that_does_not_suffice_halves_the_batch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load_encoder("dinov2-s-demo", layer=1)
    whole, sizes, real = torch.rand(5, 3, 224, 224), [], encoder._forward
    wanted = encoder.encode(whole)

    def small(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(images)

    monkeypatch.setattr(encoder, "_forward", small)
    assert torch.allclose(encoder.encode(whole), wanted, atol=1e-4)
    assert sizes == [5, 3, 2, 1, 2] and "going on with 2 images" in caplog.text
    sizes.clear()
    encoder.encode(whole)
    assert sizes == [2, 2, 1]  # what did not fit is not tried again

    def none(images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder, "_forward", none)
    with pytest.raises(SetupError, match="GPU memory for one image"):
        encoder.encode(whole)


def test_certificates_that_end_are_renewed_without_anybody(
    held: Enrolments, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert held.renew() == []
    monkeypatch.setattr(pki, "SITE_DAYS", 2)
    held.renew(days=1000.0)  # a certificate that ends in two days
    home.take_confirmation(held.confirmed("alder") or b"")
    monkeypatch.setattr(pki, "SITE_DAYS", 365)
    monkeypatch.setattr(preflight, "ask", Coordinator(held))
    row = rows(home, tmp_path)["confirmation"]
    assert row.state == FAIL and "2 days" in row.found
    assert held.renew() == ["alder"] and held.renew() == []
    row = rows(home, tmp_path)["confirmation"]
    assert row.state == OK and "365 days" in row.found


def test_an_expired_certificate_stops_serve_with_its_reason(
    held: Enrolments, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pki, "SITE_DAYS", -0.01)  # ended a quarter of an hour ago
    held.renew(days=1000.0)
    home.take_confirmation(held.confirmed("alder") or b"")
    monkeypatch.setattr(preflight, "ask", Coordinator(held))
    home.keep(data=str(tmp_path))
    server = SiteServer(home, lambda text: None)
    with pytest.raises(SetupError, match="client certificate that is still good"):
        server.run()


def test_the_server_s_certificate_is_renewed_while_the_study_runs(held: Enrolments) -> None:
    authority = held.authority
    assert authority.server("server", ["study.example.org"])
    assert not authority.server("server", ["study.example.org"])
    assert authority.server("server", ["other.example.org"])  # another name


def test_one_start_and_one_serve(tmp_path: Path) -> None:
    first = only_one(tmp_path / "lock", "start of this study", "cytosae study stop")
    code = (
        "import sys; from pathlib import Path; from cytosae_core.processes import only_one\n"
        "from cytosae_core.errors import SetupError\n"
        "try: only_one(Path(sys.argv[1]), 'start of this study', 'hint')\n"
        "except SetupError as error: print(error)"
    )
    import sys

    def other() -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "lock")]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    assert "no other start of this study" in other()
    os.close(first)
    assert other() == ""


def test_the_superlinks_database_gives_back_what_it_does_not_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "superlink.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (x BLOB)")
        database.executemany("INSERT INTO t VALUES (?)", [(os.urandom(1 << 20),) for _ in range(8)])
        database.commit()
        database.execute("DELETE FROM t WHERE rowid > 1")
        database.commit()
    database.close()
    before = path.stat().st_size
    runner.shrink(path)
    assert path.stat().st_size == before  # small: left alone
    monkeypatch.setattr(runner, "SHRINK_BYTES", 1 << 20)
    runner.shrink(path)
    assert path.stat().st_size < before / 3
    path.write_bytes(b"nonsense" * (1 << 18))
    with pytest.raises(SetupError, match="can be compacted"):
        runner.shrink(path)


# Backup -----------------------------------------------------------------------------------------------------


def test_a_restored_study_is_the_one_that_was_backed_up(held: Enrolments, tmp_path: Path) -> None:
    (held.net / "logs").mkdir()
    (held.net / "logs" / "superlink.log").write_text("made again")
    held.invite("birch", "study.example.org:8443")
    facts = backup(held.folder, tmp_path / "b.tar")
    assert stat.S_IMODE((tmp_path / "b.tar").stat().st_mode) == 0o600
    restore(tmp_path / "b.tar", tmp_path / "again")
    names = {path.relative_to(held.folder) for path in held.folder.rglob("*") if path.is_file()}
    names -= {Path("net/logs/superlink.log"), Path("net/lock")}
    assert len(names) == facts["files"]
    assert all((tmp_path / "again" / n).read_bytes() == (held.folder / n).read_bytes() for n in names)
    assert stat.S_IMODE((tmp_path / "again" / "study.key").stat().st_mode) == 0o600
    assert Enrolments(tmp_path / "again").states()["birch"] == "invited"


def test_what_a_backup_refuses(held: Enrolments, tmp_path: Path) -> None:
    lock = only_one(held.net / "lock", "start of this study", "")
    with pytest.raises(SetupError, match="no other start"):
        backup(held.folder, tmp_path / "b.tar")
    os.close(lock)
    backup(held.folder, tmp_path / "b.tar")
    with pytest.raises(StudyError, match="new file"):
        backup(held.folder, tmp_path / "b.tar")
    with pytest.raises(StudyError, match="new or empty"):
        restore(tmp_path / "b.tar", held.folder)


@pytest.mark.parametrize("how", ["changed", "cut", "added", "escaping", "nothing"])
def test_a_damaged_backup_makes_no_folder(held: Enrolments, tmp_path: Path, how: str) -> None:
    path = tmp_path / "b.tar"
    backup(held.folder, path)
    data = path.read_bytes()
    if how == "changed":
        path.write_bytes(data.replace(b"faults", b"fauits"))
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "nothing":
        path.write_bytes(b"")
    else:
        (tmp_path / "x").write_text("x")
        with tarfile.open(path, "a") as tar:
            tar.add(tmp_path / "x", arcname="../x" if how == "escaping" else "run/x")
    with pytest.raises(VerificationError):
        restore(path, tmp_path / "again")
    assert not (tmp_path / "again").exists() and not list(tmp_path.glob(".again*"))


# Doctor -----------------------------------------------------------------------------------------------------


def test_doctor_on_a_study_and_its_exit_codes(held: Enrolments, tmp_path: Path) -> None:
    def look(folder: Path) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [CYTOSAE, "doctor", str(folder), "--json"], capture_output=True, text=True, timeout=120
        )
        assert "Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout) if done.stdout else {}

    code, found = look(held.folder)
    states = {row["name"]: row["state"] for row in found["rows"]}
    assert code == 0 and states["keys"] == "ok" and states["alder"] == "WARN"
    os.chmod(held.folder / "study.key", 0o644)
    code, found = look(held.folder)
    assert code == 1 and found["failed"] == ["keys"]
    assert look(tmp_path)[0] == 1  # neither a home nor a study


def test_doctor_in_a_home(
    held: Enrolments, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "ask", Coordinator(held, clock_s=400))
    found = {row.name: row for row in doctor.rows(home.folder)}
    assert found["serve"].state == WARN and found["data"].fix == "cytosae site check DATA"
    generate_site(tmp_path / "cells", DEMO_SITES[0], patients=4, cells_per_patient=1, seed=1)
    home.keep(data=str(tmp_path / "cells"))
    found = {row.name: row for row in doctor.rows(home.folder)}
    assert found["clock"].state == FAIL and found["images"].state in (OK, WARN)


class Idle:
    """Children that nobody started."""

    def status(self) -> dict[str, Any]:
        return {}

    def watch(self) -> list[str]:
        return []


def watched(
    held: Enrolments, monkeypatch: pytest.MonkeyPatch, statuses: list[tuple[str, str]]
) -> tuple[int, list[Any]]:
    """What `Runner._watch` ends with, and what state.json said of failures after each look."""
    run = object.__new__(runner.Runner)
    run.held, run.folder, run.net, run.children = held, held.folder, held.net, Idle()  # type: ignore[assignment]
    run._say, run._run_id, run._tries, run._failed, run._online = lambda text: None, "", 0, "", []
    run._renew_at = float("inf")
    looks: list[Any] = []

    def submit() -> None:
        run._run_id, run._tries = "1", run._tries + 1

    def tend() -> None:
        looks.append(json.loads((held.net / "state.json").read_text()).get("failures"))

    monkeypatch.setattr(run, "_submit", submit)
    monkeypatch.setattr(run, "_status", lambda: statuses.pop(0))
    monkeypatch.setattr(run, "_online_or_nobody", list)
    monkeypatch.setattr(run, "_tend", tend)
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
    return run._watch(), looks


def test_a_run_that_failed_is_told_while_the_next_one_goes_on(
    held: Enrolments, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = ("finished:failed", "ServerApp exited with code 1")
    code, looks = watched(
        held, monkeypatch, [("running", ""), failed, ("running", ""), ("finished:completed", "")]
    )
    assert code == 0 and looks == [None, None, {"why": failed[1], "try": 2, "of": runner.TRIES}]
    events = [json.loads(line) for line in (held.net / "events.jsonl").read_text().splitlines()]
    assert [event["why"] for event in events if event["event"] == "failed"] == [failed[1]]


def test_after_five_failures_start_gives_up(held: Enrolments, monkeypatch: pytest.MonkeyPatch) -> None:
    code, looks = watched(held, monkeypatch, [("finished:failed", "")] * runner.TRIES)
    assert code == 1 and len(looks) == runner.TRIES - 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(), "nothing listens"),
        (socket.gaierror(), "DNS"),
        (TimeoutError(), "Outgoing TCP"),
        (OSError(), "Outgoing TCP"),
    ],
)
def test_why_the_coordinator_can_t_be_reached_names_who_can_help(error: Exception, said: str) -> None:
    assert said in _why_not(error)
