"""`cytosae study start`: SuperLink, executor, front and proxy as children, then the run, watched to its end.

    sites --mutual TLS--> Caddy (listen) --TLS--> SuperLink (loopback) <-- executor (this study's ServerApp)
                                         +------> front (loopback)

The SuperLink keeps its state in a database, the round loop keeps its own in the study folder: a child that dies is
started again; a run that failed is submitted again and goes on from the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytosae_core.canonical import canonical_json, parse_json, sha256_file
from cytosae_core.errors import SetupError, StudyError
from cytosae_core.processes import FLOWER, Child, Supervisor, only_one
from cytosae_core.tensors import write_atomic

from .enrolment import Enrolments
from .mail import list_sites
from .ports import free_ports
from .proxy import caddy, caddyfile

START_S, ASK_S, TRIES, ONLINE_EVERY, DAY_S = 90.0, 2.0, 5, 5, 86_400.0
SHRINK_BYTES = 64 * 1024 * 1024
APP = """[project]
name = "cytosae-study"
version = "0.1.0"
description = "CytoSAE Federation: one study"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "cytosae"
fab-include = ["README.md"]

[tool.flwr.app.components]
serverapp = "cytosae_server.app:app"
clientapp = "cytosae_client.app:app"

[tool.flwr.app.config]
study = ""
poll-s = 0.2
ttl-s = 43200.0
"""
Json = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Listen:
    """Where sites reach the study: address and port that are bound, and names in the certificate."""

    host: str
    port: int
    names: tuple[str, ...]


class Runner:
    """Everything that a coordinator's machine runs for the study in `folder`.

    Args:
        listen: of the proxy. without: sites that the study starts without. by_files: sites without a network.
    """

    def __init__(
        self, folder: Path, listen: Listen, *, without: tuple[str, ...] = (), by_files: tuple[str, ...] = (),
        say: Say = print,
    ) -> None:  # fmt: skip
        self.held = Enrolments(folder.resolve())
        self.folder, self.net = self.held.folder, self.held.net
        self._listen, self._without, self._by_files, self._say = listen, without, by_files, say
        self._check()
        self._lock = only_one(self.net / "lock", "start of this study", "cytosae study stop")
        self._ports = dict(zip(("superlink", "front"), free_ports(2), strict=True))
        self._prepare()
        self.children = Supervisor(self._children(), self.net / "logs")
        self._run_id, self._tries, self._failed = "", 0, ""
        self._ids: dict[str, str] = {}
        self._online: list[str] = []
        self._renew_at = 0.0

    def _check(self) -> None:
        left, quorum = len(self.held.study.sites) - len(self._without), self.held.study.rounds.quorum
        if left < quorum:
            raise StudyError(
                f"Expected {quorum} sites for the quorum, got {left}.", hint="Leave --without away."
            )
        unknown = {*self._without, *self._by_files} - set(self.held.study.sites)
        if unknown:
            raise StudyError(f"Expected sites of the study, got {', '.join(sorted(unknown))}.")
        caddy()

    def _prepare(self) -> None:
        """Certificates, secret, app, the CLI's and the proxy's configuration."""
        self.held.authority.server("server", [*self._listen.names])
        self.held.authority.server("superlink", ["127.0.0.1"])
        secret = self.net / "superlink.secret"
        if not secret.exists():
            descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(secrets.token_bytes(32))
        list_sites(self.net, self._by_files)
        app = self.net / "app" / "cytosae-study"
        (self.net / "flower").mkdir(exist_ok=True)
        app.mkdir(parents=True, exist_ok=True)
        write_atomic(app / "pyproject.toml", APP.encode())
        write_atomic(app / "README.md", b"A Flower app without code.\n")
        listen = f"{self._listen.host}:{self._listen.port}"
        ports = {"superlink": self._ports["superlink"], "front": self._ports["front"]}
        write_atomic(self.net / "Caddyfile", caddyfile(self.net, listen, **ports).encode())
        config = (
            '[superlink]\ndefault = "study"\n[superlink.study]\n'
            f'address = "{self._address}"\nroot-certificates = "{self.net / "ca.crt"}"\n'
        )
        write_atomic(self.net / "flower" / "config.toml", config.encode())
        shrink(self.net / "superlink.db")

    @property
    def _address(self) -> str:
        return f"127.0.0.1:{self._ports['superlink']}"

    def _children(self) -> list[Child]:
        net, secret = self.net, ("--superexec-auth-secret-file", str(self.net / "superlink.secret"))
        home = {**FLOWER, "FLWR_HOME": str(net / "flower")}
        superlink = [
            _program("flower-superlink"), "--host", "127.0.0.1", "--port", str(self._ports["superlink"]),
            "--ssl-ca-certfile", str(net / "ca.crt"), "--ssl-certfile", str(net / "superlink.crt"),
            "--ssl-keyfile", str(net / "superlink.key"), "--enable-supernode-auth", *secret,
            "--isolation", "process", "--database", str(net / "superlink.db"),
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        executor = [
            _program("flower-superexec"), "--runtime-api-address", self._address,
            "--root-certificates", str(net / "ca.crt"), *secret,
        ]  # fmt: skip
        front = [
            sys.executable, "-I", "-m", "cytosae_server.front", str(self.folder), "--port", str(self._ports["front"]),
        ]  # fmt: skip
        proxy = [caddy(), "run", "--config", str(net / "Caddyfile"), "--adapter", "caddyfile"]
        return [
            Child("superlink", superlink, home), Child("executor", executor, home),
            Child("front", front, FLOWER), Child("proxy", proxy, {"XDG_DATA_HOME": str(net / "caddy")}),
        ]  # fmt: skip

    # The run ----------------------------------------------------------------------------------------------

    def run(self, *, wait_s: float) -> int:
        """Start all, wait for sites, run the study to its end; 0 when it completed.

        Args:
            wait_s: longest wait for all sites; then the quorum is enough.
        """
        self.held.event("started")
        try:
            for name in self.children.children:
                self.children.start(name)
                if name == "superlink":
                    self._until(lambda: _answers(self._ports["superlink"]), START_S, "the SuperLink")
            self._register()
            self._say(f"The study is open at {', '.join(self._listen.names)}, port {self._listen.port}.")
            self._wait_for_sites(wait_s)
            return self._watch()
        finally:
            self.children.stop()
            self._write_state("stopped", {})
            self.held.event("stopped")

    def _register(self) -> None:
        """Tell the SuperLink the node keys of confirmed sites that it does not know, and forget replaced ones."""
        path = self.net / "nodes" / "registered.json"
        known: Json = dict(parse_json(path.read_bytes())) if path.exists() else {}
        here = {str(node.get("node-id")) for node in self._nodes()}
        for site in self._confirmed():
            file = self.net / "nodes" / f"{site}.pub"
            mine = known.get(site, {})
            if mine.get("key") == sha256_file(file) and mine.get("node") in here:
                continue
            if mine.get("node") in here:
                self._flwr("supernode", "unregister", str(mine["node"]), "study")
            answer = self._flwr(
                "supernode", "register", str(file), "study", "--name", site, "--format", "json"
            )
            known[site] = {"key": sha256_file(file), "node": str(answer.get("node-id", ""))}
            write_atomic(path, canonical_json(known))
        self._ids = {str(entry["node"]): site for site, entry in known.items()}

    def _confirmed(self) -> list[str]:
        return [site for site, state in self.held.states().items() if state == "confirmed"]

    def _nodes(self) -> list[Json]:
        answer = self._flwr("supernode", "list", "study", "--format", "json")
        found = answer.get("nodes", [])
        return list(found) if isinstance(found, list) else []

    def online(self) -> list[str]:
        """Sites whose SuperNode is online."""
        ids = [str(node.get("node-id")) for node in self._nodes() if node.get("status") == "online"]
        return sorted(self._ids[one] for one in ids if one in self._ids)

    def _wait_for_sites(self, wait_s: float) -> None:
        """Until all wanted sites are online; after `wait_s` seconds a quorum of them is enough."""
        wanted, quorum = set(self.held.study.sites) - set(self._without), self.held.study.rounds.quorum
        carried = set(self._by_files)
        end, told = time.monotonic() + wait_s, ""
        while True:
            if set(self._confirmed()) - set(self._ids.values()):
                self._register()
            here = (set(self.online()) | (carried & set(self._confirmed()))) & wanted
            if (now := self._presence(here, wanted)) != told:
                self._say(now)
                told = now
            self._write_state("waiting", {"online": sorted(here)})
            if here == wanted or (len(here) >= quorum and time.monotonic() > end):
                return
            self._tend()
            time.sleep(ASK_S)

    def _presence(self, here: set[str], wanted: set[str]) -> str:
        """Who is online, and what is missing of each other site."""
        missing = {"": "to invite", "invited": "to join", "pending": "to confirm", "confirmed": "to serve"}
        states = self.held.states()
        rest = [f"{site} has {missing[states[site]]}" for site in sorted(wanted - here)]
        online = ", ".join(sorted(here)) or "nobody yet"
        return f"Online: {online} ({len(here)} of {len(wanted)}). " + "; ".join(rest)

    def _watch(self) -> int:
        turn = 0
        while True:
            if not self._run_id:
                self._submit()
            status, details = self._status()
            if turn % ONLINE_EVERY == 0:
                self._online = self._online_or_nobody()
            turn += 1
            more = {"run": self._run_id, "details": details, "online": self._online}
            self._write_state(status or "running", more)
            if status == "finished:completed":
                self._say(f"Report: {self.folder / 'report.html'}")
                return 0
            if status.startswith("finished"):
                self.held.event("failed", run=self._run_id, why=details or status)
                if self._tries >= TRIES:
                    self._say(f"The run failed {TRIES} times: {details or 'see the log of the executor'}.")
                    return 1
                self._say(f"The run ended ({details or status}); it goes on from the study folder.")
                self._run_id, self._failed = "", details or status
            self._tend()
            time.sleep(ASK_S)

    def _online_or_nobody(self) -> list[str]:
        with contextlib.suppress(SetupError, subprocess.TimeoutExpired):  # the SuperLink is down just now
            return self.online()
        return []

    def _submit(self) -> None:
        quoted = f"study='{self.folder}'"
        app = self.net / "app" / "cytosae-study"
        answer = self._flwr("run", str(app), "study", "--run-config", quoted, "--format", "json")
        self._run_id, self._tries = str(answer.get("run-id", "")), self._tries + 1
        if not self._run_id:
            raise SetupError("Expected Flower to take the run.", hint="See net/logs/superlink.log.")
        self.held.event("submitted", run=self._run_id)

    def _status(self) -> tuple[str, str]:
        with contextlib.suppress(
            SetupError, LookupError, subprocess.TimeoutExpired
        ):  # the SuperLink is down just now
            run = self._flwr("list", "--run-id", self._run_id, "--format", "json")["runs"][0]
            return str(run["status"]), str(run.get("status-details", ""))
        return "", "the SuperLink does not answer"

    def _renew(self) -> None:
        """Once a day: certificates that end soon are made again, and the programs that hold them started again."""
        if time.monotonic() < self._renew_at:
            return
        self._renew_at = time.monotonic() + DAY_S
        for child, stem, names in (
            ("proxy", "server", [*self._listen.names]), ("superlink", "superlink", ["127.0.0.1"]),
        ):  # fmt: skip
            if self.held.authority.server(stem, names) and self.children.running(child):
                self.children.restart(child)
                self.held.event("certificate", child=child)
        self.held.renew()

    def _tend(self) -> None:
        self._renew()
        for name in self.children.watch():
            self._say(f"{name} ended and is started again (net/logs/{name}.log).")
            self.held.event("restarted", child=name)

    def _write_state(self, status: str, more: Mapping[str, Any]) -> None:
        state = {"status": status, "pid": os.getpid(), "children": self.children.status(), **more}
        if self._failed:
            state["failures"] = {"why": self._failed, "try": self._tries, "of": TRIES}
        write_atomic(self.net / "state.json", canonical_json(state))

    def _until(self, ready: Callable[[], bool], timeout_s: float, what: str) -> None:
        end = time.monotonic() + timeout_s
        while not ready():
            self._tend()
            if time.monotonic() > end:
                raise SetupError(f"Expected {what} within {timeout_s:g} s.", hint="See the logs in net/logs.")
            time.sleep(0.2)

    def _flwr(self, *arguments: str) -> Json:
        environment = {
            **FLOWER, "PATH": os.environ.get("PATH", ""), "FLWR_HOME": str(self.net / "flower"),
            "HOME": os.environ.get("HOME", "/"), "COLUMNS": "200",
        }  # fmt: skip
        done = subprocess.run(
            [_program("flwr"), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        start = done.stdout.find("{")
        if done.returncode != 0 or start < 0:
            if done.returncode == 0:
                return {}
            raise SetupError(
                f"Expected flwr {arguments[0]} to end well, got {done.returncode}.",
                hint="See net/logs/superlink.log.",
            )
        return dict(json.loads(done.stdout[start:]))


def shrink(path: Path) -> None:
    """Give back what a database no longer needs: SQLite keeps the size that a file once had.

    Raises:
        SetupError: it is damaged, or the disk has no room for the copy.
    """
    if not path.exists() or path.stat().st_size < SHRINK_BYTES:
        return
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("VACUUM")
    except sqlite3.Error as error:
        raise SetupError(
            f"Expected a SuperLink database that can be compacted, got {error}.",
            hint="Free disk space; a damaged net/superlink.db may be removed: sites are registered again.",
        ) from error


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
