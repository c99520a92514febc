"""`cytosae concepts compare-statistics`: published or extracted statistics of several data sets, side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def register(commands: Any) -> None:
    """Add the command to `cytosae concepts`."""
    parser = commands.add_parser(
        "compare-statistics",
        help="do data sets use the same concepts? from published or extracted statistics",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="two or more data-set folders")
    parser.add_argument(
        "--report", type=Path, metavar="OUT", help="also write OUT/report.json and report.html"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    from cytosae_core.concepts.compare import compare
    from cytosae_core.concepts.datasets import read_dataset

    from .progress import Display

    with Display() as display:
        display.say(f"- reading {len(options.folders)} data sets")
        found = [read_dataset(folder) for folder in options.folders]
        display.say("- correlations, overlaps and their intervals (200 resamples of the concepts)")
        result = compare(found, seed=options.seed)
    if options.report:
        from cytosae_core.report.statistics import build_statistics_report
        from cytosae_server.study import write_report

        write_report(options.report, build_statistics_report(found, result, seed=options.seed))
    if options.json:
        print(json.dumps(result))
    else:
        _print(result, options.report)
    return 0


def _print(result: dict[str, Any], report: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    sets = Table(title="Data sets")
    for name in ("data set", "images", "never active", "f > 1 %", "image L0", "core", "mass in core"):
        sets.add_column(name, justify="left" if name == "data set" else "right")
    for name, row in result["datasets"].items():
        counts = [f"{row[key]:,}" for key in ("images", "never_active", "f_gt_1pct")]
        sets.add_row(
            name, *counts, f"{row['image_l0']:,.0f}", f"{row['core']:,}", f"{row['mass_in_core']:.2%}"
        )
    console.print(sets)
    pairs = Table(title="Pairs: value [95 % interval over concepts]")
    for name in ("", *(f"{pair['a']} - {pair['b']}" for pair in result["pairs"])):
        pairs.add_column(name)
    for key in (key for key in result["pairs"][0] if key not in ("a", "b")):
        pairs.add_row(key, *(_cell(pair[key]) for pair in result["pairs"]))
    console.print(pairs)
    if report:
        console.print(f"Wrote {report}/report.html and report.json.")


def _cell(entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return "not available"
    low, high = entry["ci"]
    return f"{entry['value']:.3f}\n[{low:.3f}, {high:.3f}]"
