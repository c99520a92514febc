"""`cytosae concepts`: concepts of a report, of local cells, and of data-set statistics."""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import Any


def register(parser: argparse.ArgumentParser) -> None:
    """Add the commands."""
    from . import compare_cli, extract_cli, scales_cli, worth_cli

    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (extract_cli, compare_cli, scales_cli, worth_cli):
        module.register(commands)
    show = commands.add_parser("list", help="concepts of a report by verdict")
    show.add_argument("report", type=Path, metavar="REPORT.json")
    show.add_argument("--verdict", choices=("holds", "differs", "no class meaning", "too few patients"))
    show.add_argument("--top", type=int, default=20)
    show.add_argument("--json", action="store_true")
    show.set_defaults(run=_list)


def _list(options: argparse.Namespace) -> int:
    from cytosae_core.canonical import parse_json
    from cytosae_core.errors import StudyError
    from cytosae_core.report.columns import columns_of
    from cytosae_core.report.rows import concept_rows

    try:
        report = parse_json(options.report.read_bytes(), max_bytes=1 << 28)
    except OSError as error:
        raise StudyError(f"Expected a report at {options.report}.", hint="Run a study first.") from error
    if not isinstance(report, dict) or "concepts" not in report:
        raise StudyError("Expected a report.json of this program.")
    columns = columns_of(report, options.report.parent)
    rows = (row for row in concept_rows(report, columns) if options.verdict in (None, row["verdict"]))
    chosen = list(islice(rows, options.top))
    if options.json:
        print(json.dumps(chosen))
    else:
        _print(chosen, list(report["sites"]))
    return 0


def _print(concepts: list[dict[str, Any]], sites: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="AUROC per site; - means too few patients")
    for name in ("concept", "verdict", "speaks of", *sites):
        table.add_column(name)
    for concept in concepts:
        cells = [concept["auroc"].get(site) for site in sites]
        shown = ["-" if cell is None else f"{cell['value']:.2f}" for cell in cells]
        table.add_row(concept["id"], concept["verdict"], concept["target"] or "-", *shown)
    Console().print(table)
