"""The transport over real Flower processes: SuperLink with TLS and node keys, SuperNodes, relays, agents.

A whole study uses the same bench: see `FlowerBench`'s docstring and `run_study`.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.flower_bench import ROOT, FlowerBench

pytestmark = pytest.mark.flower

CANARY = b"patient-0042-smear"
RELAYED, STOCK = ("a", "b", "c"), "d"
UNAVAILABLE = {3, 4, 5}  # Flower's codes: message, reply or node not available
MIB = 1 << 20
# Longer than the 60 s after which Flower gives up a task without a heartbeat.
LONG_WORK_S = 70.0
# A killed SuperNode is noticed after two missed heartbeats of 30 s.
NOTICED_S = 100.0
# The SuperLink is away for this long, and some seconds more until it has started.
OUTAGE_S = 5.0
REJOINED_S = 8.0  # after the SuperLink answers again, until its nodes are back
PROBE = """\
[project]
name = "transport-probe"
version = "0.1.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "cytosae"
fab-include = ["flower_probe.py"]
[tool.flwr.app.components]
serverapp = "flower_probe:app"
clientapp = "cytosae_client.app:app"
[tool.flwr.app.config]
study = ""
"""


class Agents:
    """Handlers that do what the request's first line says."""

    def __init__(self) -> None:
        self.working, self.release = threading.Event(), threading.Event()

    def handle(self, request: bytes) -> bytes:
        command, _, argument = request.partition(b"\n")[0].decode().partition(" ")
        if command == "raise":
            raise ValueError(CANARY.decode())
        if command == "work":
            self.working.set()
            time.sleep(float(argument))
        if command == "wait":  # for `release`, at most so many seconds
            self.working.set()
            self.release.wait(float(argument))
        return request


@pytest.fixture(scope="module")
def agents() -> Agents:
    return Agents()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, agents: Agents) -> Iterator[FlowerBench]:
    sites = {site: agents.handle for site in (*RELAYED, STOCK)}
    with FlowerBench(tmp_path_factory.mktemp("bench"), sites, fallback=[STOCK]) as running:
        yield running


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source folder of a bundle around `flower_probe.py`. Flower wants a folder name of letters and digits."""
    folder = tmp_path_factory.mktemp("app") / "probe"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROBE)
    shutil.copy(ROOT / "tests" / "flower_probe.py", folder)
    return folder


def ask(site: str, command: str, size: int = 1024, deadline_s: float = 120.0) -> dict[str, Any]:
    return {"site": site, "command": command, "size": size, "deadline_s": deadline_s}


def run(bench: FlowerBench, probe: Path, folder: Path, plan: Sequence[dict[str, Any]], **options: Any) -> Any:
    """Run a plan; its answers as {(site, command, size): answer}."""
    (folder / "plan.json").write_text(json.dumps(plan))
    status = bench.run_study(folder, 200.0, app=probe, **options)
    assert status == "finished:completed", bench.run_log()
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert tuple(lines[0]["sites"]) == (*RELAYED, STOCK)
    assert all(line["site"] == line["site_of_answer"] for line in lines[1:])
    return {(line["site"], line["command"], line["size"]): line for line in lines[1:]}


def test_bytes_faults_and_deadlines(bench: FlowerBench, probe: Path, tmp_path: Path) -> None:
    plan = [ask(site, "echo", size) for size in (1024, 6 * MIB) for site in RELAYED]
    plan += [ask(STOCK, "echo"), ask(STOCK, "raise"), ask("b", "raise"), ask("nobody", "echo")]
    plan += [ask("c", "work 6", deadline_s=4.0), ask("c", "echo", 2048)]
    answers = run(bench, probe, tmp_path, plan)
    assert len(answers) == len(plan)

    faults = {key: answer["fault"] for key, answer in answers.items() if answer["fault"]}
    assert faults == {
        (STOCK, "raise", 1024): "relay",
        ("b", "raise", 1024): "relay",
        ("nobody", "echo", 1024): "unreachable",
        ("c", "work 6", 1024): "deadline",
    }
    # The late reply of "work 6" came before this one and was dropped, not taken for it.
    assert answers["c", "echo", 2048]["same"]
    assert all(answer["same"] for key, answer in answers.items() if key not in faults)
    # All that Flower told the coordinator about failures, relayed and stock alike.
    # Whether Flower or our own clock notices the deadline first is a matter of milliseconds: then code 3 is there.
    errors = max((answer["errors"] for answer in answers.values()), key=len)
    told = [error for error in errors if error["code"] not in UNAVAILABLE]
    assert told == [{"code": 2, "reason": "relay error"}] * 2 and len(errors) <= len(told) + 1
    assert_canary_stayed_at_the_sites(bench)


def assert_canary_stayed_at_the_sites(bench: FlowerBench) -> None:
    """Search all that the coordinator's side holds: database, journal, logs, results."""
    coordinator = [path for path in bench.folder.glob("superlink*") if path.is_file()]
    coordinator.append(bench.folder / "superexec.log")
    assert (bench.folder / "superlink.db").stat().st_size > 0
    for path in coordinator:
        assert CANARY not in path.read_bytes(), path.name


