"""`cytosae study watch`: the snapshot of a study's folder, the page in Chromium, its live text, its metrics."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cytosae_core.canonical import canonical_json
from cytosae_core.config import StudyConfig
from cytosae_core.keys import SigningKey
from cytosae_core.tensors import write_atomic
from cytosae_server.enrolment import Enrolments
from cytosae_server.faultwords import FAULTS
from cytosae_server.progress import Progress
from cytosae_server.study import write_study_folder
from cytosae_server.watch import snapshot
from cytosae_server.watch_page import duration, headline, metrics, page, trouble
from tests.devtools import BROKEN, FAINT, axe_source, browser
from tests.flower_processes import free_ports
from tests.hospitals import CYTOSAE, party_processes

SITES = ("alder", "birch", "cedar")
CHILDREN = {"superlink": {"running": True, "starts": 2}, "proxy": {"running": True, "starts": 1}}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder in which three sites were invited, and nothing else happened."""
    folder = tmp_path / "out"
    folder.mkdir()
    key = SigningKey.load_or_create(folder / "study.key")
    config = StudyConfig(name="blood and bone", sites=SITES, simulation=True)
    write_study_folder(folder, config, {}, {}, key.public_hex)
    for site in SITES:
        Enrolments(folder).invite(site, "study.example.org:8443")
    return folder


def run_on(folder: Path, rounds: int, **state: Any) -> Progress:
    """Write what a running study writes."""
    values = {
        "status": "running",
        "pid": os.getpid(),
        "children": CHILDREN,
        "online": ["alder", "birch"],
        **state,
    }
    write_atomic(folder / "net" / "state.json", canonical_json(values))
    (folder / "run" / "rounds").mkdir(parents=True, exist_ok=True)
    for number in range(rounds + 1):
        quality = {site: [100.0 / (number + 1), 200.0, 200.0, 50.0, 4.0, 0.0] for site in SITES[:2]}
        record = {
            "round": number, "quality": quality, "bytes": 2000, "received": dict.fromkeys(SITES[:2], 1000),
            "faults": {"cedar": "unreachable"},
        }  # fmt: skip
        path = folder / "run" / "rounds" / f"{number:04d}.json"
        write_atomic(path, canonical_json(record))
        os.utime(path, (1e9 + 60 * number, 1e9 + 60 * number))  # a round a minute
    progress = Progress(folder / "run" / "progress.json")
    progress("step", {"step": "round", "round": rounds + 1, "of": 15})
    progress("site", {"site": "alder", "state": "sent"})
    return progress


def test_before_anything_happened(study: Path) -> None:
    state = snapshot(study)
    assert state["status"] == "not started" and state["rounds_done"] == 0 and state["faults"] == []
    assert {site["enrolment"] for site in state["sites"].values()} == {"invited"}
    assert state["logs"]["coordinator"] is None and state["seconds_left"] is None
    assert "Not started yet" in page(state) and len(state["events"]) == 3


def test_what_runs_what_is_missing_and_what_to_do_about_it(study: Path) -> None:
    progress = run_on(study, 2)
    progress("dropped", {"site": "cedar", "step": "score", "code": "setup"})
    state = snapshot(study)
    assert headline(state).startswith("Running: training round 3 of 15, about 13 minutes")
    alder, cedar = state["sites"]["alder"], state["sites"]["cedar"]
    assert (alder["rounds"], alder["online"], alder["bytes"], alder["doing"]) == (2, True, 2000, "sent")
    assert alder["fvu"] == pytest.approx(100 / 3 / 200)
    assert cedar["fvu"] is None and cedar["online"] is False and cedar["faults"] == 2
    assert state["faults"][0] | {"site": "cedar", "code": "setup", "step": "score"} == state["faults"][0]
    assert all(fault["what"] == FAULTS[fault["code"]][0] for fault in state["faults"])
    run_on(study, 2, pid=999_999_999)
    assert (
        headline(snapshot(study)).startswith("Ended by force")
        and snapshot(study)["sites"]["alder"]["online"] is None
    )
    write_atomic(study / "report.json", b"{}")
    assert headline(snapshot(study)) == "Complete: the report is made"


def test_a_run_that_fails_again_and_again_is_not_shown_as_one_that_runs(study: Path) -> None:
    run_on(study, 2, failures={"why": "ServerApp exited with code 1", "try": 3, "of": 5})
    state = snapshot(study)
    assert trouble(state).startswith("The run failed before (ServerApp exited with code 1): try 3 of 5")
    assert trouble(state) in page(state) and "try 3 of 5" in once(study)
    assert 'cytosae_run_tries{study="blood and bone"} 3' in metrics(state)
    run_on(study, 2)
    assert trouble(snapshot(study)) == "" and "now bad" not in page(snapshot(study))


