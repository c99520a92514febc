"""A study between hospitals for tests: the coordinator's folder, phantom cells, commands as their users type them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cytosae_core.canonical import sha256_hex
from cytosae_core.cohort import read_cohort
from cytosae_core.config import (
    DictionaryConfig,
    EncoderConfig,
    RoundsConfig,
    StatisticsConfig,
    StudyConfig,
    TrainingConfig,
)
from cytosae_core.encoder import build_store, load_encoder
from cytosae_core.keys import SigningKey
from cytosae_core.phantom import CLASSES, DEMO_SITES, generate_site
from cytosae_core.processes import MARK
from cytosae_core.sae.init import public_centroids
from cytosae_core.tensors import pack_tensors
from cytosae_server.study import write_study_folder
from tests.flower_processes import Processes

PATIENTS, ROWS = 36, 64
STEPS = ("reinhard", "cell-mask")
CYTOSAE = str(Path(sys.executable).parent / "cytosae")
Json = dict[str, Any]


def cytosae(folder: Path, *words: str, code: int = 0, within: Sequence[str] = ()) -> Json:
    """One command in a folder, perhaps within a namespace; its JSON."""
    command = [*within, CYTOSAE, *words, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return dict(json.loads(done.stdout)) if done.stdout.strip() else {"said": done.stderr}


def make_study(
    folder: Path, data: Path, sites: Sequence[str], *, rounds: int, deadline_s: float
) -> StudyConfig:
    """The coordinator's folder before any site joined: protocol, key, public start."""
    encoder = load_encoder("dinov2-s-demo", layer=3, steps=STEPS)
    generate_site(data / "public", DEMO_SITES[3], patients=8, cells_per_patient=1, seed=9)
    some = build_store(read_cohort(data / "public"), encoder, data / "public-store")
    rng = np.random.default_rng(0)
    tokens = some.gather(rng.integers(some.n_images, size=1000), rng.integers(257, size=1000))
    start = {"centroids": public_centroids(tokens, ROWS, seed=0)}
    study = StudyConfig(
        name="three commands",
        sites=tuple(sorted(sites)),
        simulation=True,
        encoder=EncoderConfig(layer=3, steps=STEPS, digest=some.encoder_digest),
        dictionary=DictionaryConfig(n=ROWS, k=8, digest=sha256_hex(pack_tensors(start))),
        training=TrainingConfig(rounds=rounds, local_steps=5, batch_tokens=64),
        rounds=RoundsConfig(quorum=2, deadline_s=deadline_s),
        statistics=StatisticsConfig(classes=CLASSES, eval_tokens=512),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_study_folder(folder, study, start, {}, SigningKey.load_or_create(folder / "study.key").public_hex)
    return study


@contextlib.contextmanager
def party_processes(folder: Path) -> Iterator[Processes]:
    """Processes of a test; what is left of them or of their children at the end fails it."""
    (folder / "logs").mkdir()
    names = ("PATH", "HOME", "OMP_WAIT_POLICY")
    found = Processes(folder / "logs", {name: os.environ[name] for name in names if name in os.environ})
    try:
        yield found
    finally:
        try:
            found.stop()
        finally:
            left = supervised_below(folder)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        assert not left, f"Expected no supervised process after the test, got {left}."


def supervised_below(folder: Path) -> list[int]:
    """Children of supervisors whose logs lie below a folder."""
    out = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={folder}".encode() in (entry / "environ").read_bytes():
                out.append(int(entry.name))
    return out


def until(ready: Callable[[], Any], timeout_s: float, what: str, processes: Processes) -> Any:
    """Wait; a program that dies again and again ends the wait at once."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := ready():
            return value
        log = processes.log("coordinator")
        assert log.count("started again") < 4, processes.logs()
        time.sleep(0.2)
    raise AssertionError(f"Expected {what} within {timeout_s} s.\n{processes.logs()}")
