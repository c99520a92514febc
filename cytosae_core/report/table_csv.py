"""report.csv: one line per concept, RFC 4180. Cells that a spreadsheet would run as a formula are made text."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from .rows import NAMED, concept_count

COLUMNS = (
    "id", "row", "digest", "target", "verdict", "state", "sites", "mean", "estimate", "low", "high", "prediction_low",
    "prediction_high", "tau2", "i2", "h2", "p", "q", "probability_new_site", "recurrence_sites", "recurrence",
    "recurrence_init", "recurrence_null", "site_accuracy", "site_null", "site_share",
    "site_share_high", "site_share_null",
    "confound",
    "confound_of", "adjusted", "ablation", "ablation_rank", "replicated", "firing_rate",
    "review_raters", "review_term", "review_agreement",
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def header(report: Mapping[str, Any]) -> list[str]:
    """Names of the cells: columns, then one per gate (1 pass, 0 fail, empty: not assessed)."""
    return [*COLUMNS, *(f"gate_{name}" for name in report["concepts"]["gates"])]


def lines(report: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Cells of every concept, in the report's order; an unknown number is empty."""
    concepts = report["concepts"]
    columns = [_cells(concepts, name) for name in COLUMNS]
    columns += [
        ["" if value < 0 else value for value in concepts["gate_values"][name]] for name in concepts["gates"]
    ]
    return (list(cells) for cells in zip(*columns, strict=True))


def _cells(concepts: Mapping[str, Any], name: str) -> list[Any]:
    values = concepts["columns"][name]
    names = concepts["facts"] if name == "confound_of" else concepts[NAMED[name]] if name in NAMED else None
    if names is not None:
        shown = [plain(text) for text in names]
        return ["" if value < 0 else shown[value] for value in values]
    return ["" if value is None else value for value in values]


def plain(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe goes before its first character."""
    return f"'{text}" if text.startswith(FORMULA) else text


def write_table(report: Mapping[str, Any], stream: TextIO) -> None:
    """Write the table; `stream` was opened with newline=""."""
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(header(report))
    writer.writerows(lines(report))


def write_csv(path: Path, report: Mapping[str, Any]) -> None:
    """Write report.csv, atomically; nothing for a report without concepts."""
    if not concept_count(report):
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        write_table(report, stream)
    temporary.replace(path)
