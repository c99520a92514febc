"""Random-effects meta-analysis across sites: an effect, its spread between sites, and where a new site would lie.

    tau^2 by REML; w* = 1 / (v + tau^2); mu = sum w* y / sum w*
    Var(mu) = max(Hartung-Knapp-Sidik-Jonkman, 1 / sum w*); interval with t(S - 1)
    prediction interval mu' +- t(S - 2) sqrt(tau'^2 + Var(mu')) (Higgins et al. 2009), where tau'^2 is the larger of
        tau^2 and its upper 2/3 confidence limit: Q(tau'^2) = the 1/3 quantile of chi^2(S - 1) (Q profile, Viechtbauer
        2007). With tau^2 alone the interval of 20 sites covers 85 % where spread is small (docs/decisions/009)
    I^2 = tau^2 / (tau^2 + v~), H^2 = (tau^2 + v~) / v~, v~ = (S - 1) sum w / ((sum w)^2 - sum w^2), w = 1 / v

Many rows at once: all that still move are worked on together, in chunks that fit the processor's cache. The verifier
computes the same without numpy (audit/recompute/meta.py); both must agree to 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
MIN_SITES = 3
LEVEL = 0.975
THIRD = -0.43072729929545756  # 1/3 quantile of the normal distribution
SCORING_STEPS, STEPS, NEWTON_STEPS = 12, 100, 300
FIRST = 1e-4  # end of the first bracket of tau^2
NEAR = 1e-11  # relative change of tau^2 that ends the search
CHUNK = 1024  # rows that are worked on at once: with 100 sites a table of .8 MB, which stays in the processor's cache


@dataclass(frozen=True)
class Fit:
    """A fitted model on the scale of the effects.

    Attributes:
        mean, variance: mu and Var(mu) (Hartung-Knapp-Sidik-Jonkman, not below 1 / sum w*).
        tau2, i2, h2: spread between sites. q: Cochran's Q. i2_q: max(0, (Q - (S - 1)) / Q).
        low, high: 95 % interval of the mean. prediction_low, prediction_high: of a new site's true effect.
        centre, spread: of the new site's effect, which has a t distribution with S - 2 degrees of freedom about them.
    """

    mean: float
    variance: float
    tau2: float
    i2: float
    i2_q: float
    h2: float
    q: float
    low: float
    high: float
    prediction_low: float
    prediction_high: float
    centre: float
    spread: float


@dataclass(frozen=True)
class FitTable:
    """`Fit` as arrays [m], NaN with fewer than 3 sites, and more. `p`: two-sided, of mean = 0, by the HKSJ t with
    S - 1 degrees of freedom; `sites`: known effects."""

    mean: Floats
    variance: Floats
    tau2: Floats
    i2: Floats
    i2_q: Floats
    h2: Floats
    q: Floats
    low: Floats
    high: Floats
    prediction_low: Floats
    prediction_high: Floats
    p: Floats
    centre: Floats
    spread: Floats
    sites: Floats


def random_effects(y: Floats, v: Floats, method: str = "REML") -> Fit:
    """Fit effects `y` [sites] with sampling variances `v` (> 0) of at least 3 sites. `method`: see `METHODS`."""
    if y.ndim != 1 or len(y) < MIN_SITES:
        raise ValueError(f"Expected effects of at least {MIN_SITES} sites.")
    found = random_effects_table(y[None], v[None], method)
    return Fit(**{item.name: float(getattr(found, item.name)[0]) for item in fields(Fit)})


def random_effects_table(y: Floats, v: Floats, method: str = "REML") -> FitTable:
    """Fit every row of effects `y` [m, sites] with variances `v` (> 0); NaN in either: the site is unknown there.

    Raises:
        ValueError: other shapes, a variance that is not above 0, or a method that is not in `METHODS`.
    """
    if method not in METHODS:
        raise ValueError(f"Expected method in {sorted(METHODS)}, got method={method!r}.")
    if y.ndim != 2 or y.shape != v.shape:
        raise ValueError("Expected effects and variances of the same shape [m, sites].")
    known = ~(np.isnan(y) | np.isnan(v))
    if (v[known] <= 0).any() or not np.isfinite(y[known]).all():
        raise ValueError("Expected finite effects and variances above 0.")
    out = FitTable(*(np.full(len(y), np.nan) for _ in fields(FitTable)))
    out.sites[:] = known.sum(axis=1)
    rows = np.flatnonzero(out.sites >= MIN_SITES)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        _fit(
            out,
            part,
            np.where(known[part], y[part], 0.0),
            np.where(known[part], v[part], 1.0),
            known[part],
            method,
        )
    return out


def _fit(out: FitTable, rows: NDArray[np.int64], y: Floats, v: Floats, known: Mask, method: str) -> None:
    count = known.sum(axis=1).astype(np.float64)
    df = count - 1
    weight = known / v
    total = weight.sum(axis=1)
    q = (weight * (y - _mean(weight, y)[:, None]) ** 2).sum(axis=1)
    typical = df * total / _pairs(weight)
    tau2 = METHODS[method](y, v, known)
    star = known / (v + tau2[:, None])
    mean = _mean(star, y)
    spread = (star * (y - mean[:, None]) ** 2).sum(axis=1) / df
    variance = np.maximum(spread, 1.0) / star.sum(axis=1)
    half = student.ppf(LEVEL, df) * np.sqrt(variance)
    centre, new = _new_site(y, v, known, upper_tau2_table(y, v, known, tau2))
    wide = student.ppf(LEVEL, df - 1) * new
    values = {
        "mean": mean, "variance": variance, "tau2": tau2, "i2": tau2 / (tau2 + typical),
        "i2_q": np.where(q > 0, np.maximum(0.0, (q - df) / np.where(q > 0, q, 1.0)), 0.0),
        "h2": (tau2 + typical) / typical, "q": q, "low": mean - half, "high": mean + half,
        "prediction_low": centre - wide, "prediction_high": centre + wide, "centre": centre, "spread": new,
        "p": 2 * student.sf(np.abs(mean) / np.sqrt(variance), df),
    }  # fmt: skip
    for name, value in values.items():
        getattr(out, name)[rows] = value


def _new_site(y: Floats, v: Floats, known: Mask, tau2: Floats) -> tuple[Floats, Floats]:
    """Centre and spread of a new site's true effect."""
    weight = known / (v + tau2[:, None])
    mean = _mean(weight, y)
    scatter = (weight * (y - mean[:, None]) ** 2).sum(axis=1) / (known.sum(axis=1) - 1)
    return mean, np.sqrt(tau2 + np.maximum(scatter, 1.0) / weight.sum(axis=1))


