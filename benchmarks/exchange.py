"""One exchange with a site over real Flower: relay and warm agent, a ClientApp that works by itself, bare bytes.

    python -m benchmarks.exchange --json

The three kinds of site are asked in turn, in one run: warm / torch is what the agent saves, warm / bare its cost.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.exchange_bundle.exchange_work import work
from tests.flower_bench import FlowerBench

HERE = Path(__file__).resolve().parent / "exchange_bundle"
PROJECT = """[project]
name = "exchange"
version = "0.1.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "cytosae"
fab-include = ["exchange_apps.py", "exchange_work.py"]
[tool.flwr.app.components]
serverapp = "exchange_apps:server"
clientapp = "exchange_apps:client"
[tool.flwr.app.config]
study = ""
"""
SITES = ("warm", "bare", "torch")


def measure(sizes: list[int], repeats: int, folder: Path) -> list[dict[str, float]]:
    """Median seconds per kind of site and size; ratios."""
    ready = {size: work(size) for size in sizes}
    app = folder / "exchange"
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    for path in HERE.glob("*.py"):
        shutil.copy(path, app)
    plan = [(site, size) for size in sizes for _ in range(repeats) for site in SITES]
    (folder / "plan.json").write_text(
        json.dumps([("torch", sizes[0]), *plan])
    )  # the first unpacks the bundle
    (folder / "flower").mkdir()
    handlers = {
        "warm": lambda request: work(int(request)), "bare": lambda request: ready[int(request)],
        "torch": lambda request: b"never asked",
    }  # fmt: skip
    with FlowerBench(folder / "flower", handlers, fallback=["torch"]) as bench:
        status = bench.run_study(folder, 60 + 60.0 * len(plan), app=app)
        if status != "finished:completed":
            raise SystemExit(f"Expected the run to complete, got {status}.\n{bench.run_log()}")
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()][1:]
    return [_row(size, [line for line in lines if line["size"] == size]) for size in sizes]


def _row(size: int, lines: list[dict[str, float]]) -> dict[str, float]:
    took = {
        site: statistics.median(
            line["seconds"] for line in lines if line["site"] == site and not line["fault"]
        )
        for site in SITES
    }
    ratios = {"warm_over_torch": took["warm"] / took["torch"], "warm_over_bare": took["warm"] / took["bare"]}
    return {
        "bytes": size,
        "n": len(lines) / len(SITES),
        **{f"{site}_s": took[site] for site in SITES},
        **ratios,
    }


def main() -> int:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1 << 10, 6 << 20, 150 << 20])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps({"rows": measure(options.sizes, options.repeats, Path(name))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
