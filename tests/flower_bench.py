"""A real Flower federation on loopback for tests: SuperLink, SuperExec, SuperNodes, relays and agents.

    handlers = {"site-a": session_a.handle, "site-b": ["cytosae", "site", "agent", "--socket", "{socket}", ...]}
    with FlowerBench(tmp_path, handlers) as bench:
        assert bench.run_study(study_folder, timeout_s=120) == "finished:completed", bench.run_log()

Everything that a deployment has is here: TLS, node keys, `--isolation process`, shared secrets for the
executors, a database, our relay as a process of its own. A site given as a callable is an agent in a thread of
the test; a site given as a command is a process, with `{socket}` replaced. On leaving, every process is ended
and /proc is searched for anything left: a leak fails the test.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cytosae_client.agent import AgentServer
from tests.flower_pki import write_certificates, write_node_key
from tests.flower_processes import Processes, free_ports

Handle = Callable[[bytes], bytes]
ROOT = Path(__file__).resolve().parents[1]
START_S = 60.0
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "PYTHONUNBUFFERED": "1",
    "MALLOC_ARENA_MAX": "2",
    "COLUMNS": "200",
}


class FlowerBench:
    """Starts one federation on entering and ends it on leaving.

    Args:
        folder: an empty folder for keys, the database and logs.
        sites: site name -> the agent's handler, or the command that starts an agent.
        fallback: sites served by the stock ClientApp (`client/app.py`) instead of the relay.
    """

    def __init__(
        self, folder: Path, sites: Mapping[str, Handle | Sequence[str]], *, fallback: Sequence[str] = ()
    ) -> None:
        self.folder, self._sites, self._fallback = folder, dict(sites), frozenset(fallback)
        self._processes = Processes(folder, ENVIRONMENT)
        self.run_id = self.details = ""
        self._agents: list[tuple[AgentServer, threading.Thread]] = []
        self._sockets = tempfile.TemporaryDirectory(prefix="cy")  # short: a socket's path has 107 bytes
        self._ports = dict(zip(["superlink", *sites], free_ports(1 + len(sites)), strict=True))

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    # What tests call -------------------------------------------------------------------------------------

    def run_study(
        self,
        study: Path,
        timeout_s: float,
        *,
        app: Path = ROOT / "deploy" / "study",
        during: Callable[[], bool] = lambda: True,
    ) -> str:
        """`flwr run` with run-config study=<folder>, then wait for its end.

        Args:
            during: called again and again until it returns True, for faults in the middle of the run.

        Returns:
            Flower's status: finished:completed, finished:failed or finished:stopped. `details` then says why.
        """
        quoted = f"study='{study}'"
        answer = self.flwr("run", str(app), "bench", "--run-config", quoted, "--format", "json")
        self.run_id = run_id = str(answer["run-id"])
        done = False

        def finished() -> str:
            nonlocal done
            done = done or during()
            run = self.flwr("list", "--run-id", run_id, "--format", "json")["runs"][0]
            self.details = str(run["status-details"])
            return str(run["status"]) if str(run["status"]).startswith("finished") else ""

        return str(self._wait(finished, timeout_s, f"run {run_id} to finish", every_s=0.5))

    def kill_supernode(self, site: str) -> None:
        """SIGKILL of a site's SuperNode; its relay and agent go on."""
        self._processes.end(f"supernode {site}", signal.SIGKILL)

    def restart_superlink(self, down_s: float) -> None:
        """SIGKILL of the SuperLink and a new one on the same port and database after `down_s` seconds."""
        self._processes.end("superlink", signal.SIGKILL)
        time.sleep(down_s)
        self._start_superlink()

    def terminate(self, name: str) -> int:
        """SIGTERM to one process, such as "relay site-a"; returns its exit status."""
        return self._processes.end(name, signal.SIGTERM)

    def socket_path(self, site: str) -> Path:
        """The socket of a site's agent."""
        return Path(self._sockets.name) / f"{site}.sock"

    def log(self, name: str) -> str:
        """What one process wrote: "superlink", "superexec" (with its ServerApp), "relay site-a" ..."""
        return self._processes.log(name)

    def logs(self) -> str:
        """The end of all logs, for a failed assertion."""
        return self._processes.logs()

    def run_log(self) -> str:
        """What the coordinator's ServerApp wrote in the last run."""
        return self._cli("log", "--show", self.run_id, "bench")

    def flwr(self, *arguments: str) -> Any:
        """One `flwr` command; its JSON, or {} when it prints none."""
        text = self._cli(*arguments)
        start = text.find("{")
        return json.loads(text[start:]) if start >= 0 else {}

    def _cli(self, *arguments: str) -> str:
        command, environment = [_program("flwr"), *arguments], self._processes.environment("cli")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_S)
        if done.returncode != 0:
            raise AssertionError(
                f"flwr {arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    # Start ------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        write_certificates(self.folder)
        for name in ("superlink", *self._sites):
            (self.folder / f"{name}.secret").write_bytes(secrets.token_bytes(32))
        self._start_superlink()
        self._start_superexec()
        self._write_cli_config()
        for site in self._sites:
            write_node_key(self.folder / site)
            self.flwr("supernode", "register", str(self.folder / f"{site}.pub"), "bench", "--name", site)
        for site, agent in self._sites.items():
            self._start_agent(site, agent)
            self._start_supernode(site)
        for site in self._sites:
            self._wait(functools.partial(self._online, site), START_S, f"supernode {site}")

    def _start_superlink(self) -> None:
        folder = self.folder
        secret = ["--superexec-auth-secret-file", str(folder / "superlink.secret")]
        self._processes.start(
            "superlink",
            [
                *(
                    _program("flower-superlink"),
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(self._ports["superlink"]),
                ),
                *("--ssl-ca-certfile", str(folder / "ca.crt"), "--ssl-certfile", str(folder / "server.crt")),
                *("--ssl-keyfile", str(folder / "server.key"), "--enable-supernode-auth", *secret),
                *("--isolation", "process", "--database", str(folder / "superlink.db")),
                "--disable-runtime-dependency-installation",
            ],
        )
        self._wait(lambda: self._answers("superlink"), START_S, "SuperLink")

    def _start_superexec(self) -> None:
        secret = ["--superexec-auth-secret-file", str(self.folder / "superlink.secret")]
        ca = ["--root-certificates", str(self.folder / "ca.crt")]
        address = ["--runtime-api-address", self._address("superlink")]
        self._processes.start("superexec", [_program("flower-superexec"), *address, *ca, *secret])

    def _write_cli_config(self) -> None:
        home = self.folder / "home-cli"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "bench"\n[superlink.bench]\n'
            f'address = "{self._address("superlink")}"\nroot-certificates = "{self.folder / "ca.crt"}"\n'
        )

    def _start_agent(self, site: str, agent: Handle | Sequence[str]) -> None:
        path = self.socket_path(site)
        if not callable(agent):
            self._processes.start(f"agent {site}", [part.replace("{socket}", str(path)) for part in agent])
            self._wait(path.exists, START_S, f"agent {site}")
            return
        uids = frozenset({os.getuid()})
        server = AgentServer(
            path, agent, allowed_uids=uids, max_request_bytes=1 << 30, request_deadline_s=60.0
        )
        thread = threading.Thread(target=server.serve, name=f"agent {site}")
        thread.start()
        self._agents.append((server, thread))

    def _start_supernode(self, site: str) -> None:
        folder, address, secret = self.folder, self._address(site), str(self.folder / f"{site}.secret")
        stock = site in self._fallback
        self._processes.start(
            f"supernode {site}",
            [
                *(_program("flower-supernode"), "--superlink", self._address("superlink")),
                *(
                    "--root-certificates",
                    str(folder / "ca.crt"),
                    "--auth-supernode-private-key",
                    str(folder / site),
                ),
                *(
                    "--isolation",
                    "subprocess" if stock else "process",
                    "--superexec-auth-secret-file",
                    secret,
                ),
                *("--host", "127.0.0.1", "--port", str(self._ports[site])),
                *("--node-config", f"agent-socket='{self.socket_path(site)}'"),
            ],
        )
        if not stock:
            # -I: neither the working directory nor PYTHONPATH can put other code in the relay's way.
            relay = [sys.executable, "-I", "-m", "cytosae_client.relay", address, str(self.socket_path(site))]
            self._processes.start(f"relay {site}", [*relay, "--secret-file", secret])

    def _address(self, name: str) -> str:
        return f"127.0.0.1:{self._ports[name]}"

    def _answers(self, name: str) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._ports[name]), 1):
            return True
        return False

    def _online(self, site: str) -> bool:
        return "SuperNode ID" in self.log(f"supernode {site}")

    def _wait(self, ready: Callable[[], Any], timeout_s: float, what: str, every_s: float = 0.1) -> Any:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if value := ready():
                return value
            time.sleep(every_s)
        raise AssertionError(f"Expected {what} within {timeout_s} s.\n{self.logs()}")

    # Stop -------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        try:
            self._processes.stop()
        finally:
            for server, thread in self._agents:
                server.stop()
                thread.join()
            self._sockets.cleanup()


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)
