"""report.json: how much of what differs between sites goes with how their pictures were taken."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .concept_table import ConceptTable, logit_effects
from .evidence import Evidence, Json, rounded
from .heterogeneity import explained

Floats = NDArray[np.float64]
MIN_SITES = 5  # a slope, an intercept and a variance between sites from fewer say nothing
MOST = 200  # concepts with the clearest spread between sites


def heterogeneity(e: Evidence, table: ConceptTable) -> Json:
    """Per covariate the median share of tau^2 that it explains, over the concepts whose sites differ most."""
    covariates = {name: values for name, values in e.fact_means().items() if _usable(values)}
    if len(e.sites) < MIN_SITES:
        return {"explained": [], "reason": f"{len(e.sites)} sites; at least {MIN_SITES} are needed"}
    if not covariates:
        return {
            "explained": [],
            "reason": "no site released summaries of light, focus or cell size that differ",
        }
    rows = _rows(table)
    if not len(rows):
        return {"explained": [], "reason": "no concept differs between sites beyond chance"}
    y, v = _effects(e, table, rows)
    found = []
    for name, covariate in covariates.items():
        shares = np.asarray(explained(y, v, covariate), dtype=np.float64)
        known = shares[~np.isnan(shares)]
        share = rounded(float(np.median(known))) if len(known) else None
        found.append({"covariate": name, "share": share, "concepts": len(known)})
    return {"explained": found, "reason": None}


def _usable(values: Floats) -> bool:
    known = values[~np.isnan(values)]
    return len(known) >= MIN_SITES and float(np.ptp(known)) > 0


def _rows(table: ConceptTable) -> NDArray[np.int64]:
    spread = np.nan_to_num(table.columns["tau2"], nan=0.0)
    order = np.argsort(-spread, kind="stable")[:MOST]
    return np.sort(order[spread[order] > 0])


def _effects(e: Evidence, table: ConceptTable, rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Logit effects and variances [m, sites] of some concepts at their targets."""
    parts = []
    for start, stop in e.spans():
        own = rows[(rows >= start) & (rows < stop)]
        if len(own):
            target = table.columns["target"][own]
            auroc = (e.effects(start, stop) + 0.5)[:, own - start, target]
            parts.append(logit_effects(auroc, e.errors(start, stop)[:, own - start, target]))
    y, v = (np.concatenate([part[place] for part in parts], axis=1).T for place in (0, 1))
    return y, v
