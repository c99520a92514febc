"""Time and memory of a report: statistics are collected already, per-site tables lie on disk.

python -m benchmarks.report --sites 100 --concepts 49152 --json

Making the tables is a process of its own, so that its time and memory are not counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also as a script: python benchmarks/report.py

from benchmarks.made_studies import load_result, made_study, save_result
from cytosae_core.report.build import build_report
from cytosae_server.study import write_report


def measure(folder: Path, sites: int, concepts: int) -> dict[str, float]:
    """Seconds and peak resident memory of building and writing all files of a report."""
    study = made_study(sites, concepts)
    before = peak_mb()
    started = time.perf_counter()
    result = load_result(study, folder / "run")
    report = dict(build_report(study, result))
    built = time.perf_counter()
    write_report(folder, report)
    done = time.perf_counter()
    size = {
        name: (folder / name).stat().st_size / 1e6 for name in ("report.json", "report.html", "report.csv")
    }
    return {
        "sites": sites,
        "concepts": concepts,
        "seconds": done - started,
        "build_s": built - started,
        "write_s": done - built,
        "peak_rss_mb": peak_mb(),
        "start_rss_mb": before,
        "html_mb": size["report.html"],
        "pages": len(list(folder.glob("*.html"))),
        "pages_mb": sum(path.stat().st_size for path in folder.glob("*.html")) / 1e6,
        "json_mb": size["report.json"],
        "csv_mb": size["report.csv"],
    }


def peak_mb() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--concepts", type=int, default=6144)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, spawn = Path(name), multiprocessing.get_context("spawn")
        maker = spawn.Process(target=save_result, args=(folder / "run", options.sites, options.concepts))
        maker.start()
        maker.join()
        if maker.exitcode:
            return 1
        print(json.dumps(measure(folder, options.sites, options.concepts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
