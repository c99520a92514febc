"""What explains the spread between sites, and how reliable an agreement is. numpy and scipy.

explained   1 - tau^2 with a covariate / tau^2 without, both by REML (Raudenbush 2009), not below 0
corrected   r / sqrt(reliability a x reliability b) (Spearman 1904): what would agree without noise at the sites
psi         sum (p - q) ln(p / q) over shared bins; .1 is small, .25 an alarm
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from .meta import reml_table

Floats = NDArray[np.float64]
MIN_COVARIATE_SITES = 4
PSI_FLOOR = 1e-4


def explained(y: Floats, v: Floats, covariate: Floats) -> Floats:
    """Share [m] of the spread between sites that one number per site explains.

    Args:
        y, v: effects and variances [m, sites], NaN where unknown.
        covariate: [sites], NaN where unknown.

    Returns:
        NaN with fewer than 4 sites, without spread to explain, or when the covariate is the same at all of them.
    """
    out = np.full(len(y), np.nan)
    for row in range(len(y)):
        known = ~(np.isnan(y[row]) | np.isnan(v[row]) | np.isnan(covariate))
        if known.sum() >= MIN_COVARIATE_SITES and np.ptp(covariate[known]) > 0:
            out[row] = _share(y[row][known], v[row][known], covariate[known])
    return out


def _share(y: Floats, v: Floats, covariate: Floats) -> float:
    alone = float(reml_table(y[None], v[None], np.ones((1, len(y)), bool))[0])
    if alone <= 0:
        return float("nan")
    return max(0.0, 1 - _reml(y, v, covariate) / alone)


def _reml(y: Floats, v: Floats, covariate: Floats) -> float:
    """tau^2 of the meta-regression on intercept and covariate."""
    design = np.stack([np.ones(len(y)), covariate - covariate.mean()], axis=1)

    def slope(tau2: float) -> float:
        weight = 1 / (v + tau2)
        inner = np.linalg.inv(design.T @ (weight[:, None] * design))
        rest = np.diag(weight) - weight[:, None] * (design @ inner @ design.T) * weight
        fitted = rest @ y
        return float(fitted @ fitted - np.trace(rest))

    if slope(0.0) <= 0:
        return 0.0
    high = 1.0
    while slope(high) > 0:
        high *= 2
    return float(brentq(slope, 0.0, high, xtol=1e-12))


def disattenuated(r: float, reliability_a: float, reliability_b: float) -> float | None:
    """r without the noise of the two sites' own values; None unless both reliabilities are above 0."""
    if not (reliability_a > 0 and reliability_b > 0):
        return None
    return float(r / np.sqrt(reliability_a * reliability_b))


def spearman_brown(half: float) -> float:
    """Reliability of all units from the correlation of two halves of them."""
    return 2 * half / (1 + half) if half > -1 else float("nan")


def psi(p: NDArray[Any], q: NDArray[Any]) -> float:
    """Population stability index of two distributions over the same bins; empty bins count as 1e-4."""
    a, b = np.maximum(p, PSI_FLOOR), np.maximum(q, PSI_FLOOR)
    return float(((a - b) * np.log(a / b)).sum())
