"""Children of a long-running command: ended with all that they started, started again with growing pauses."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from cytosae_core import processes
from cytosae_core.processes import Child, Supervisor, alive


def until(ready: object, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_what_dies_is_started_again_after_a_pause_that_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "FIRST_S", 0.05)
    held = Supervisor([Child("short", python("print('here'); raise SystemExit(3)"))], tmp_path)
    held._states["short"].wait_s = 0.05  # read when the object was made
    held.start_all()
    died: list[str] = []

    def three() -> bool:
        died.extend(held.watch())
        return len(died) >= 3

    until(three)
    assert held.status()["short"]["last_exit"] == 3
    assert held._states["short"].wait_s == pytest.approx(0.4)
    assert held.log("short").count("here") >= 3
    held.stop()


def test_stopping_ends_grandchildren_too(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(p.pid, flush=True)\ntime.sleep(600)"
    )
    held = Supervisor([Child("parent", python(code))], tmp_path)
    held.start_all()
    until(lambda: held.log("parent").strip())
    grandchild = int(held.log("parent"))
    assert held.running("parent")
    held.stop(wait_s=5.0)
    assert not held.running("parent")
    until(lambda: not alive(grandchild) or _is_zombie(grandchild))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('on', flush=True)\ntime.sleep(600)"
    )
    held = Supervisor([Child("deaf", python(code))], tmp_path)
    held.start_all()
    until(lambda: "on" in held.log("deaf"))
    begun = time.monotonic()
    held.stop(wait_s=0.3)
    assert time.monotonic() - begun < 10


def test_secrets_of_this_environment_are_not_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "x")
    held = Supervisor(
        [Child("env", python("import os; print(sorted(os.environ))"), {"GIVEN": "1"})], tmp_path
    )
    held.start_all()
    until(lambda: held.log("env").strip())
    assert "GIVEN" in held.log("env") and "SECRET_OF_MINE" not in held.log("env")
    held.stop()


def test_logs_are_turned_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_LOG_BYTES", 100)
    for _ in range(8):
        (tmp_path / "a.log").write_bytes(b"x" * 101)
        processes._turn_over(tmp_path / "a.log")
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [f"a.log.{number}" for number in range(1, processes.KEPT + 1)]


def test_what_a_killed_supervisor_left_is_ended_by_the_next_one(tmp_path: Path) -> None:
    """Grandchildren too: Flower's executor starts the run in a process of its own."""
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "print(p.pid, flush=True)\ntime.sleep(600)"
    )
    first = Supervisor([Child("parent", python(code))], tmp_path)
    first.start_all()
    until(lambda: first.log("parent").strip())
    child, grandchild = int(str(first.status()["parent"]["pid"])), int(first.log("parent"))
    Supervisor([], tmp_path / "other")  # of another folder: not touched
    assert alive(child) and alive(grandchild)
    Supervisor([], tmp_path)
    until(lambda: _is_zombie(child) and _is_zombie(grandchild))
    first.stop()


def test_alive() -> None:
    assert alive(os.getpid()) and not alive(0) and not alive(-5)