def once(folder: Path) -> str:
    """What the terminal shows."""
    words = [CYTOSAE, "study", "watch", str(folder), "--once"]
    return " ".join(
        subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    )


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"status": '])
def test_files_that_are_being_lost_do_not_end_the_watch(study: Path, broken: bytes) -> None:
    run_on(study, 1)
    for name in ("net/state.json", "run/progress.json", "run/rounds/0001.json"):
        (study / name).write_bytes(broken)
    (study / "net" / "events.jsonl").write_bytes(broken + b"\n")
    state = snapshot(study)
    assert state["rounds_done"] == 0 and page(state)


def test_a_folder_that_is_no_study_is_a_clear_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [CYTOSAE, "study", "watch", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "Hint:" in done.stderr and "Traceback" not in done.stderr


def test_nothing_of_a_study_is_markup(study: Path) -> None:
    run_on(study, 1)
    hostile = {"at": "<img src=x onerror=alert(1)>", "event": "<script>", "site": "</td>"}
    with open(study / "net" / "events.jsonl", "a", encoding="utf-8") as stream:
        stream.write(json.dumps(hostile) + "\n")
    shown = page(snapshot(study))
    assert "<img" not in shown and shown.count("<script>") == 1


def test_metrics_are_lines_that_prometheus_reads(study: Path) -> None:
    run_on(study, 2)
    lines = metrics(snapshot(study)).splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert samples['cytosae_rounds_done{study="blood and bone"}'] == "2"
    assert samples['cytosae_site_online{study="blood and bone",site="cedar"}'] == "0"
    names = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {name.partition("{")[0] for name in samples} == names


def test_seconds_in_words() -> None:
    assert [duration(s) for s in (5, 130, 3600, 8000, 200_000)] == [
        "5 seconds", "2 minutes", "60 minutes", "2 hours", "2 days",
    ]  # fmt: skip


@pytest.fixture
def served(study: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    port = free_ports(1)[0]
    run_on(study, 3)
    address = f"http://127.0.0.1:{port}/"
    with party_processes(tmp_path) as processes:
        processes.start("watch", [CYTOSAE, "study", "watch", str(study), "--web", str(port)])
        end = time.monotonic() + 60
        while not _answers(address):
            assert time.monotonic() < end, processes.logs()
            time.sleep(0.1)
        yield study, address


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_the_page_is_live_and_asks_nobody_else(served: tuple[Path, str]) -> None:
    study, address = served
    with browser() as tab:
        for dark in (False, True):
            tab.dark(dark)
            tab.visit(address)
            assert tab.run(FAINT) == []
        assert all(url.startswith((address, "data:")) for url in tab.requests), tab.requests
        assert "round 4 of 15" in tab.run("document.querySelector('.now').textContent")
        run_on(study, 7)
        _until_text(tab, "round 8 of 15")
        tab.size(380, 800)
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        assert tab.errors == []


def test_axe_finds_nothing_to_complain_about(served: tuple[Path, str]) -> None:
    _, address = served
    with browser() as tab:
        tab.visit(address)
        tab.run(f"{axe_source()};0")
        assert tab.run(BROKEN) == []


def _until_text(tab: Any, wanted: str) -> None:
    end = time.monotonic() + 20
    while wanted not in tab.run("document.querySelector('.now').textContent"):
        assert time.monotonic() < end, "the page did not change"
        time.sleep(0.2)


def test_it_is_read_only_and_answers_only_to_its_own_name(served: tuple[Path, str]) -> None:
    study, address = served
    with urllib.request.urlopen(f"{address}state.json", timeout=10) as answer:
        shown = json.loads(answer.read())
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    told = subprocess.run(
        [CYTOSAE, "study", "watch", str(study), "--json"], capture_output=True, text=True, timeout=60
    )
    same = {"at": 0, "seconds_left": 0}
    assert json.loads(told.stdout) | same == shown | same
    for method, headers, code in (
        ("POST", {}, 405),
        ("DELETE", {}, 405),
        ("GET", {"Host": "evil.example"}, 400),
    ):
        request = urllib.request.Request(address, method=method, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        refused.value.close()
        assert refused.value.code == code
