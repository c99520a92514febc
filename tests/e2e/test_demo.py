"""The demo as its user runs it: synthetic hospitals, and real cells."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.e2e
COMMAND = [sys.executable, "-m", "cytosae_local.cli"]
AGENT = ("site", "agent", "--data", ".", "--name", "a", "--home", "home", "--socket", "agent.sock")


def cytosae(*arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=timeout)


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-2000:]
    value = json.loads(done.stdout.strip().splitlines()[-1])
    assert isinstance(value, dict)
    return value


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, last_json(cytosae("demo", "--out", str(out), "--rounds", "6", "--rows", "512", "--json"))


def test_demo_ends_with_one_json_line(phantoms: tuple[Path, dict[str, Any]]) -> None:
    out, line = phantoms
    assert set(line) == {"report", "sites", "pooled_fvu", "federated_fvu", "bytes_out", "seconds"}
    assert len(line["sites"]) == 5 and (out / "report.html").exists() and (out / "sites" / "alder").is_dir()
    for site in line["sites"].values():
        assert set(site) == {"images", "fvu", "l0", "dead_fraction"} and site["images"] >= 80
    assert line["federated_fvu"] / line["pooled_fvu"] < 1.10


def test_demo_report_is_one_offline_page_with_its_watermark(phantoms: tuple[Path, dict[str, Any]]) -> None:
    page = (phantoms[0] / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert "SIMULATED" in page.upper() and not [x for x in links.found if not x.startswith(("#", "data:"))]


def test_demo_protects_patients_and_says_what_left(phantoms: tuple[Path, dict[str, Any]]) -> None:
    report = json.loads((phantoms[0] / "report.json").read_text())
    assert report["study"]["profile"] == "masked" and report["study"]["min_units"] == 11
    assert all(site["unit"] == "patient" for site in report["sites"].values())
    assert all(site["bytes"] > 0 for site in report["egress"]["sites"].values())
    assert report["planted"] and report["stability"] and report["comparators"]["local_only"]


def test_an_auditor_verifies_the_run_and_finds_a_changed_number(
    phantoms: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    assert cytosae("study", "bundle", str(phantoms[0]), "--to", str(bundle)).returncode == 0
    keys = ("--keys", str(bundle / "keys.json"))
    done = cytosae("audit", "verify", str(bundle), *keys)
    assert done.returncode == 0, done.stdout
    assert cytosae("audit", "replay", str(bundle)).returncode == 0
    report = json.loads((bundle / "report.json").read_text())
    report["sites"]["alder"]["fvu"] += 0.001
    (bundle / "report.json").write_text(json.dumps(report))
    done = cytosae("audit", "verify", str(bundle), *keys)
    assert done.returncode == 1 and "First broken link: report.json" in done.stdout
    assert "report.json sites/alder/fvu" in cytosae("audit", "verify", str(bundle), "--json").stdout


def test_the_trained_dictionary_is_validated_with_metrics_only(
    phantoms: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """`study run` with kind validate: nothing but hello, tables and scores leaves a site."""
    out = phantoms[0]
    values = yaml.safe_load((out / "study.yaml").read_text())
    digest = json.loads((out / "dictionary.json").read_text())["sha256"]
    values |= {"kind": "validate", "profile": "evaluate_only"}
    values["dictionary"] |= {"init": "file", "digest": digest}
    values["local"] = {
        "sites": {name: str(out / "sites" / name) for name in values["sites"]},
        "policy": "evaluate_only",
        "start": str(out / "dictionary"),
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    shutil.copytree(out / "stores", tmp_path / "stores", copy_function=shutil.copy2)
    line = last_json(cytosae("study", "run", str(tmp_path / "study.yaml"), "--json"))
    report = json.loads((tmp_path / "report.json").read_text())
    kinds = {kind for site in report["egress"]["sites"].values() for kind in site["by_kind"]}
    assert kinds == {"hello", "describe", "score"}
    assert line["federated_fvu"] == pytest.approx(phantoms[1]["federated_fvu"], rel=1e-3)


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_stopped_demo_goes_on(
    tmp_path: Path, phantoms: tuple[Path, dict[str, Any]], stop: signal.Signals, status: int
) -> None:
    """Ctrl-C or kill -9 during the rounds, then the same command: the same dictionary as without the break."""
    first = phantoms[0]
    out = tmp_path / "out"
    out.mkdir()
    for name in ("sites", "public", "stores", "homes"):
        shutil.copytree(first / name, out / name, copy_function=shutil.copy2)
    shutil.copy2(first / "study.key", out / "study.key")
    arguments = ["demo", "--out", str(out), "--rounds", "6", "--rows", "512", "--json", "--no-comparators"]
    process = subprocess.Popen(
        [*COMMAND, *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        # a test run that was put in the background has SIGINT ignored, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    end = time.monotonic() + 300
    while not (out / "run" / "rounds" / "0002.json").exists() and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(stop)
    assert process.wait(timeout=60) == status
    last_json(cytosae(*arguments))
    same = json.loads((first / "report.json").read_text())["dictionary"]["sha256"]
    assert json.loads((out / "report.json").read_text())["dictionary"]["sha256"] == same


@pytest.mark.shared
def test_real_cells_reach_the_federation_target(shared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("demo", "--quick", "--sites", str(shared / "data" / "sites"), "--out", str(out), "--json")
    line = last_json(cytosae(*arguments))
    assert line["federated_fvu"] / line["pooled_fvu"] <= 1.05 and len(line["sites"]) >= 4
    report = json.loads((out / "report.json").read_text())
    assert "DISCLOSURE CONTROL OFF" in report["watermarks"]
    comparators, sites = report["comparators"], report["sites"]
    for site, values in sites.items():
        assert values["fvu"] / comparators["pooled"][site] <= 1.10
        others = [row[site] for trained, row in comparators["local_only"].items() if trained != site]
        assert values["fvu"] < min(others) and values["fvu"] < comparators["pca"][site]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "--sites", "missing"), "Expected a folder"),
        (("study", "run", "missing.yaml"), "Expected a file"),
        (("sae", "show", "missing"), "Expected a dictionary"),
        (("concepts", "list", "missing.json"), "Expected a report"),
        (("site", "check", "missing"), "Expected"),
        (("study", "show", "missing.yaml"), "Expected a file"),
        ((*AGENT, "--study", "missing.yaml", "--study-key", "zz"), "Expected a file"),
        (("site", "relay", "nowhere", "agent.sock"), "Expected"),
        (("audit", "verify", "missing"), "Expected"),
        (("encoder", "check", "resnet"), "Expected"),
    ],
)
def test_bad_input_is_a_sentence_without_a_traceback(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=120, cwd=tmp_path, env=os.environ
    )
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