def test_the_bundle_is_unpacked_by_the_coordinator_and_never_by_a_relayed_site(
    bench: FlowerBench, probe: Path, tmp_path: Path
) -> None:
    run(bench, probe, tmp_path, [ask(site, "echo", 333) for site in (*RELAYED, STOCK)])
    unpacked = {path.parent.parent.name for path in bench.folder.glob("home-*/apps/*")}
    assert unpacked == {"home-superexec", f"home-supernode-{STOCK}"}


def test_the_app_without_code_starts_the_installed_server_and_fails_in_words(
    bench: FlowerBench, tmp_path: Path
) -> None:
    assert bench.run_study(tmp_path / "missing", 60.0) == "finished:failed"
    assert "Expected study=<absolute path of a study folder>" in bench.details
    log = bench.run_log()
    assert "StudyError: Expected study=" in log and "Traceback" not in log


def test_a_run_survives_a_restart_of_the_superlink(
    bench: FlowerBench, probe: Path, tmp_path: Path, agents: Agents
) -> None:
    agents.working.clear()
    agents.release.clear()
    restarted = False

    def restart_when_working() -> bool:
        nonlocal restarted
        if agents.working.is_set():
            bench.restart_superlink(OUTAGE_S)
            restarted = True
            threading.Timer(REJOINED_S, agents.release.set).start()
        return restarted

    # The work ends when the SuperLink is back and its nodes too: a reply on its way while the SuperLink dies is
    # lost in Flower and becomes the fault "deadline". A busy machine needs longer, so no fixed time is waited for.
    plan = [ask("a", "wait 100", 4 * MIB), ask("b", "echo", 999)]
    answers = run(bench, probe, tmp_path, plan, during=restart_when_working)
    told = {key: answer["fault"] for key, answer in answers.items()}
    assert restarted and len(answers) == 2 and all(answer["same"] for answer in answers.values()), told


def test_a_killed_supernode_is_a_fault_and_the_others_go_on(
    bench: FlowerBench, probe: Path, tmp_path: Path, agents: Agents
) -> None:
    agents.working.clear()

    def kill_when_working() -> bool:
        if agents.working.is_set():
            bench.kill_supernode("b")
        return agents.working.is_set()

    plan = [
        ask("b", "work 20", deadline_s=NOTICED_S + 20),
        ask("a", "echo", 777),
        ask("c", f"work {LONG_WORK_S:g}", deadline_s=LONG_WORK_S + 60),
    ]
    answers = run(bench, probe, tmp_path, plan, during=kill_when_working)
    dead, alive, patient = (answers[entry["site"], entry["command"], entry["size"]] for entry in plan)
    assert dead["fault"] == "unreachable" and dead["seconds"] < NOTICED_S
    assert alive["same"] and alive["seconds"] < dead["seconds"]
    # The relay kept its task alive for longer than Flower waits for a silent one.
    assert patient["same"] and patient["seconds"] > LONG_WORK_S


def test_a_relay_ends_well_when_told_to(bench: FlowerBench) -> None:
    assert bench.terminate("relay a") == 0, bench.log("relay a")
