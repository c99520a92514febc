"""A coordinator, a bad network and three hospitals, each a host of its own: from join to a verified audit.

Network namespaces: what a host may reach is what its cable reaches. The agents of all sites have a namespace without
any interface that is up, so nothing of a hospital's images can leave but through the relay's socket.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cytosae_core.phantom import DEMO_SITES, generate_site
from cytosae_core.processes import end_leftovers
from cytosae_core.tensors import write_atomic
from tests.flower_processes import Processes
from tests.hospitals import CYTOSAE, PATIENTS, cytosae, make_study, party_processes, until
from tests.hosts.network import Network, can_make_networks
from tests.lacking import lacking

pytestmark = pytest.mark.hosts
SITES, ROUNDS, DEADLINE_S = DEMO_SITES[:3], 6, 75.0
HOSTS = {"coordinator": "10.77.0.1", "door": "10.77.0.254"} | {
    site.name: f"10.77.0.{11 + index}" for index, site in enumerate(SITES)
}
ENDPOINT = "10.77.0.254:8443"  # what hospitals are told: the door, not the coordinator
Json = dict[str, Any]


@dataclass
class Hosts:
    """All hosts of the test."""

    folder: Path
    network: Network
    processes: Processes

    @property
    def study(self) -> Path:
        return self.folder / "desk" / "out"

    def start(self, name: str, host: str, *command: str) -> None:
        self.processes.start(name, [*self.network.within(host), *command])

    def weather(self, **values: float) -> None:
        """Latency, stalls, cuts from now on."""
        write_atomic(self.folder / "door.json", json.dumps(values).encode())

    def home(self, site: str) -> Path:
        return self.folder / site / f"three-commands-{site}"

    def child(self, folder: Path, name: str) -> int:
        return int(json.loads((folder / "state.json").read_text())["children"][name]["pid"])

    def rounds(self, count: int, timeout_s: float = 240.0) -> None:
        path = self.study / "run" / "rounds" / f"{count:04d}.json"
        until(path.exists, timeout_s, f"round {count}", self.processes)

    def start_coordinator(self) -> None:
        words = ("study", "start", str(self.study), "--listen", "10.77.0.1:8443", "--wait", "300")
        self.start("coordinator", "coordinator", CYTOSAE, *words)

    def serve(self, site: str) -> None:
        self.start(f"serve {site}", site, CYTOSAE, "site", "serve", "--home", str(self.home(site)))


def enrol(hosts: Hosts, index: int) -> None:
    """The three commands of one hospital, and the coordinator's confirmation."""
    site, desk = SITES[index], hosts.folder / "desk"
    place, within = hosts.folder / site.name, hosts.network.within(site.name)
    generate_site(place / "cells", site, patients=PATIENTS, cells_per_patient=1, seed=index)
    invite = str(desk / f"{site.name}.invite.json")
    joined = cytosae(place, "site", "join", invite, "--yes", within=within)
    assert joined["enrolled"] and Path(joined["home"]) == hosts.home(site.name)
    cytosae(desk, "study", "confirm", site.name, "out", "--fingerprint", joined["site_fingerprint"])
    checked = cytosae(place, "site", "check", "cells", within=within)
    assert not checked["failed"], checked
    hosts.serve(site.name)


def assert_the_agent_has_no_way_out(hosts: Hosts, site: str) -> None:
    pid = str(hosts.child(hosts.home(site), "agent"))
    look = ["nsenter", "--target", pid, "--net", "ip", "-br", "addr"]
    shown = subprocess.run(look, capture_output=True, text=True, check=True).stdout.split()
    assert shown[:2] == ["lo", "DOWN"] and len(shown) == 2


