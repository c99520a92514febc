"""Does the coordinator's memory stay flat with many sites? One statistics round over LocalGrid, real doors and logs.

    python -m benchmarks.many_sites --sites 10 1000 --json

Each number of sites runs in a process of its own, with the environment of a study's programs; the sites, which
have logs and keys but no data, in another one.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.fake_sites import make, study_of
from cytosae_core.config import StudyConfig
from cytosae_core.keys import SigningKey
from cytosae_core.processes import FLOWER
from cytosae_core.sae.first import random_rows
from cytosae_server.coordinator import Coordinator
from cytosae_server.loop import StudyRun
from cytosae_server.runfolder import RunFolder
from cytosae_server.transport import LocalGrid


def measure(sites: int, n: int, d: int) -> dict[str, float]:
    """One hello and one statistics round. Peak memory in MB before it, after it; seconds; bytes received."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, theirs = multiprocessing.Pipe()
        key = SigningKey.generate()
        arguments = (theirs, key, sites, n, d, folder / "sites")
        child = multiprocessing.get_context("fork").Process(target=_hospitals, args=arguments, daemon=True)
        child.start()
        theirs.close()
        study, keys = study_of(sites, n, d, 0), ours.recv()
        run, start = _coordinator(study, key, keys, folder / "run", ours)
        run._hello()
        before, begun = _peak(), time.perf_counter()
        run._describe_one("final", 0, start)
        seconds, after = time.perf_counter() - begun, _peak()
        size = sum(path.stat().st_size for path in (folder / "run" / "replies" / "describe-final").iterdir())
        answered = len(run.result.describe["final"])
        child.terminate()
        child.join()
    return {
        "sites": sites, "answered": answered, "peak_rss_before_mb": before, "peak_rss_mb": after,
        "seconds": seconds, "received_mb": size / 1e6,
    }  # fmt: skip


def _coordinator(
    study: StudyConfig, key: SigningKey, keys: dict[str, str], folder: Path, far: Connection
) -> tuple[StudyRun, dict[str, np.ndarray]]:
    def ask(site: str, request: bytes) -> bytes:
        far.send((site, request))
        answer: bytes = far.recv()
        return answer

    grid = LocalGrid({site: functools.partial(ask, site) for site in keys})
    n, d = study.dictionary.n, study.encoder.d
    start = {
        "dictionary": random_rows(n, d, 0), "mean": np.zeros(d, np.float32), "scale": np.ones(1, np.float32),
    }  # fmt: skip
    return StudyRun(Coordinator(study, key, keys), grid, RunFolder(folder, study), start), start


def _hospitals(far: Connection, key: SigningKey, sites: int, n: int, d: int, folder: Path) -> None:
    """All hospitals, in a process of their own."""
    fakes = make(sites, n, d, 0, folder, key)[2]
    far.send({site: fake.key.public_hex for site, fake in fakes.items()})
    while True:
        site, request = far.recv()
        far.send(fakes[site].handle(request))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Print one JSON line: one entry per number of sites, and the growth from the first to the last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--rows", type=int, default=6144)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--one", action="store_true", help="measure the one number of sites in this process")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.sites[0], options.rows, options.width)))
        return 0
    found = []
    for sites in options.sites:
        words = ["--sites", str(sites), "--rows", str(options.rows), "--width", str(options.width), "--one"]
        command = [sys.executable, "-m", "benchmarks.many_sites", *words]
        done = subprocess.run(command, env=os.environ | FLOWER, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    growth = found[-1]["peak_rss_mb"] / found[0]["peak_rss_mb"] - 1
    print(json.dumps({"runs": found, "growth": growth}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