def upper_tau2_table(y: Floats, v: Floats, known: Mask, tau2: Floats) -> Floats:
    """Upper 2/3 confidence limit of tau^2 [m], where Q falls to the 1/3 quantile of chi^2 (Wilson and Hilferty 1931:
    .828 for 2 degrees of freedom, exactly .811), or `tau2` when that lies below. Newton's steps on the convex,
    falling Q never pass the root."""
    df = known.sum(axis=1) - 1.0
    target = df * (1 - 2 / (9 * df) + THIRD * np.sqrt(2 / (9 * df))) ** 3
    out, rows = tau2.copy(), np.arange(len(y))
    for _ in range(NEWTON_STEPS):
        if not len(rows):
            break
        weight = known[rows] / (v[rows] + out[rows, None])
        rest = (y[rows] - _mean(weight, y[rows])[:, None]) ** 2
        step = ((weight * rest).sum(axis=1) - target[rows]) / np.maximum(
            (weight**2 * rest).sum(axis=1), 1e-300
        )
        on = step > NEAR * out[rows]
        rows = rows[on]
        out[rows] += step[on]
    return out


def _mean(weight: Floats, y: Floats) -> Floats:
    return np.asarray((weight * y).sum(axis=1) / weight.sum(axis=1))


def _pairs(weight: Floats) -> Floats:
    """(sum w)^2 - sum w^2 as twice the sum of all products of two: no cancellation."""
    before = np.cumsum(weight, axis=1) - weight
    return np.asarray(2 * (weight * before).sum(axis=1))


