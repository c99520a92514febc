"""report.json: how pictures were taken, what that explains, drift of a site from the others, and what is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import COUNTS, IMAGE_FACTS
from .evidence import Evidence, Json, mean_of, rounded
from .heterogeneity import psi

Floats = NDArray[np.float64]
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

    A fact's index is given only where the site and at least one other released every bin: a withheld bin would have
    to be guessed.
    """
    fvus = {site: e.quality("final", site).get("fvu") for site in e.sites}
    shares = {site: [_shares(e, site, row) for row in range(len(IMAGE_FACTS))] for site in e.sites}
    sites = {site: _drift_of(site, fvus, shares) for site in e.sites}
    return {
        "reference": "mean of the others",
        "alarms": {"psi": PSI_ALARM, "fvu_ratio": FVU_ALARM},
        "sites": sites,
    }


def _drift_of(site: str, fvus: dict[str, float | None], shares: dict[str, list[Floats | None]]) -> Json:
    found: dict[str, float | None] = {}
    for row, name in enumerate(IMAGE_FACTS):
        own, others = shares[site][row], [table[row] for other, table in shares.items() if other != site]
        known = [share for share in others if share is not None]
        found[name] = None if own is None or not known else rounded(float(psi(own, np.mean(known, axis=0))))
    rest, fvu = mean_of([value for other, value in fvus.items() if other != site]), fvus[site]
    ratio = rounded(fvu / rest) if fvu is not None and rest else None
    alarms = [f"PSI of {name}" for name, value in found.items() if value is not None and value > PSI_ALARM]
    if ratio is not None and ratio > FVU_ALARM:
        alarms.append("FVU")
    return {"psi": found, "fvu_ratio": ratio, "alarms": alarms}


def _shares(e: Evidence, site: str, row: int) -> Floats | None:
    table = e.small[site].get("image_histogram")
    if table is None or np.isnan(table[row]).any() or table[row].sum() <= 0:
        return None
    counts = table[row].astype(np.float64)
    return np.asarray(counts / counts.sum())


def missing(e: Evidence) -> Json:
    """What is not there, per site: images outside the classes, values withheld, steps that failed."""
    return {site: _missing_of(e, site) for site in e.study.sites}


def _missing_of(e: Evidence, site: str) -> Json:
    counts = e.result.counts.get(site)
    images = _known(counts, COUNTS.index("images"))
    classes = [_known(counts, len(COUNTS) + place) for place in range(len(e.study.statistics.classes))]
    outside = None
    if images is not None and classes and all(count is not None for count in classes):
        outside = max(0, images - sum(count or 0 for count in classes))
    return {
        "listed": None,  # sites do not say how many images they listed and could not read
        "stored": images,
        "outside_classes": outside,
        "withheld_values": sum(e.result.suppressed.get(site, {}).values()),
        "faults": [
            f"{step}: {code}" if step else code for name, step, code in e.result.faults if name == site
        ],
    }


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
