"""Helpers of tests that kill: a disk that dies at the k-th write, one site and its coordinator, a real kill -9.

In process a death is a `Killed` at a durable write (`os.pwrite`, `fsync`, `replace`, `ftruncate`, `unlink`, or a
commit of sqlite); from then on nothing more is written, and `Disk.end` lets go of what a dead process would: its
descriptors and its databases. `python -m tests.deaths HOME` is the real thing: a process that forks one site agent
per connection, to be ended by SIGKILL.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from cytosae_client.events import Event, Events
from cytosae_client.session import Session
from cytosae_core.audit.log import Log
from cytosae_core.audit.note import origin_of, parse_checkpoint, split_note
from cytosae_core.audit.statement import COORDINATOR, Statement, read_leaf
from cytosae_core.canonical import sha256_hex
from cytosae_core.config import RoundsConfig, StudyConfig, TrainingConfig
from cytosae_core.egress import Reply
from cytosae_core.keys import SigningKey
from cytosae_core.policy import SitePolicy
from cytosae_core.sealed import split_wire
from cytosae_server.coordinator import Coordinator
from cytosae_server.desk import Ask, Desk, Sent
from cytosae_server.record import Record
from cytosae_server.transport import Incoming
from tests.federation import MASKED, D, N, make_site, study_config

SITE = "site-0"
TRAINING = TrainingConfig(rounds=1, local_steps=2, batch_tokens=32, learning_rate=0.02)
HELLO = Ask("hello", 0, {}, {})


class Killed(BaseException):
    """Stands for kill -9 at a write."""


@dataclass
class Disk:
    """Counts durable writes, and dies or is full at the `at`-th of them (0: never).

    `how`: `before` the write, `torn` in the middle of it, or `full`: this write and all later ones fail for want of
    space until `at` is set to 0. Writes under `elsewhere` are another machine's.
    """

    at: int = 0
    how: str = "before"
    steps: list[str] = field(default_factory=list)
    dead: bool = False
    _elsewhere: int = 0
    _open: list[tuple[int, int]] = field(default_factory=list)
    _databases: list[sqlite3.Connection] = field(default_factory=list)

    def step(self, name: str, act: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        """One write."""
        if self._elsewhere:
            return act()
        if self.dead:
            raise Killed
        self.steps.append(name)
        if self.how == "full" and 0 < self.at <= len(self.steps):
            if name == "commit":
                raise sqlite3.OperationalError("database or disk is full")
            if name.split()[0] in ("pwrite", "fsync", "replace"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif len(self.steps) == self.at:
            self.dead = True
            if self.how == "torn":
                half()
            raise Killed
        return act()

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What is written now is written on another machine."""
        self._elsewhere += 1
        try:
            yield
        finally:
            self._elsewhere -= 1

    def end(self) -> None:
        """What the kernel does for a dead process: close descriptors, and with them locks and open transactions."""
        for descriptor, inode in self._open:
            with contextlib.suppress(OSError):
                if os.fstat(descriptor).st_ino == inode:
                    os.close(descriptor)
        for database in self._databases:
            database.close()
        self._open.clear()
        self._databases.clear()

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Disk]:
        """Writes of this process go to this disk; at the end everything on it is closed."""
        real = {
            name: getattr(os, name) for name in ("open", "pwrite", "fsync", "replace", "ftruncate", "unlink")
        }
        connect, disk = sqlite3.connect, self

        def opened(path: Any, *more: Any, **named: Any) -> int:
            descriptor = int(real["open"](path, *more, **named))
            if not disk._elsewhere and Path(os.fspath(path)).name in ("journal", "lock"):
                disk._open.append((descriptor, os.fstat(descriptor).st_ino))
            return descriptor

        def pwrite(descriptor: int, data: bytes, offset: int) -> Any:
            return disk.step(
                "pwrite",
                lambda: real["pwrite"](descriptor, data, offset),
                lambda: real["pwrite"](descriptor, data[: len(data) // 2], offset),
            )

        class Counted(sqlite3.Connection):
            def execute(self, sql: str, *more: Any) -> sqlite3.Cursor:
                if disk.dead and not disk._elsewhere:
                    raise Killed
                run = super().execute
                return disk.step("commit", lambda: run(sql)) if sql == "COMMIT" else run(sql, *more)

        def connected(*more: Any, **named: Any) -> sqlite3.Connection:
            database = connect(*more, factory=Counted, **named)
            if not disk._elsewhere:
                disk._databases.append(database)
            return database

        def simple(name: str) -> Callable[..., Any]:
            def call(*more: Any, **named: Any) -> Any:
                to = f" {Path(more[-1]).name}" if name in ("replace", "unlink") else ""
                return disk.step(name + to, lambda: real[name](*more, **named))

            return call

        with contextlib.ExitStack() as stack:
            for name in ("fsync", "replace", "ftruncate", "unlink"):
                stack.enter_context(mock.patch.object(os, name, simple(name)))
            stack.enter_context(mock.patch.object(os, "open", opened))
            stack.enter_context(mock.patch.object(os, "pwrite", pwrite))
            stack.enter_context(mock.patch.object(sqlite3, "connect", connected))
            try:
                yield self
            finally:
                self.end()


def small_study(sites: int = 1, **changes: Any) -> StudyConfig:
    """A study of one short round."""
    names, rounds = (
        tuple(f"site-{index}" for index in range(sites)),
        RoundsConfig(quorum=sites, deadline_s=60.0),
    )
    return replace(study_config(2), **{"sites": names, "training": TRAINING, "rounds": rounds, **changes})


def rows(seed: int = 0) -> dict[str, np.ndarray]:
    """A first dictionary that the gate lets pass."""
    values = np.random.default_rng(seed).standard_normal((N, D)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return {"dictionary": values, "mean": np.zeros(D, np.float32), "scale": np.full(1, 1.5, np.float32)}


BEGIN = Ask("begin", 0, rows(), {})
ROUND = Ask("round", 1, rows(), {})
DESCRIBE = Ask("describe", 0, rows(), {"full": True})


class Clinic:
    """One site's session, which can be ended and started again. Its folder outlives it."""

    def __init__(self, home: Path, policy: SitePolicy = MASKED, study: StudyConfig | None = None) -> None:
        self.home, self.study = home, study or small_study()
        self.site = make_site(SITE, home, policy, seed=0)
        self.logs: list[Event] = []
        key = SigningKey.load_or_create(home / "study.key")
        self.session = Session(self.site, self.study, key.public_hex, Events(self.logs.append))

    @property
    def state(self) -> Path:
        return self.site.state / self.study.digest[:16]

    @property
    def witnessed(self) -> tuple[int, bytes]:
        """Size and root of the coordinator's log that this site signed last."""
        return self.session._record._witness.seen(origin_of(self.study.digest, COORDINATOR)) or (0, b"")

    @property
    def spent(self) -> dict[str, int]:
        """What the ledger says was spent."""
        return dict(self.session._budget._ledger.summary()["spent"])


class Office:
    """The coordinator's desk for one site, on another machine than the site's."""

    def __init__(self, home: Path, study: StudyConfig | None = None, folder: str = "desk") -> None:
        study = study or small_study()
        self.key = SigningKey.load_or_create(home / "study.key")
        keys = {name: SigningKey.load_or_create(home / name / "site.key").public_hex for name in study.sites}
        self.record = Record(home / folder, study, self.key, keys)
        self.desk = Desk(Coordinator(study, self.key, keys), self.record)

    def ask(self, what: Ask, handle: Callable[[bytes], bytes], to: str = SITE) -> tuple[Reply, bytes, bytes]:
        """Ask and open: the reply, its signed bytes, and the bytes that the site gave out."""
        request, sent = self.desk.request(to, what)
        wire = handle(request)
        return (*self.opened(wire, sent), wire)

    def opened(self, wire: bytes, sent: Sent) -> tuple[Reply, bytes]:
        """Open a reply; what cannot be used is logged as a fault, as the round loop does."""
        try:
            return self.desk.open_reply(wire, sent)
        except Exception as error:
            self.desk.unanswered(sent, getattr(error, "code", "relay"))
            raise

    def close(self) -> None:
        self.record.close()


def site_leaves(home: Path, study: StudyConfig, copy: Path) -> tuple[list[Statement], int]:
    """A site's log as its files say it, checked on a copy: statements, and how many a head on disk covers."""
    site, state = home / SITE, home / SITE / "state" / study.digest[:16]
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(state / "log", copy)
    covered = parse_checkpoint(split_note((copy / "checkpoint").read_bytes())[0]).size
    signing = SigningKey.load_or_create(site / "site.key")
    with Log.open(
        copy, origin=origin_of(study.digest, SITE), party=SITE, study=study.name, protocol=study.digest,
        signing=signing, log_key=SigningKey.load_or_create(site / "state" / "log.key"),
    ) as log:  # fmt: skip
        keys = {signing.public_hex[:16]: signing.public_hex}
        return [read_leaf(leaf, keys) for leaf in log.leaves(0, log.size)], covered


def box_sha256(wire: bytes) -> str:
    """What the logs call a reply that was given out: the SHA-256 of its first box."""
    return sha256_hex(split_wire(wire)[0])


@dataclass
class Direct:
    """A transport without threads: sites answer when they are asked, and their writes are on other disks."""

    handlers: Mapping[str, Callable[[bytes], bytes]]
    disk: Disk
    in_flight: int = 2
    given_out: list[bytes] = field(default_factory=list)
    _answers: list[Incoming] = field(default_factory=list)
    _count: int = 0

    def sites(self) -> tuple[str, ...]:
        return tuple(sorted(self.handlers))

    def send(self, site: str, request: bytes, deadline_s: float) -> str:
        with self.disk.elsewhere():
            data = self.handlers[site](request) if site in self.handlers else None
        self.given_out += [data] if data else []
        self._count += 1
        self._answers.append(Incoming(f"{self._count}", site, data, "" if data else "unreachable"))
        return self._answers[-1].ticket

    def poll(self, wait_s: float) -> list[Incoming]:
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> None:
        pass


# The real thing: one process per connection, which ends when the connection does, or by SIGKILL


def send_frame(connection: socket.socket, data: bytes) -> None:
    connection.sendall(struct.pack(">Q", len(data)) + data)


def receive_frame(connection: socket.socket) -> bytes | None:
    """One frame; None when the other end is gone before all of it came."""
    head = _receive(connection, 8)
    return _receive(connection, struct.unpack(">Q", head)[0]) if len(head) == 8 else None


def _receive(connection: socket.socket, count: int) -> bytes | Any | None:
    data = b""
    while len(data) < count:
        try:
            part = connection.recv(count - len(data))
        except ConnectionResetError:
            part = b""
        if not part:
            return None if count != 8 else b""
        data += part
    return data


def _agent(connection: socket.socket, home: Path) -> None:
    """Serve one connection: the process's number first, then a reply for every request."""
    clinic = Clinic(home)
    send_frame(connection, str(os.getpid()).encode())
    while (request := receive_frame(connection)) is not None:
        try:
            reply = clinic.session.handle(request)
        except Exception as error:  # as the agent does: the relay is told nothing
            print("handler failed:", type(error).__name__, file=sys.stderr)
            reply = b""
        send_frame(connection, reply)


def main(home: Path) -> None:
    """Listen on HOME/socket; one child at a time, each gone completely before the next one starts."""
    import torch

    torch.set_num_threads(1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "socket"))
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            child = os.fork()
            if child == 0:
                listener.close()
                try:
                    _agent(connection, home)
                finally:
                    os._exit(0)
            connection.close()
            os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
