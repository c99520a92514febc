"""`report diff`: what differs between two reports, for people and for programs. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .rows import concept_count, state_counts, verdict_counts

Json = dict[str, Any]
Report = Mapping[str, Any]
NUMBERS = (
    "status",
    "value",
    "interval",
    "prediction",
    "tau2",
    "probability_new_site",
    "threshold",
    "passes",
    "n",
)
TOLERANCE = 1e-9


def diff(a: Report, b: Report) -> list[Json]:
    """Differences as {part, name, before, after}: protocol, verdict, sites, headlines, states and verdicts of
    concepts, and how many concepts changed their state (found by the digest of their row)."""
    return [item for item in _all(a, b) if not _same(item["before"], item["after"])]


def _all(a: Report, b: Report) -> Iterator[Json]:
    for name, path in (
        ("study", ("study", "name")),
        ("protocol", ("study", "protocol_sha256")),
        ("dictionary", ("dictionary", "sha256")),
        ("stage", ("protocol", "stage")),
        ("integrity", ("integrity", "status")),
    ):
        yield _item("study", name, _at(a, *path), _at(b, *path))
    changes = (len(_at(report, "protocol", "deviations") or []) for report in (a, b))
    yield _item("study", "deviations", *changes)
    for name in ("state", "worst_site"):
        yield _item("verdict", name, _at(a, "verdict", name), _at(b, "verdict", name))
    yield from _sites(a, b)
    yield from _headlines(a, b)
    yield from _concepts(a, b)


def _item(part: str, name: str, before: Any, after: Any) -> Json:
    return {"part": part, "name": name, "before": before, "after": after}


def _at(report: Report, *path: str) -> Any:
    found: Any = report
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _sites(a: Report, b: Report) -> Iterator[Json]:
    before, after = (_at(report, "sites") or {} for report in (a, b))
    for site in dict.fromkeys([*before, *after]):
        states = [_at(sites, site, "status") for sites in (before, after)]
        yield _item("sites", site, *states)


def _headlines(a: Report, b: Report) -> Iterator[Json]:
    before, after = ({part["id"]: part for part in report.get("headlines") or []} for report in (a, b))
    for name in dict.fromkeys([*before, *after]):
        for key in NUMBERS:
            yield _item("headlines", f"{name}.{key}", _at(before, name, key), _at(after, name, key))


def _concepts(a: Report, b: Report) -> Iterator[Json]:
    yield _item("concepts", "count", concept_count(a), concept_count(b))
    for counts in (state_counts, verdict_counts):
        before, after = counts(a), counts(b)
        for name in dict.fromkeys([*before, *after]):
            yield _item("concepts", name, before.get(name, 0), after.get(name, 0))
    before, after = _states(a), _states(b)
    moved = sum(before[row] != after[row] for row in before.keys() & after.keys())
    yield _item("concepts", "same row, other state", 0, moved)


def _states(report: Report) -> Json:
    """State of every row of the dictionary, by the digest of the row."""
    if not concept_count(report):
        return {}
    part = report["concepts"]
    names = part["states"]
    columns = part["columns"]
    return {row: names[state] for row, state in zip(columns["digest"], columns["state"], strict=True)}


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_same, before, after))
    if isinstance(before, float) or isinstance(after, float):
        numbers = all(isinstance(value, int | float) for value in (before, after))
        return numbers and abs(before - after) <= TOLERANCE * max(1.0, abs(before))
    return bool(before == after)


def lines(found: list[Json]) -> list[str]:
    """One line per difference."""
    return [
        f"{item['part']}  {item['name']}: {_shown(item['before'])} -> {_shown(item['after'])}"
        for item in found
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
