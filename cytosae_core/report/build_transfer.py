"""report.json: the cross-site matrix, calibration at every site, and gaps between subgroups."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import CALIBRATION, COUNTS
from .build_headlines import EQUAL
from .evidence import Evidence, Json, rounded
from .meta import MIN_SITES, random_effects

Floats = NDArray[np.float64]
OTHERS = "all other sites"
Z = 1.959963984540054


def matrix(e: Evidence) -> Json:
    """Trained on x tested on. With dictionaries of single sites (simulations): FVU. Else balanced accuracy of the
    probe of all other sites: sites do not release a probe of their own."""
    if e.comparators and e.comparators.local_only:
        return _fvu_matrix(e)
    tested = [site for site in e.study.sites if site in e.scores]
    row = [_transfer_cell(e, site) for site in tested]
    return {"endpoint": "balanced accuracy", "trained": [OTHERS], "tested": tested, "cells": [row]}


def _fvu_matrix(e: Evidence) -> Json:
    given = e.comparators.local_only if e.comparators else {}
    trained = [site for site in e.study.sites if site in given]
    rows = [[_fvu_cell(e, given[site].get(other), other) for other in e.sites] for site in trained]
    rows.append([_fvu_cell(e, e.quality("final", other).get("fvu"), other) for other in e.sites])
    return {"endpoint": "fvu", "trained": [*trained, "all sites together"], "tested": e.sites, "cells": rows}


def _fvu_cell(e: Evidence, value: float | None, site: str) -> Json | None:
    return (
        None
        if value is None
        else {"value": rounded(value), "n": _count(e, site, "test_units"), "interval": None}
    )


def _transfer_cell(e: Evidence, site: str) -> Json | None:
    table = e.scores[site]
    value = float(table["balanced_accuracy"][0]) if "balanced_accuracy" in table else float("nan")
    if math.isnan(value):
        return None
    errors = table.get("balanced_accuracy_se")
    error = float("nan") if errors is None else float(errors[0])
    ends = [max(0.0, value - Z * error), min(1.0, value + Z * error)]
    shown = None if math.isnan(error) else [rounded(end) for end in ends]
    return {"value": rounded(value), "n": _count(e, site, "units"), "interval": shown}


def _count(e: Evidence, site: str, name: str) -> int | None:
    counts = e.result.counts.get(site)
    place = COUNTS.index(name)
    return None if counts is None or np.isnan(counts[place]) else int(counts[place])


def calibration(e: Evidence) -> Json:
    """Do the probe's probabilities hold at each site? Per class, and ln(observed / expected) pooled over sites."""
    classes = e.study.statistics.classes
    sites: Json = {}
    for site, table in e.scores.items():
        if "calibration" in table:
            found = {name: _named(table["calibration"][row]) for row, name in enumerate(classes)}
            sites[site] = {name: entry for name, entry in found.items() if entry}
    known = {site: entries for site, entries in sites.items() if entries}
    pooled = {name: _pooled_oe(e, known, name) for name in classes} if known else {}
    reason = None if known else "no site released calibration (older sites, or too few units per class)"
    return {**known, "pooled": {k: v for k, v in pooled.items() if v}, "reason": reason}


def _named(values: Any) -> Json | None:
    entry = {name: rounded(value) for name, value in zip(CALIBRATION, values, strict=True)}
    return entry if any(value is not None for value in entry.values()) else None


def _pooled_oe(e: Evidence, sites: Json, name: str) -> Json | None:
    """Random effects of ln(O/E); SE(ln O/E) = sqrt((1 - O) / (n O)) with n units (Riley et al. 2021)."""
    y, v = [], []
    for site, entries in sites.items():
        entry, units = entries.get(name) or {}, _count(e, site, "units")
        observed, expected = entry.get("observed"), entry.get("expected")
        if observed and expected and units and observed < 1:
            y.append(math.log(observed / expected))
            v.append(max((1 - observed) / (units * observed), EQUAL**2))
    if len(y) < MIN_SITES:
        return None
    fit = random_effects(np.array(y), np.array(v))
    return {
        "ln_oe": rounded(fit.mean),
        "interval": [rounded(fit.low), rounded(fit.high)],
        "prediction": [rounded(end) for end in (fit.prediction_low, fit.prediction_high)],
        "sites": len(y),
    }


def subgroups(e: Evidence) -> list[Json]:
    """Balanced accuracy where a property is there minus where it is not: the interaction, pooled over sites."""
    return [_subgroup(e, row, item.name) for row, item in enumerate(e.study.statistics.subgroups)]


def _subgroup(e: Evidence, row: int, name: str) -> Json:
    sites: Json = {}
    for site, table in e.scores.items():
        if "subgroup" in table and not np.isnan(table["subgroup"][row, 0]):
            value, error = (float(item) for item in table["subgroup"][row])
            sites[site] = {"value": rounded(value), "se": rounded(error), "units": _count(e, site, "units")}
    part: Json = {"name": name, "value": None, "interval": None, "prediction": None, "sites": sites}
    usable = [entry for entry in sites.values() if entry["se"]]
    if len(usable) >= MIN_SITES:
        y, v = ([entry[key] for entry in usable] for key in ("value", "se"))
        fit = random_effects(np.array(y), np.maximum(np.array(v), EQUAL) ** 2)
        ends = {"interval": (fit.low, fit.high), "prediction": (fit.prediction_low, fit.prediction_high)}
        shown = {key: [rounded(end) for end in pair] for key, pair in ends.items()}
        return part | {"value": rounded(fit.mean), **shown, "status": "estimated", "reason": None}
    if sites:
        return part | {
            "status": "not_estimable",
            "reason": f"{len(usable)} of at least {MIN_SITES} sites have it",
        }
    asked = any("subgroup" in table for table in e.scores.values())
    why = (
        "every site withheld it: too few units with or without the property"
        if asked
        else "no site computed it"
    )
    return part | {"status": "suppressed" if asked else "not_assessed", "reason": why}
