"""Child processes of a long-running command: started in order, started again when they die, stopped in reverse.

Every child leads a process group of its own, so that nothing that it starts outlives it; what it prints goes into a
log file that is turned over at 10 MB. When the command itself is killed its children go on; the next one of the same
folder finds them by a mark in their environment and ends them first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import SetupError

# Every Flower process: no telemetry, no question for updates, nothing installed behind our back.
FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONUNBUFFERED": "1",
    "MALLOC_ARENA_MAX": "2",  # a thread per message: glibc would keep a heap for each
}
MARK = "CYTOSAE_SUPERVISED_IN"
FIRST_S, LONGEST_S, CALM_S = 1.0, 60.0, 120.0
MAX_LOG_BYTES, KEPT = 10 * 1024 * 1024, 5


@dataclass(frozen=True)
class Child:
    """One program.

    Attributes:
        environment: added to PATH and HOME; nothing else of this process's environment is passed on.
        user: user id to run as (root only); None: this user.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: int | None = None


@dataclass
class _State:
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    since: float = 0.0
    wait_s: float = FIRST_S
    again_at: float = 0.0
    last: int | None = None


class Supervisor:
    """Runs children.

    Args:
        children: in the order in which they start.
        logs: folder of NAME.log.
    """

    def __init__(self, children: Sequence[Child], logs: Path) -> None:
        self.children, self._logs = {child.name: child for child in children}, logs
        self._states = {name: _State() for name in self.children}
        logs.mkdir(parents=True, exist_ok=True)
        self._mark = str(logs.resolve())
        end_leftovers(self._mark)

    def start(self, name: str) -> None:
        """Start one child that is not running."""
        child, state = self.children[name], self._states[name]
        if state.process is not None and state.process.poll() is None:
            return
        log_path = self._logs / f"{name}.log"
        _turn_over(log_path)
        # This Python's programs first: Flower's executor finds its others by name.
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
        environment = {"PATH": path, "HOME": os.environ.get("HOME", "/"), MARK: self._mark}
        with open(log_path, "ab") as log:
            state.process = subprocess.Popen(
                list(child.command), env={**environment, **child.environment}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, user=child.user,
            )  # fmt: skip
        state.starts, state.since = state.starts + 1, time.monotonic()

    def start_all(self) -> None:
        """Start all, in order."""
        for name in self.children:
            self.start(name)

    def watch(self) -> list[str]:
        """Start dead children again when their pause is over; names of those that were found dead just now."""
        died = []
        for name, state in self._states.items():
            if state.process is None:
                continue
            code = state.process.poll()
            if code is None:
                if time.monotonic() - state.since > CALM_S:
                    state.wait_s = FIRST_S
                continue
            if not state.again_at:
                died.append(name)
                _end_group(state.process, signal.SIGKILL)
                state.last, state.again_at = code, time.monotonic() + state.wait_s
                state.wait_s = min(2 * state.wait_s, LONGEST_S)
            elif time.monotonic() >= state.again_at:
                state.again_at = 0.0
                self.start(name)
        return died

    def restart(self, name: str, wait_s: float = 15.0) -> None:
        """End one child and start it again at once."""
        self._end(name, wait_s)
        self.start(name)

    def running(self, name: str) -> bool:
        """Whether a child runs now."""
        process = self._states[name].process
        return process is not None and process.poll() is None

    def status(self) -> dict[str, dict[str, object]]:
        """Per child: running, pid, starts, last exit status."""
        return {
            name: {
                "running": self.running(name), "pid": state.process.pid if state.process else None,
                "starts": state.starts, "last_exit": state.last,
            }
            for name, state in self._states.items()
        }  # fmt: skip

    def log(self, name: str) -> str:
        """What a child wrote."""
        path = self._logs / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self, wait_s: float = 15.0) -> None:
        """End all in reverse order: SIGTERM, then SIGKILL for what is left after `wait_s` seconds."""
        for name in reversed(self.children):
            self._end(name, wait_s)

    def _end(self, name: str, wait_s: float) -> None:
        process = self._states[name].process
        if process is None:
            return
        _end_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=wait_s)
        _end_group(process, signal.SIGKILL)
        process.wait()
        self._states[name].process = None


def end_leftovers(mark: str, wait_s: float = 10.0) -> list[int]:
    """End what an earlier supervisor of this log folder left behind (it was killed); their process ids.

    Found by the environment, which Flower's executor passes on to what it starts.
    """
    found = _marked(mark)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        end = time.monotonic() + wait_s
        while _marked(mark) and time.monotonic() < end:
            time.sleep(0.05)
    return found


def _marked(mark: str) -> list[int]:
    """Processes whose environment holds the mark; none where there is no /proc. Zombies have no environment."""
    wanted, out = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                out.append(int(entry.name))
    return out


def only_one(path: Path, what: str, hint: str) -> int:
    """Hold a lock for as long as this process lives, or until the descriptor returned is closed.

    Raises:
        SetupError: another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise SetupError(f"Expected no other {what}, got one that runs.", hint=hint) from error
    return descriptor


def alive(pid: int) -> bool:
    """Whether a process of this number runs."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _end_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _turn_over(path: Path) -> None:
    """NAME.log becomes NAME.log.1 when it is large, and so on; the oldest goes."""
    if not path.exists() or path.stat().st_size < MAX_LOG_BYTES:
        return
    for number in range(KEPT - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            os.replace(older, path.with_name(f"{path.name}.{number + 1}"))
    os.replace(path, path.with_name(f"{path.name}.1"))