def assert_only_the_fleet_is_published(hosts: Hosts, site: str) -> None:
    """From a hospital's host Flower's Control API is not there, and its Fleet API wants this study's certificate."""
    code = (
        "import ssl, http.client\n"
        "context = ssl._create_unverified_context()\n"
        "for method, path in (('POST', '/v1/control/list-runs'), ('POST', '/v1/runtime/acquire-task'),"
        " ('POST', '/v1/fleet/pull-messages'), ('GET', '/docs'), ('GET', '/openapi.json')):\n"
        "    c = http.client.HTTPSConnection('10.77.0.254', 8443, context=context, timeout=20)\n"
        "    c.request(method, path)\n"
        "    print(c.getresponse().status)\n"
    )
    command = [*hosts.network.within(site), sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert shown.split() == ["404", "404", "403", "404", "404"]


def test_three_hospitals_a_bad_network_and_a_report_that_an_auditor_accepts(tmp_path: Path) -> None:
    if not can_make_networks():
        lacking("root and network namespaces (ip netns)")
    (tmp_path / "desk").mkdir()
    with Network(HOSTS) as network, party_processes(tmp_path) as processes:
        hosts = Hosts(tmp_path, network, processes)
        names = [site.name for site in SITES]
        make_study(hosts.study, tmp_path / "data", names, rounds=ROUNDS, deadline_s=DEADLINE_S)
        hosts.weather(delay_s=0.01)
        door = str(Path(__file__).with_name("door.py"))
        hosts.start(
            "door", "door", sys.executable, door, ENDPOINT, "10.77.0.1:8443", str(tmp_path / "door.json")
        )
        for name in names:
            cytosae(tmp_path / "desk", "study", "invite", name, "out", "--endpoint", ENDPOINT)
        hosts.start_coordinator()
        until(lambda: "The study is open" in processes.log("coordinator"), 300, "an open study", processes)
        for index in range(len(SITES)):
            enrol(hosts, index)
        assert_only_the_fleet_is_published(hosts, names[0])
        hosts.rounds(1, 300)
        assert_the_agent_has_no_way_out(hosts, names[0])
        _faults(hosts, *names)
        until((hosts.study / "report.json").exists, 800, "a report", processes)
        until(lambda: "Report:" in processes.log("coordinator"), 120, "the end of start", processes)
        _judge(hosts, *names)
        for name in names[:2]:
            assert processes.end(f"serve {name}", signal.SIGTERM) == 0


def _faults(hosts: Hosts, first: str, second: str, third: str) -> None:
    """Latency and stalls; all connections cut; one cable pulled for a while; coordinator and its SuperLink killed;
    an agent killed; one hospital gone for good."""
    hosts.weather(delay_s=0.05, stall=0.02, cut=1)
    hosts.network.cable(second, plugged=False)
    time.sleep(8)
    hosts.network.cable(second, plugged=True)
    hosts.rounds(2)
    os.kill(hosts.child(hosts.study / "net", "superlink"), signal.SIGKILL)
    os.kill(hosts.child(hosts.home(first), "agent"), signal.SIGKILL)
    hosts.rounds(3)
    hosts.processes.end("coordinator", signal.SIGKILL)  # its children are ended by the next one
    hosts.start_coordinator()
    hosts.rounds(4)
    hosts.network.cable(third, plugged=False)  # for good
    hosts.processes.end(f"serve {third}", signal.SIGKILL)
    end_leftovers(str(hosts.home(third) / "logs"))


def _judge(hosts: Hosts, first: str, second: str, third: str) -> None:
    report = json.loads((hosts.study / "report.json").read_text())
    assert len(report["rounds"]) == ROUNDS
    assert [report["sites"][name]["status"] for name in (first, second)] == ["reported", "reported"]
    assert report["sites"][third]["status"].startswith("failed")
    desk = hosts.folder / "desk"
    for words in (
        ("study", "bundle", "out", "--to", "bundle"),
        ("audit", "verify", "bundle", "--keys", "bundle/keys.json"),
    ):
        done = subprocess.run([CYTOSAE, *words], cwd=desk, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
