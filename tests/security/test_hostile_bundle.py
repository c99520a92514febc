"""A hostile app bundle on real Flower: with our relay none of its code runs; with the stock ClientApp it runs as the
relay's user and obtains nothing of the agent, the data or the site's keys. What it can do is listed in docs/relay.md.

Flower's processes run as root here, because the interpreter may be readable to root only; the bundle itself gives up
root for the relay's user before it attacks (`hostile_app.become`), so that it has exactly that user's rights.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flower_bench import ROOT, FlowerBench

pytestmark = pytest.mark.flower
AGENT_UID, RELAY_UID = 54321, 54322
RELAYED, STOCK = "relayed", "stock"
MESSAGES = 2
PROJECT = """\
[project]
name = "hostile"
version = "0.1.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "cytosae"
fab-include = ["*.py", "cytosae_core/*.py", "cytosae_client/*.py"]
[tool.flwr.app.components]
serverapp = "flower_probe:app"
clientapp = "hostile_app:app"
[tool.flwr.app.config]
study = ""
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that other users may pass through: pytest's own is closed to them."""
    if os.getuid() != 0:
        pytest.fail("Expected root: this test needs three users. Run it in a container as root.")
    folder = Path(tempfile.mkdtemp(prefix="hostile"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def agent(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A site agent under a user of its own."""
    (place / "socket").mkdir()
    command = [sys.executable, "-m", "tests.hostile.agent", str(place / "socket" / "agent.sock")]
    command += [str(place / "home"), str(AGENT_UID), str(RELAY_UID)]
    with open(place / "agent.log", "w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process
    process.terminate()
    process.wait(20)
    process.stdout.close()


def bundle(place: Path, bench: FlowerBench, pid: int) -> Path:
    """The hostile app's source folder: its own copies of our packages' names beside it."""
    folder = place / "hostile"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    shutil.copy(ROOT / "tests" / "flower_probe.py", folder)
    shutil.copy(ROOT / "tests" / "hostile" / "hostile_app.py", folder)
    for name in ("marks", "results"):
        (place / name).mkdir()
        (place / name).chmod(0o1777)
    for package in ("cytosae_core", "cytosae_client"):
        (folder / package).mkdir()
        mark = f"import os\nopen({str(place / 'marks')!r} + '/{package}-' + str(os.getpid()), 'w').close()\n"
        (folder / package / "__init__.py").write_text(mark)
    state = place / "home" / "site" / "site-0" / "state"
    values = {
        "MARKS": str(place / "marks"), "RESULTS": str(place / "results"), "AGENT_PID": pid,
        "AGENT_UID": AGENT_UID, "RELAY_UID": RELAY_UID, "SOCKET": str(place / "socket" / "agent.sock"),
        "DATA": str(place / "home" / "data"), "KEY": str(place / "home" / "site" / "site-0" / "site.key"),
        "STATE": str(state), "SUPERLINK": bench._address("superlink"), "CA": str(bench.folder / "ca.crt"),
    }  # fmt: skip
    (folder / "hostile_config.py").write_text(
        "".join(f"{name} = {value!r}\n" for name, value in values.items())
    )
    return folder


@pytest.fixture(scope="module")
def attacked(place: Path, agent: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """Run the hostile bundle against a relayed site and a site with the stock ClientApp."""
    (place / "bench").mkdir()
    asked: list[int] = []

    def spy(request: bytes) -> bytes:
        asked.append(len(request))
        return b""

    (place / "plan").mkdir()
    plan = [
        {"site": site, "command": "echo", "size": 333 + number, "deadline_s": 60.0}
        for number in range(MESSAGES)
        for site in (RELAYED, STOCK)
    ]
    (place / "plan" / "plan.json").write_text(json.dumps(plan))
    with FlowerBench(place / "bench", {RELAYED: spy, STOCK: spy}, fallback=[STOCK]) as bench:
        app = bundle(place, bench, agent.pid)
        status = bench.run_study(place / "plan", 200.0, app=app)
        lines = [json.loads(line) for line in (place / "plan" / "results.jsonl").read_text().splitlines()]
        yield {
            "status": status,
            "answers": lines[1:],
            "asked": asked,
            "homes": {path.parent.name for path in bench.folder.glob("home-*/apps")},
            "marks": sorted(path.name for path in (place / "marks").iterdir()),
            "home_of_marks": {path.read_text() for path in (place / "marks").glob("imported-*")},
            "results": [json.loads(path.read_text()) for path in (place / "results").glob("*.json")],
            "log": bench.logs(),
        }
        _end_daemons(place / "results")


def _end_daemons(folder: Path) -> None:
    for path in folder.glob("daemon-*"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.name.split("-")[1]), signal.SIGKILL)


def test_with_our_relay_no_code_of_the_bundle_runs(attacked: dict[str, Any]) -> None:
    """Every mark was left under the stock site's FLWR_HOME, none by the relayed site, which got opaque bytes."""
    assert attacked["home_of_marks"] and all("stock" in home for home in attacked["home_of_marks"])
    assert "home-supernode-relayed" not in attacked["homes"] and "home-relay-relayed" not in attacked["homes"]
    assert len(attacked["asked"]) == MESSAGES and all(size > 300 for size in attacked["asked"])
    faults = [answer["fault"] for answer in attacked["answers"] if answer["site"] == RELAYED]
    assert faults == ["relay"] * MESSAGES


def test_the_positive_control_the_stock_client_app_does_run_it(attacked: dict[str, Any]) -> None:
    marks = attacked["marks"]
    assert sum(name.startswith("ran-") for name in marks) == MESSAGES
    assert len(attacked["results"]) == MESSAGES


def test_under_the_stock_client_app_it_obtains_nothing(attacked: dict[str, Any]) -> None:
    tried = 0
    for results in attacked["results"]:
        refused = {name: text for name, text in results.items() if name.startswith("refuse: ")}
        tried += len(refused)
        assert [name for name, text in refused.items() if not text.startswith("refused")] == [], refused
    assert tried >= 40


def test_the_agent_lives_and_logged_that_nobody_signed(
    attacked: dict[str, Any], place: Path, agent: subprocess.Popen[str]
) -> None:
    assert agent.poll() is None
    log = (place / "agent.log").read_text()
    assert "patient-7" not in log and str(place) not in log


def test_what_it_can_do_is_what_the_documentation_lists(attacked: dict[str, Any]) -> None:
    """Measured, not wished: docs/relay.md names each of these with what closes it."""
    listed = (ROOT / "docs" / "relay.md").read_text()
    for results in attacked["results"]:
        for name, text in results.items():
            if name.startswith(("can: ", "before: ")) and text.startswith("ALLOWED"):
                assert name.split(": ")[1] in listed, name


def test_a_poisoned_cache_is_never_read_by_our_relay(attacked: dict[str, Any]) -> None:
    """The bundle wrote into Flower's cache of apps; a relayed site has no such cache at all."""
    assert any(
        text.startswith("ALLOWED") for r in attacked["results"] for n, text in r.items() if "poison" in n
    )
    assert "home-supernode-relayed" not in attacked["homes"]


def test_no_daemon_is_left(attacked: dict[str, Any], place: Path) -> None:
    """The bundle leaves one; the test ends it, as KillMode=control-group or a container per task does."""
    pids = [int(path.name.split("-")[1]) for path in (place / "results").glob("daemon-*")]
    assert pids
    _end_daemons(place / "results")
    end = time.monotonic() + 10
    while any(_alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    return False
