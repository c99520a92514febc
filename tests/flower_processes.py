"""Processes of a test: started with one environment, ended by process group, and searched for afterwards."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

STOP_S = 10.0
MARK = "CYTOSAE_BENCH"


class Processes:
    """Named processes, each the leader of its own group, each with a log file `<name>.log` in `folder`."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, dict(environment)
        self._mark = secrets.token_hex(8)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, name: str) -> dict[str, str]:
        """The environment of process `name`: its own FLWR_HOME, and a mark by which it can be found again."""
        home = str(self._folder / f"home-{name.replace(' ', '-')}")
        return {**self._environment, "FLWR_HOME": home, MARK: self._mark}

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start `command`, perhaps again; its output is added to the log."""
        with open(self._folder / f"{name}.log", "ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                env=self.environment(name),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self, name: str, number: signal.Signals) -> int:
        """Signal one process (not its group) and wait; returns its exit status, negative for a signal."""
        process = self._running[name]
        process.send_signal(number)
        return process.wait(timeout=STOP_S)

    def log(self, name: str) -> str:
        """What one process wrote."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def logs(self) -> str:
        """The end of every log, for a failed assertion."""
        return "\n".join(f"== {name}\n{self.log(name)[-3000:]}" for name in self._running)

    def stop(self) -> None:
        """End all with their children; anything that is left after that fails the test."""
        for process in self._running.values():
            _signal_group(process, signal.SIGTERM)
        end = time.monotonic() + STOP_S
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, end - time.monotonic()))
        for process in self._running.values():
            _signal_group(process, signal.SIGKILL)
            process.wait()
        self._fail_on_leftovers()

    def _fail_on_leftovers(self) -> None:
        end = time.monotonic() + STOP_S
        while left := _marked(f"{MARK}={self._mark}"):
            if time.monotonic() > end:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"Expected no process of the bench after its end, got {left}.")
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody uses now; held together so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _marked(mark: str) -> dict[int, str]:
    """Processes whose environment holds `mark`: pid -> command line. Zombies have none and do not count."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found