def reml_table(y: Floats, v: Floats, known: Mask) -> Floats:
    """tau^2 [m] where the restricted likelihood is flat for the first time; 0 when it falls from there.

    The root is bracketed in steps that do not depend on the data (1e-4, 8e-4, ...), so that other programs find the
    same one; then Fisher scoring inside the bracket, which is halved after 12 steps. `y` and `v` hold anything finite
    (v > 0) where `known` is false.
    """
    out = np.zeros(len(y))
    slope, speed = _slope(y, v, known, out)
    rows = np.flatnonzero(slope > 0)
    low, high, slope, speed = _bracketed(y, v, known, rows, slope[rows], speed[rows])
    y, v, known, at = y[rows], v[rows], known[rows], low
    for number in range(STEPS):
        if not len(rows):
            break
        step = at + slope / speed
        inside = (step > low) & (step < high) & (number < SCORING_STEPS)
        new = np.where(inside, step, (low + high) / 2)
        slope, speed = _slope(y, v, known, new)
        low, high = np.where(slope > 0, new, low), np.where(slope <= 0, new, high)
        out[rows] = new
        on = np.abs(new - at) > NEAR * new
        rows, y, v, known, at = rows[on], y[on], v[on], known[on], new[on]
        slope, speed, low, high = slope[on], speed[on], low[on], high[on]
    return out


def _bracketed(
    y: Floats, v: Floats, known: Mask, rows: NDArray[np.int64], slope: Floats, speed: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Ends of the first bracket (1e-4, 8e-4, ...) that holds a root, and the slope at its lower end."""
    low, high, on = np.zeros(len(rows)), np.full(len(rows), FIRST), np.arange(len(rows))
    while len(on):
        found = _slope(y[rows[on]], v[rows[on]], known[rows[on]], high[on])
        up = found[0] > 0
        on = on[up]
        slope[on], speed[on] = found[0][up], found[1][up]
        low[on], high[on] = high[on], 8 * high[on]
    return low, high, slope, speed


def _slope(y: Floats, v: Floats, known: Mask, tau2: Floats) -> tuple[Floats, Floats]:
    """Twice the slope of the restricted log likelihood at tau^2, and twice its expected information there."""
    weight = known / (v + tau2[:, None])
    total, square = weight.sum(axis=1), weight**2
    two, three = square.sum(axis=1), (square * weight).sum(axis=1)
    fit = (square * (y - _mean(weight, y)[:, None]) ** 2).sum(axis=1)
    slope = fit - _pairs(weight) / total
    return slope, np.maximum(two - 2 * three / total + (two / total) ** 2, 1e-300)


def _dl(y: Floats, v: Floats, known: Mask) -> Floats:
    """DerSimonian and Laird 1986."""
    weight = known / v
    q = (weight * (y - _mean(weight, y)[:, None]) ** 2).sum(axis=1)
    return np.asarray(np.maximum(0.0, (q - (known.sum(axis=1) - 1)) * weight.sum(axis=1) / _pairs(weight)))


METHODS: dict[str, Callable[[Floats, Floats, Mask], Floats]] = {
    "REML": reml_table,
    "DL": _dl,
    "EE": lambda y, v, known: np.zeros(len(y)),  # equal effects
}


def probability_above(fit: FitTable, threshold: float) -> Floats:
    """Probability [m] that a new site's true effect lies above `threshold`; NaN with fewer than 3 sites."""
    df = np.where(fit.sites >= MIN_SITES, fit.sites - 2, np.nan)
    return np.asarray(student.sf((threshold - fit.centre) / fit.spread, df))
