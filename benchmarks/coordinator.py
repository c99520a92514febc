"""Coordinator's memory with many sites, and what LocalGrid adds to the sites' own work.

python -m benchmarks.coordinator --sites 100 --json
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.fake_sites import make
from cytosae_server.coordinator import Coordinator
from cytosae_server.loop import StudyRun
from cytosae_server.runfolder import RunFolder
from cytosae_server.transport import LocalGrid


def measure(sites: int, n: int, d: int, rounds: int) -> dict[str, float]:
    """Peak resident memory in MB and milliseconds per round and site beyond the site's own work."""
    marks: list[tuple[float, float]] = []

    def watch(event: str, details: object) -> None:
        if event == "round":
            marks.append((time.perf_counter(), sum(fake.busy_s for fake in fakes.values())))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study, key, fakes = make(sites, n, d, rounds, folder / "sites")
        grid = LocalGrid({site: fake.handle for site, fake in fakes.items()})
        coordinator = Coordinator(study, key, {site: fake.key.public_hex for site, fake in fakes.items()})
        StudyRun(coordinator, grid, RunFolder(folder / "run", study), {}, watch).run()
        grid.close()
    wall, busy = marks[-1][0] - marks[0][0], marks[-1][1] - marks[0][1]
    return {
        "sites": sites,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "overhead_ms_per_round_and_site": 1000 * (wall - busy) / (len(marks) - 1) / sites,
        "site_ms_per_round": 1000 * busy / (len(marks) - 1) / sites,
    }


def main() -> int:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(json.dumps(measure(options.sites, options.rows, options.width, options.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
