"""Random-effects meta-analysis of AUROCs, written again without numpy: formulas in docs/auditor.md."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import accumulate

ERRORS = (1e-6, 1.0)
MIN_SITES = 3
HALF_STEP = 0.0005
THIRD = -0.43072729929545756  # 1/3 quantile of the normal distribution
ENDS = ("mean", "low", "high", "prediction_low", "prediction_high")
KEYS = ("estimate", "low", "high", "prediction_low", "prediction_high", "tau2", "i2", "h2")


def logit_effects(aurocs: Sequence[float], errors: Sequence[float]) -> tuple[list[float], list[float]]:
    """ln(A / (1 - A)) and (SE / (A (1 - A)))^2 of the sites that have both; NaN or SE > 1: the site has not.

    Released AUROCs have 3 decimals: 0 and 1 become .0005 and .9995, and an error below .0005 becomes that.
    """
    y, v = [], []
    for auroc, error in zip(aurocs, errors, strict=True):
        if math.isnan(auroc) or not error <= ERRORS[1]:
            continue
        inside = min(max(auroc, HALF_STEP), 1 - HALF_STEP)
        y.append(math.log(inside / (1 - inside)))
        v.append((max(error, HALF_STEP) / (inside * (1 - inside))) ** 2)
    return y, v


def concept_of(aurocs: Sequence[float], errors: Sequence[float]) -> dict[str, float | None]:
    """A concept's pooled columns in report.json, from its sites' AUROCs and standard errors at its target."""
    y, v = logit_effects(aurocs, errors)
    names = (*KEYS, "p", "probability_new_site")
    if len(y) < MIN_SITES:
        return dict.fromkeys(names)
    fit = fit_of(y, v)
    ends = {name: expit(fit[other]) for name, other in zip(KEYS[:5], ENDS, strict=True)}
    return {
        **ends,
        **{name: fit[name] for name in ("tau2", "i2", "h2", "p")},
        "probability_new_site": _side(fit),
    }


def p_of(aurocs: Sequence[float], errors: Sequence[float]) -> float:
    """Only the p-value that a concept's effect is none, NaN with fewer than 3 sites: quicker than `concept_of`."""
    y, v = logit_effects(aurocs, errors)
    if len(y) < MIN_SITES:
        return math.nan
    mean, variance = _pooled(y, v, reml(y, v))
    return _tail(abs(mean) / math.sqrt(variance), len(y) - 1)


def _pooled(y: Sequence[float], v: Sequence[float], tau2: float) -> tuple[float, float]:
    """Mean and its variance (HKSJ, not below that without scatter)."""
    w = [1 / (item + tau2) for item in v]
    total = math.fsum(w)
    mean = _dot(w, y) / total
    scatter = _dot(w, [(item - mean) ** 2 for item in y]) / (len(y) - 1)
    return mean, max(scatter, 1.0) / total


def _side(fit: dict[str, float]) -> float:
    """Probability that a new site's true effect is on the pooled effect's side of 0."""
    above = probability_above(fit, 0.0)
    return above if fit["mean"] >= 0 else 1 - above


def probability_above(fit: dict[str, float], threshold: float) -> float:
    """Probability that a new site's true effect lies above `threshold`, on the scale of the fit."""
    away = (fit["centre"] - threshold) / fit["spread"]
    return 0.5 + math.copysign(_two_sided(abs(away), round(fit["sites"]) - 2), away) / 2


def expit(value: float) -> float:
    """1 / (1 + exp(-x))."""
    return (1 + math.tanh(value / 2)) / 2


def fit_of(y: Sequence[float], v: Sequence[float]) -> dict[str, float]:
    """Random effects of at least 3 sites, on the scale of `y`: mean, variance, ends, tau2, i2, h2, q, p, sites."""
    tau2, df, w0 = reml(y, v), len(y) - 1, [1 / item for item in v]
    mean, variance = _pooled(y, v, tau2)
    typical = df * math.fsum(w0) / _pairs(w0)
    centre, spread = _new_site(y, v, upper_tau2(y, v, tau2))
    half, wide = t_quantile(df) * math.sqrt(variance), t_quantile(df - 1) * spread
    equal = _dot(w0, y) / math.fsum(w0)
    return {
        "mean": mean, "variance": variance, "low": mean - half, "high": mean + half,
        "prediction_low": centre - wide, "prediction_high": centre + wide, "centre": centre, "spread": spread,
        "tau2": tau2, "i2": tau2 / (tau2 + typical), "h2": (tau2 + typical) / typical,
        "q": _dot(w0, [(item - equal) ** 2 for item in y]),
        "p": _tail(abs(mean) / math.sqrt(variance), df), "sites": float(len(y)),
    }  # fmt: skip


