"""`cytosae site serve`: agent, relay, SuperNode and tunnel of one home, kept running until somebody stops them.

    agent <--Unix socket-- relay --loopback--> SuperNode --TLS--> tunnel --mutual TLS--> the study's front door

Nothing listens for connections from outside. A child that dies is started again; a coordinator that does not answer
is asked again for ever. On SIGTERM the relay finishes the message in hand before anything else ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cytosae_core.canonical import canonical_json
from cytosae_core.errors import CytosaeError, SetupError, VerificationError
from cytosae_core.keys import fingerprint
from cytosae_core.processes import FLOWER, Child, Supervisor, only_one
from cytosae_core.tensors import write_atomic

from .events import EVENTS
from .home import Home
from .join import enrolment, post_enrolment
from .ports import free_ports
from .preflight import agent_options, days_left, take_confirmation

FIRST_S, LONGEST_S, LOOK_S = 2.0, 60.0, 1.0
DRAIN_S, AGENT_S, TAIL_BYTES, SOON_DAYS, HOUR_S = 60.0, 3600.0, 1 << 16, 30.0, 3600.0
Json = dict[str, Any]
Say = Callable[[str], None]


class SiteServer:
    """Runs one home.

    Args:
        home: joined, and checked (so that it knows its images). say: a line for the person who looks on.

    Raises:
        SetupError: `site check` has not passed yet, the home goes by files, or another `serve` runs.
    """

    def __init__(self, home: Home, say: Say) -> None:
        self.home, self._say = home, say
        if not home.facts.get("data"):
            raise SetupError("Expected a check of the images first.", hint="cytosae site check DATA")
        if home.facts.get("offline"):
            raise SetupError(
                "Expected a home with a network, this one goes by files.", hint="cytosae site import FILE"
            )
        self._lock = only_one(home.folder / "serve.lock", "serve of this home", "Stop it first.")
        self._told: set[str] = set()
        self._renew_at = 0.0
        self._sockets = tempfile.mkdtemp(prefix="cytosae-")  # short: a socket's path has 107 bytes
        self._socket = Path(self._sockets) / "agent.sock"
        self._alone = without_network()
        ports = free_ports(2)
        self.children = Supervisor(self._children(*ports), home.folder / "logs")

    def run(self) -> None:
        """Wait for the confirmation, start all, watch until interrupted."""
        try:
            self._wait_until_confirmed()
            self._start()
            while True:
                self._look()
                time.sleep(LOOK_S)
        finally:
            self._say("Stopping: a message in hand is finished first.")
            self.children.stop(wait_s=DRAIN_S)
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._write_state("stopped")

    def _wait_until_confirmed(self) -> None:
        pause, sent = FIRST_S, bool(self.home.facts.get("enrolled"))
        while not self.home.confirmed:
            self._write_state("waiting for confirmation")
            try:
                if not sent:
                    post_enrolment(self.home, enrolment(self.home))
                    self.home.keep(enrolled=True)
                    sent = True
                if take_confirmation(self.home):
                    break
                self._tell(
                    "Waiting for the coordinator to confirm this site. Read this fingerprint out by phone: "
                    f"{fingerprint(self.home.site_key.public_hex)}"
                )
            except VerificationError:
                raise
            except CytosaeError as error:
                self._tell(f"{error} Trying again.")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_S)

    def _start(self) -> None:
        left = days_left(self.home.keys / "client.crt")
        if left <= 0 and not self._renewed():
            raise SetupError(
                "Expected a client certificate that is still good, or a newer one at the coordinator.",
                hint="The coordinator renews it while `cytosae study start` runs: try again then.",
            )
        self._renew()
        self._tell("relay isolation: none (one user runs all parts; deploy/systemd gives each its own).")
        self._tell(f"agent's network: {'none' if self._alone else 'shared; deploy/systemd takes it away'}")
        self.children.start("agent")
        self._until(self._socket.exists, AGENT_S)
        for name in ("tunnel", "supernode", "relay"):
            self.children.start(name)
        self._tell("Serving. Stop with Ctrl-C.")

    def _renew(self) -> None:
        """Fetch a newer certificate when this one ends soon; the tunnel reads it at its next connection."""
        if time.monotonic() < self._renew_at:
            return
        self._renew_at = time.monotonic() + HOUR_S
        left = days_left(self.home.keys / "client.crt")
        if left < SOON_DAYS and not self._renewed():
            self._tell(
                f"WARNING: the client certificate ends in {left:.0f} days; the coordinator has no newer one."
            )

    def _renewed(self) -> bool:
        before = days_left(self.home.keys / "client.crt")
        with contextlib.suppress(SetupError):  # not reachable just now
            take_confirmation(self.home)
        return days_left(self.home.keys / "client.crt") > max(before, 0.0)

    def _until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not ready():
            self._write_state("starting")
            if self.children.watch():
                raise SetupError(
                    "Expected the agent to start.", hint="See logs/agent.log, then site check DATA."
                )
            if time.monotonic() > end:
                raise SetupError(
                    f"Expected the agent's socket within {timeout_s:g} s.", hint="See logs/agent.log."
                )
            time.sleep(0.2)

    def _look(self) -> None:
        for name in self.children.watch():
            self._say(f"{name} ended and is started again (logs/{name}.log).")
        for event in self._new_events():
            if event.get("rows") != 0:  # nothing withheld is no news
                self._say(_sentence(event))
            if (event["event"], event.get("kind")) == ("answered", "close"):
                self._say(
                    "The study is complete; the report is with its coordinator. Ctrl-C ends this command."
                )
        self._renew()
        self._write_state("serving")

    def _new_events(self) -> list[Json]:
        found = agent_events(self.home)
        fresh = [event for event in found if json.dumps(event, sort_keys=True) not in self._told]
        self._told |= {json.dumps(event, sort_keys=True) for event in fresh}
        return fresh

    def _tell(self, text: str) -> None:
        """Say something once."""
        if text not in self._told:
            self._told.add(text)
            self._say(text)

    def _write_state(self, status: str) -> None:
        state = {
            "status": status,
            "pid": os.getpid(),
            "at": int(time.time()),
            "children": self.children.status(),
        }
        write_atomic(self.home.folder / "state.json", canonical_json(state))

    def _children(self, tunnel: int, runtime: int) -> list[Child]:
        home, python = self.home, [sys.executable, "-I", "-m"]
        secret = str(home.keys / "supernode.secret")
        flower = {**FLOWER, "FLWR_HOME": str(home.folder / "flower")}
        keys = [
            "--root-certificates", str(home.keys / "local.crt"),
            "--auth-supernode-private-key", str(home.keys / "node"), "--superexec-auth-secret-file", secret,
        ]  # fmt: skip
        supernode = [
            str(Path(sys.executable).parent / "flower-supernode"), "--superlink", f"127.0.0.1:{tunnel}", *keys,
            "--isolation", "process", "--host", "127.0.0.1", "--port", str(runtime),
        ]  # fmt: skip
        relay = [
            *python, "cytosae_client.relay", f"127.0.0.1:{runtime}", str(self._socket), "--secret-file", secret,
        ]  # fmt: skip
        way = [
            *python, "cytosae_client.tunnel", str(home.keys), str(home.folder / "ca.crt"),
            str(home.facts["endpoint"]), "--port", str(tunnel),
        ]  # fmt: skip
        return [
            Child("tunnel", way, FLOWER), Child("agent", self._agent(python), _threads()),
            Child("supernode", supernode, flower), Child("relay", relay, flower),
        ]  # fmt: skip

    def _agent(self, python: list[str]) -> list[str]:
        facts = self.home.facts
        weights = Path(facts["weights"]) if facts.get("weights") else None
        options = agent_options(self.home, Path(facts["data"]), weights, facts.get("preset"))
        named = {
            "data": options.data, "name": options.name, "study": options.study, "study-key": options.study_key,
            "policy": options.policy, "home": options.home, "start": options.start, "weights": options.weights,
            "preset": options.preset, "socket": self._socket, "ledger": options.ledger,
        }  # fmt: skip
        words = [part for name, value in named.items() if value for part in (f"--{name}", str(value))]
        simulated = ["--simulation"] if options.simulation else []
        return [*self._alone, *python, "cytosae_local.cli", "site", "agent", *words, *simulated]


def without_network() -> list[str]:
    """The words before a command that give it a network namespace with nothing in it; none where the kernel or the
    hospital forbids that."""
    program = shutil.which("unshare")
    way = ["--net"] if os.getuid() == 0 else ["--user", "--map-current-user", "--net"]
    if program is None:
        return []
    tried = subprocess.run([program, *way, "true"], capture_output=True, timeout=30, check=False)
    return [program, *way, "--"] if tried.returncode == 0 else []


def agent_events(home: Home) -> list[Json]:
    """The agent's last events, oldest first: codes and numbers."""
    path = home.folder / "logs" / "agent.log"
    if not path.exists():
        return []
    with open(path, "rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = stream.read().splitlines()
    out = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and found.get("event") in EVENTS:
                out.append(found)
    return out


def read_state(home: Home) -> Json:
    """state.json; empty before the first serve."""
    path = home.folder / "state.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _sentence(event: Mapping[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(int(event["at"])))
    numbers = " ".join(f"{name}={value}" for name, value in event.items() if name not in ("at", "event"))
    return f"{at} {EVENTS[event['event']]} {numbers}".rstrip()


def _threads() -> dict[str, str]:
    """What the agent may take from this process's environment: how many threads, which GPU."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF")
    return {**FLOWER, **{name: os.environ[name] for name in names if name in os.environ}}
