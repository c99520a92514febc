"""report.json: how pictures were taken, what that explains, drift of a site from the others, and what is missing."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import COUNTS, IMAGE_FACTS
from .evidence import Evidence, Json, mean_of, rounded
from .psi_bound import Histogram, histogram, psi_bound

CARD = ("scanner", "objective", "um_per_px", "stain", "camera")
PSI_ALARM, FVU_ALARM = 0.25, 1.25


def acquisition(e: Evidence) -> Json:
    """Acquisition card and summaries of light, focus and cell size of every site."""
    return {site: _site(e, site) for site in e.study.sites if site in e.result.facts or site in e.sites}


def _site(e: Evidence, site: str) -> Json:
    told, small = e.result.facts.get(site, {}), e.small.get(site, {})
    facts, histogram = small.get("image_facts"), small.get("image_histogram")
    return {
        "card": {name: told.get(name) for name in CARD},
        "facts": {}
        if facts is None
        else {
            name: {"mean": rounded(facts[row, 0]), "sd": rounded(facts[row, 1])}
            for row, name in enumerate(IMAGE_FACTS)
        },
        "histogram": {}
        if histogram is None
        else {name: _counts(histogram[row]) for row, name in enumerate(IMAGE_FACTS)},
        "label_map": told.get("label_map"),
    }


def _counts(values: Any) -> list[int | None]:
    return [None if np.isnan(value) else int(value) for value in values]


def drift(e: Evidence) -> Json:
    """Every site against the mean of the others: population stability index of picture facts, and ratio of FVU.

    Where bins are withheld the index is the least that it can be (`psi_bound`); `psi_detail` says which it is, over
    how many bins and sites, or why there is none.
    """
    fvus = {site: e.quality("final", site).get("fvu") for site in e.sites}
    tables = {site: [_histogram(e, site, row) for row in range(len(IMAGE_FACTS))] for site in e.sites}
    sites = {site: _drift_of(site, fvus, tables) for site in e.sites}
    return {
        "reference": "mean of the others",
        "alarms": {"psi": PSI_ALARM, "fvu_ratio": FVU_ALARM},
        "sites": sites,
    }


def _drift_of(site: str, fvus: dict[str, float | None], tables: dict[str, list[Histogram | None]]) -> Json:
    found: dict[str, float | None] = {}
    detail: Json = {}
    for row, name in enumerate(IMAGE_FACTS):
        others = [table[row] for other, table in tables.items() if other != site]
        found[name], detail[name] = _psi(tables[site][row], [other for other in others if other is not None])
    rest, fvu = mean_of([value for other, value in fvus.items() if other != site]), fvus[site]
    ratio = rounded(fvu / rest) if fvu is not None and rest else None
    alarms = [f"PSI of {name}" for name, value in found.items() if value is not None and value > PSI_ALARM]
    if ratio is not None and ratio > FVU_ALARM:
        alarms.append("FVU")
    return {"psi": found, "psi_detail": detail, "fvu_ratio": ratio, "alarms": alarms}


def _psi(own: Histogram | None, others: list[Histogram]) -> tuple[float | None, Json]:
    made = (
        "this site did not release how this is distributed, or how many units it has"
        if own is None
        else psi_bound(own, others)
    )
    if isinstance(made, str):
        return None, {"bound": None, "bins": 0, "sites": 0, "reason": made}
    kind = "exact" if made.exact else "lower"
    return rounded(round(made.value, 9)), {
        "bound": kind,
        "bins": made.bins,
        "sites": made.sites,
        "reason": None,
    }


def _histogram(e: Evidence, site: str, row: int) -> Histogram | None:
    table = e.small[site].get("image_histogram")
    if table is None:
        return None
    units = _known(e.result.counts.get(site), COUNTS.index("units"))
    return histogram(table[row], units, _outside(e, site) == 0, e.study.min_units)


def missing(e: Evidence) -> Json:
    """What is not there, per site: images outside the classes, values withheld, steps that failed."""
    return {site: _missing_of(e, site) for site in e.study.sites}


def _missing_of(e: Evidence, site: str) -> Json:
    counts = e.result.counts.get(site)
    images = _known(counts, COUNTS.index("images"))
    listed = e.result.listed.get(site)
    told = None if listed is None or np.isnan(listed) else int(listed)
    return {
        "listed": told,
        "listed_reason": _why_not_listed(e, site),
        "stored": images,
        "unreadable": None if told is None or images is None else max(0, told - images),
        "outside_classes": _outside(e, site),
        "withheld_values": sum(e.result.suppressed.get(site, {}).values()),
        "faults": [
            f"{step}: {code}" if step else code for name, step, code in e.result.faults if name == site
        ],
    }


def _outside(e: Evidence, site: str) -> int | None:
    """Images without a class of the study; None where images or one of the classes are withheld."""
    counts = e.result.counts.get(site)
    images = _known(counts, COUNTS.index("images"))
    classes = [_known(counts, len(COUNTS) + place) for place in range(len(e.study.statistics.classes))]
    if images is None or not classes or any(count is None for count in classes):
        return None
    return max(0, images - sum(count or 0 for count in classes))


def _why_not_listed(e: Evidence, site: str) -> str | None:
    listed = e.result.listed.get(site)
    if listed is None:
        return "this site does not say how many images it lists"
    if np.isnan(listed):
        return f"fewer than {e.study.min_units} units have an image that could not be read, or too few are listed"
    return None


def stated_faults(report: Json) -> list[tuple[str, str, str]]:
    """`StudyResult.faults` back from a report that states them: (site, step, code)."""
    found = []
    for site, part in (report.get("missing") or {}).items():
        for text in part["faults"]:
            step, _, code = str(text).rpartition(": ")
            found.append((site, step, code))
    return found


def _known(counts: Any, place: int) -> int | None:
    return None if counts is None or place >= len(counts) or np.isnan(counts[place]) else int(counts[place])