def _new_site(y: Sequence[float], v: Sequence[float], tau2: float) -> tuple[float, float]:
    """Centre and spread of a new site's true effect, for the tau^2 that prediction intervals use."""
    mean, variance = _pooled(y, v, tau2)
    return mean, math.sqrt(tau2 + variance)


def upper_tau2(y: Sequence[float], v: Sequence[float], at: float) -> float:
    """Upper 2/3 confidence limit of tau^2, where Q falls to the 1/3 quantile of chi^2 (Wilson and Hilferty), found by
    Newton; `at` when it lies below."""
    df = len(y) - 1
    target = df * (1 - 2 / (9 * df) + THIRD * math.sqrt(2 / (9 * df))) ** 3
    for _ in range(300):
        w = [1 / (item + at) for item in v]
        mean = _dot(w, y) / math.fsum(w)
        rest = [(item - mean) ** 2 for item in y]
        step = (_dot(w, rest) - target) / max(_dot([item * item for item in w], rest), 1e-300)
        if step <= 1e-11 * at:
            break
        at += step
    return at


def reml(y: Sequence[float], v: Sequence[float]) -> float:
    """Between-study variance: 0 when the restricted likelihood falls from there, else where it is flat for the first
    time, bracketed by 1e-4, 8e-4, ...; then Fisher scoring inside the bracket, which is halved after 12 steps."""
    at, low, high = 0.0, 0.0, 1e-4
    slope, speed = _slope(y, v, at)
    if slope <= 0:
        return 0.0
    while (found := _slope(y, v, high))[0] > 0:
        (slope, speed), at, low, high = found, high, high, 8 * high
    for step in range(100):
        new = at + slope / speed
        if not low < new < high or step >= 12:
            new = (low + high) / 2
        slope, speed = _slope(y, v, new)
        low, high = (new, high) if slope > 0 else (low, new)
        done, at = abs(new - at) <= 1e-11 * new, new
        if done:
            break
    return at


def _slope(y: Sequence[float], v: Sequence[float], tau2: float) -> tuple[float, float]:
    """Twice the slope of the restricted log likelihood at tau^2, and twice its expected information there."""
    w = [1 / (item + tau2) for item in v]
    total, mean = math.fsum(w), _dot(w, y) / math.fsum(w)
    two, three = _dot(w, w), math.fsum(item**3 for item in w)
    slope = math.fsum((a * (b - mean)) ** 2 for a, b in zip(w, y, strict=True)) - _pairs(w) / total
    return slope, max(two - 2 * three / total + (two / total) ** 2, 1e-300)


@functools.cache
def t_quantile(df: int) -> float:
    """97.5 % quantile of Student's t with whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    low, high = 0.0, 13.0
    while high - low > 1e-12:
        t = (low + high) / 2
        low, high = (t, high) if _two_sided(t, df) < 0.95 else (low, t)
    return low


def _tail(t: float, df: int) -> float:
    """Probability of a larger |t|. Small ones by the series of the incomplete beta function I_x(df / 2, 1 / 2) with
    x = df / (df + t^2), DLMF 8.17.8: 1 - `_two_sided` has no digits left there."""
    if (found := 1 - _two_sided(t, df)) > 1e-5:
        return found
    a, x, term, total = df / 2, df / (df + t * t), 1.0, 0.0
    for step in range(100_000):
        total += (added := term * a / (a + step))
        term *= x * (step + 0.5) / (step + 1)
        if added < 1e-17 * total:
            break
    log_beta = math.lgamma(a) + math.lgamma(0.5) - math.lgamma(a + 0.5)
    return math.exp(a * math.log(x) - log_beta) / a * total


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
    return 2 * math.fsum(a * b for a, b in zip(w, (0.0, *accumulate(w)), strict=False))
