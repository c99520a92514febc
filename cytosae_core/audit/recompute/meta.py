"""Random-effects meta-analysis of AUROCs, written again without numpy: formulas in docs/auditor.md."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

ERRORS = (1e-6, 1.0)
KEYS = ("estimate", "low", "high", "prediction_low", "prediction_high", "tau2", "i2", "h2")


def meta_of(aurocs: Sequence[float], errors: Sequence[float]) -> dict[str, Any]:
    """What a concept's `meta` in report.json must be, from the AUROCs and standard errors that it shows."""
    inside = all(0 < a < 1 for a in aurocs) and all(ERRORS[0] <= error <= ERRORS[1] for error in errors)
    if len(aurocs) < 3 or not inside:
        return {**dict.fromkeys(KEYS), "sites": len(aurocs), "status": "not_estimable"}
    y = [math.log(a / (1 - a)) for a in aurocs]
    v = [(error / (a * (1 - a))) ** 2 for a, error in zip(aurocs, errors, strict=True)]
    tau2, df, w0 = reml(y, v), len(y) - 1, [1 / item for item in v]
    w = [1 / (item + tau2) for item in v]
    mean = _dot(w, y) / sum(w)
    variance = max(_dot(w, [(item - mean) ** 2 for item in y]) / (df * sum(w)), 1 / sum(w))
    typical = df * sum(w0) / _pairs(w0)
    half, wide = t_quantile(df) * math.sqrt(variance), t_quantile(df - 1) * math.sqrt(tau2 + variance)
    ends = [
        (1 + math.tanh(item / 2)) / 2 for item in (mean, mean - half, mean + half, mean - wide, mean + wide)
    ]
    spread = [tau2, tau2 / (tau2 + typical), (tau2 + typical) / typical]
    return {**dict(zip(KEYS, ends + spread, strict=True)), "sites": len(y), "status": "estimated"}


def reml(y: Sequence[float], v: Sequence[float]) -> float:
    """Between-study variance: where the restricted likelihood is flat, 0 when it falls from there."""

    def slope(tau2: float) -> float:
        w = [1 / (item + tau2) for item in v]
        mean = _dot(w, y) / sum(w)
        return _dot(w, [a * (b - mean) ** 2 for a, b in zip(w, y, strict=True)]) - _pairs(w) / sum(w)

    low, high = 0.0, 1.0
    if slope(low) <= 0:
        return low
    while slope(high) > 0:
        high *= 2
    while high - low > 1e-13 * max(high, 1e-3):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low


@functools.cache
def t_quantile(df: int) -> float:
    """97.5 % quantile of Student's t with whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    low, high = 0.0, 13.0
    while high - low > 1e-12:
        t = (low + high) / 2
        low, high = (t, high) if _two_sided(t, df) < 0.95 else (low, t)
    return low


def _two_sided(t: float, df: int) -> float:
    angle = math.atan(t / math.sqrt(df))
    term = math.cos(angle) if df % 2 else 1.0
    total = term if df > 1 else 0.0
    for step in range(2 + df % 2, df - 1, 2):
        term *= math.cos(angle) ** 2 * (step - 1) / step
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if df % 2 else math.sin(angle) * total


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _pairs(w: Sequence[float]) -> float:
    """(sum w)^2 - sum w^2, from products of pairs."""
    return 2 * math.fsum(a * b for index, a in enumerate(w) for b in w[:index])
