"""A study between hospitals on loopback, by its commands only: invite, join, confirm, check, start, serve, report.

Real TLS, real Caddy, real Flower; every party is processes of its own with a folder of its own. On the way one site's
SuperNode and the coordinator's SuperLink are killed: nobody is asked, and the study completes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_core.canonical import sha256_hex
from cytosae_core.cohort import read_cohort
from cytosae_core.config import (
    DictionaryConfig,
    EncoderConfig,
    RoundsConfig,
    StatisticsConfig,
    StudyConfig,
    TrainingConfig,
)  # fmt: skip
from cytosae_core.encoder import build_store, load_encoder
from cytosae_core.keys import SigningKey
from cytosae_core.phantom import CLASSES, DEMO_SITES, generate_site
from cytosae_core.sae.init import public_centroids
from cytosae_core.tensors import pack_tensors
from cytosae_server.study import write_study_folder
from tests.flower_processes import Processes, free_ports

pytestmark = pytest.mark.flower
SITES, PATIENTS, ROWS, ROUNDS = DEMO_SITES[:2], 36, 64, 3
CYTOSAE = str(Path(sys.executable).parent / "cytosae")
Json = dict[str, Any]


def cytosae(folder: Path, *words: str, code: int = 0) -> Json:
    """One command in a folder; its JSON."""
    done = subprocess.run(
        [CYTOSAE, *words, "--json"], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return dict(json.loads(done.stdout)) if done.stdout.strip() else {"said": done.stderr}


def make_study(folder: Path, data: Path) -> None:
    """The coordinator's folder, before any site joined."""
    encoder = load_encoder("dinov2-s-demo", layer=3, steps=("reinhard", "cell-mask"))
    generate_site(data / "public", DEMO_SITES[3], patients=8, cells_per_patient=1, seed=9)
    some = build_store(read_cohort(data / "public"), encoder, data / "public-store")
    rng = np.random.default_rng(0)
    tokens = some.gather(rng.integers(some.n_images, size=1000), rng.integers(257, size=1000))
    start = {"centroids": public_centroids(tokens, ROWS, seed=0)}
    study = StudyConfig(
        name="three commands", sites=tuple(sorted(site.name for site in SITES)), simulation=True,
        encoder=EncoderConfig(layer=3, steps=("reinhard", "cell-mask"), digest=some.encoder_digest),
        dictionary=DictionaryConfig(n=ROWS, k=8, digest=sha256_hex(pack_tensors(start))),
        training=TrainingConfig(rounds=ROUNDS, local_steps=5, batch_tokens=64),
        rounds=RoundsConfig(quorum=2, deadline_s=120.0),
        statistics=StatisticsConfig(classes=CLASSES, eval_tokens=512),
    )  # fmt: skip
    key = SigningKey.load_or_create(folder / "study.key")
    write_study_folder(folder, study, start, {}, key.public_hex)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    (tmp_path / "logs").mkdir()
    names = ("PATH", "HOME", "OMP_WAIT_POLICY")
    found = Processes(tmp_path / "logs", {name: os.environ[name] for name in names if name in os.environ})
    try:
        yield found
    finally:
        found.stop()


def until(ready: Callable[[], Any], timeout_s: float, what: str, processes: Processes) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := ready():
            return value
        assert processes.log("coordinator").count("started again") < 4, processes.logs()
        time.sleep(0.2)
    raise AssertionError(f"Expected {what} within {timeout_s} s.\n{processes.logs()}")


def test_from_an_invite_to_a_report(tmp_path: Path, processes: Processes) -> None:
    desk, study = tmp_path / "desk", tmp_path / "desk" / "out"
    study.mkdir(parents=True)
    make_study(study, tmp_path / "data")
    port = free_ports(1)[0]
    endpoint = f"127.0.0.1:{port}"
    for site in SITES:
        cytosae(desk, "study", "invite", site.name, "out", "--endpoint", endpoint)
    start = [CYTOSAE, "study", "start", str(study), "--listen", endpoint, "--wait", "300"]
    processes.start("coordinator", start)
    until(lambda: "The study is open" in processes.log("coordinator"), 120, "an open study", processes)
    homes = {}
    for index, site in enumerate(SITES):
        place = tmp_path / site.name
        generate_site(place / "cells", site, patients=PATIENTS, cells_per_patient=1, seed=index)
        joined = cytosae(place, "site", "join", str(desk / f"{site.name}.invite.json"), "--yes")
        assert joined["enrolled"]
        homes[site.name] = Path(joined["home"])
        confirm = ["study", "confirm", site.name, "out", "--fingerprint"]
        assert "Somebody else" in cytosae(desk, *confirm, "no", code=1)["said"]
        cytosae(desk, *confirm, joined["site_fingerprint"])
        checked = cytosae(place, "site", "check", "cells")
        assert not checked["failed"] and checked["dry_round"]["stopped"] is None
        processes.start(f"serve {site.name}", [CYTOSAE, "site", "serve", "--home", str(homes[site.name])])
    until((study / "run" / "rounds" / "0001.json").exists, 300, "the first round", processes)
    state = json.loads((study / "net" / "state.json").read_text())
    os.kill(state["children"]["superlink"]["pid"], signal.SIGKILL)
    site_state = json.loads((homes[SITES[0].name] / "state.json").read_text())
    os.kill(site_state["children"]["supernode"]["pid"], signal.SIGKILL)
    until((study / "report.json").exists, 400, "a report", processes)
    until(lambda: "Report:" in processes.log("coordinator"), 60, "the end of start", processes)
    report = json.loads((study / "report.json").read_text())
    assert len(report["rounds"]) == ROUNDS
    assert all(report["sites"][site.name]["status"] == "reported" for site in SITES)
    for site in SITES:
        assert processes.end(f"serve {site.name}", signal.SIGTERM) == 0
        spent = cytosae(tmp_path / site.name, "site", "ledger")
        assert spent["spent"]["rounds"] == ROUNDS
    for words in (("study", "bundle", "out", "--to", "bundle"), ("audit", "verify", "bundle")):
        done = subprocess.run([CYTOSAE, *words], cwd=desk, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
