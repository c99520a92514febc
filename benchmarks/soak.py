"""`make soak`: a long study over real Flower. Do memory and files stay bounded?

    python -m benchmarks.soak --rounds 200 --sites 5 --json

SuperLink, executor, SuperNodes and relays are real processes with TLS; the sites answer without data. Resident memory
of every process and the sizes of the database and of the run folder are taken while it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.fake_sites import make
from cytosae_core.keys import SigningKey
from cytosae_server.study import write_study_folder
from tests.flower_bench import FlowerBench
from tests.flower_processes import MARK

EVERY_S = 10.0
NAMES = ("flower-superlink", "flower-superexec", "flower-supernode", "cytosae_client.relay", "flwr-serverapp")


def soak(sites: int, n: int, d: int, rounds: int, folder: Path) -> dict[str, object]:
    """Run one study; samples of memory (MB, largest process of each kind) and of files (MB) over its rounds."""
    out = folder / "out"
    out.mkdir()
    key = SigningKey.load_or_create(out / "study.key")
    study, _, fakes = make(sites, n, d, rounds, folder / "sites", key)
    pinned = {site: fake.key.public_hex for site, fake in fakes.items()}
    write_study_folder(out, study, {}, pinned, key.public_hex)
    samples: list[dict[str, float]] = []
    (folder / "flower").mkdir()

    def look() -> bool:
        if not samples or time.monotonic() - samples[-1]["t"] > EVERY_S:
            samples.append(_sample(folder / "flower", out))
        return False

    begun = time.monotonic()
    with FlowerBench(folder / "flower", {site: fake.handle for site, fake in fakes.items()}) as bench:
        status = bench.run_study(out, timeout_s=60 + 30 * rounds, during=look)
        samples.append(_sample(folder / "flower", out))
    return {"status": status, "seconds": time.monotonic() - begun, **_judge(samples), "samples": samples}


def _sample(flower: Path, out: Path) -> dict[str, float]:
    found = {"t": time.monotonic(), "rounds": float(len(list((out / "run" / "rounds").glob("*.json"))) - 1)}
    found["db_mb"] = sum(path.stat().st_size for path in flower.glob("superlink.db*")) / 1e6
    found["run_mb"] = sum(_size(path) for path in (out / "run").rglob("*")) / 1e6
    return found | {f"{name} rss_mb": 0.0 for name in NAMES} | _memory(str(flower))


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _memory(folder: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, StopIteration):
            environment = (entry / "environ").read_bytes()
            if MARK.encode() not in environment or folder.encode() not in environment:
                continue
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            name = next(name for name in NAMES if name in command)
            pages = int((entry / "statm").read_text().split()[1])
            key = f"{name} rss_mb"
            found[key] = max(found.get(key, 0.0), pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
    return found


def _judge(samples: list[dict[str, float]]) -> dict[str, object]:
    """Growth per 100 rounds, fitted over the second half of the rounds."""
    done = [sample for sample in samples if sample["rounds"] >= samples[-1]["rounds"] / 2]
    x = np.array([sample["rounds"] for sample in done])
    growth = {}
    for name in samples[-1]:
        values = np.array([sample[name] for sample in done])
        runs = values > 0  # the ServerApp ends with the study
        if name not in ("t", "rounds") and len(set(x[runs])) > 2:
            growth[name] = round(float(np.polyfit(x[runs], values[runs], 1)[0] * 100), 3)
    return {"rounds": samples[-1]["rounds"], "last": samples[-1], "growth_per_100_rounds": growth}


def main() -> int:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(soak(options.sites, options.rows, options.width, options.rounds, Path(name))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
