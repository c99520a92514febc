"""Concepts of report.json as rows: the columnar tables, one concept at a time. Standard library only.

`columns` are the tensors of report-sites.safetensors (`columns.read_columns`), needed when the per-site tables of a
large study are not in report.json itself; without them every per-site value is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = dict[str, Any]
Columns = Mapping[str, Any]  # tensor name -> [sites][rows of the dictionary]
SITE_TABLES = ("auroc", "auroc_se", "firing_rate")
NAMED = {"target": "targets", "verdict": "verdicts", "state": "states", "review_term": "terms"}


def concept_count(report: Mapping[str, Any]) -> int:
    """Number of concepts in a report of a study; 0 for a report without them."""
    found = report.get("concepts")
    return int(found["count"]) if isinstance(found, Mapping) and "count" in found else 0


def verdict_counts(report: Mapping[str, Any]) -> dict[str, int]:
    """Number of concepts per verdict, in the report's order of verdicts."""
    return _counts(report, "verdict")


def state_counts(report: Mapping[str, Any]) -> dict[str, int]:
    """Number of concepts per state, weakest state first."""
    return _counts(report, "state")


def _counts(report: Mapping[str, Any], column: str) -> dict[str, int]:
    if not concept_count(report):
        return {}
    concepts = report["concepts"]
    values = concepts["columns"][column]
    return {name: values.count(index) for index, name in enumerate(concepts[NAMED[column]])}


def concept_rows(report: Mapping[str, Any], columns: Columns | None = None) -> Iterator[Json]:
    """Every concept as one dict, strongest states first.

    Keys: every column by its name (`target`, `verdict`, `state` as names, target None when there is none), but the
    mean firing rate is `mean_firing_rate`; `gates`: {name: 1 pass, 0 fail, -1 not assessed}; `auroc`: {site: {value,
    se} or None}; `firing_rate`: {site: value or None}.
    """
    for place in range(concept_count(report)):
        yield concept_row(report, place, columns)


def concept_row(report: Mapping[str, Any], place: int, columns: Columns | None = None) -> Json:
    """The concept at one place of the columns."""
    concepts = report["concepts"]
    row = {name: values[place] for name, values in concepts["columns"].items()}
    for name, table in NAMED.items():
        row[name] = concepts[table][row[name]] if row[name] >= 0 else None
    row["gates"] = {name: values[place] for name, values in concepts["gate_values"].items()}
    row["mean_firing_rate"] = row["firing_rate"]
    at = _SiteValues(concepts["tables"], columns)
    values, errors = (at.values(name, place, row["row"]) for name in SITE_TABLES[:2])
    row["auroc"] = {
        site: None if value is None else {"value": value, "se": errors.get(site)}
        for site, value in values.items()
    }
    row["firing_rate"] = at.values("firing_rate", place, row["row"])
    return row


class _SiteValues:
    """Where per-site values lie: in the report (order of the columns) or in the file (order of the dictionary)."""

    def __init__(self, tables: Mapping[str, Any], columns: Columns | None) -> None:
        self._tables, self._columns = tables, columns

    def values(self, name: str, place: int, row: int) -> dict[str, float | None]:
        if "file" not in self._tables:
            return {site: values[place] for site, values in self._tables[name]["sites"].items()}
        sites = self._tables["sites"]
        if self._columns is None:
            return dict.fromkeys(sites)
        return {site: _known(self._columns[name][index][row], name) for index, site in enumerate(sites)}


def _known(value: float, name: str) -> float | None:
    """A float32 of the file as report.json would show it."""
    number = float(value)
    if number != number:
        return None
    return round(number, 4) if name == "auroc" else float(f"{number:.4g}")
