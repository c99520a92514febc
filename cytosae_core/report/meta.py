"""Random-effects meta-analysis across sites: one effect, its spread between sites, and where a new site would lie.

    y = ln(A / (1 - A)), v = (SE / (A (1 - A)))^2 for an AUROC A with standard error SE
    tau^2 by REML; w* = 1 / (v + tau^2); mu = sum w* y / sum w*
    Var(mu) = max(Hartung-Knapp-Sidik-Jonkman, 1 / sum w*); interval with t(S - 1)
    prediction interval mu' +- t(S - 2) sqrt(tau'^2 + Var(mu')) (Higgins et al. 2009), where tau'^2 is the larger of
        tau^2 and its upper 2/3 confidence limit: Q(tau'^2) = the 1/3 quantile of chi^2(S - 1) (Q profile, Viechtbauer
        2007). With tau^2 alone the interval of 20 sites covers 85 % where spread is small (docs/decisions/009)
    I^2 = tau^2 / (tau^2 + v~), H^2 = (tau^2 + v~) / v~, v~ = (S - 1) sum w / ((sum w)^2 - sum w^2), w = 1 / v

The verifier computes the same without numpy (audit/recompute/meta.py); both must agree to 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import t as student

Array = NDArray[np.float64]
MIN_SITES = 3
ERRORS = (1e-6, 1.0)  # of an AUROC: smaller ones are degenerate, larger ones impossible
LEVEL = 0.975
THIRD = -0.43072729929545756  # 1/3 quantile of the normal distribution
SCORING_STEPS, STEPS, NEWTON_STEPS = 12, 100, 300
FIRST = 1e-4  # end of the first bracket of tau^2
NEAR = 1e-11  # relative change of tau^2 that ends the search
METHODS = ("EE", "DL", "REML")
KEYS = ("estimate", "low", "high", "prediction_low", "prediction_high", "tau2", "i2", "h2")


@dataclass(frozen=True)
class Fit:
    """A fitted model on the scale of the effects.

    Attributes:
        mean, variance: mu and Var(mu) (Hartung-Knapp-Sidik-Jonkman, not below 1 / sum w*).
        tau2, i2, h2: spread between sites. q: Cochran's Q.
        low, high: 95 % interval of the mean. prediction: 95 % interval of a new site's true effect.
        centre, spread: of the new site's effect, which has a t distribution with S - 2 degrees of freedom about them.
    """

    mean: float
    variance: float
    tau2: float
    i2: float
    h2: float
    q: float
    low: float
    high: float
    prediction: tuple[float, float]
    centre: float
    spread: float


def random_effects(y: Array, v: Array, method: str = "REML") -> Fit:
    """Fit effects `y` with sampling variances `v` (> 0) of at least 3 sites.

    Args:
        method: REML, DL (DerSimonian-Laird) or EE (equal effects, tau^2 = 0), for tau^2.
    """
    if len(y) < MIN_SITES or len(y) != len(v) or not (np.isfinite(y).all() and (v > 0).all()):
        raise ValueError(f"Expected effects and positive variances of at least {MIN_SITES} sites.")
    if method not in METHODS:
        raise ValueError(f"Expected method in {METHODS}, got method={method!r}.")
    df, weight = len(y) - 1, 1 / v
    q = float(weight @ (y - weight @ y / weight.sum()) ** 2)
    typical = float(df * weight.sum() / _pairs(weight))
    tau2 = {"EE": lambda: 0.0, "DL": lambda: _dl(q, weight), "REML": lambda: reml(y, v)}[method]()
    star = 1 / (v + tau2)
    mean = float(star @ y / star.sum())
    variance = float(max(star @ (y - mean) ** 2 / df, 1.0) / star.sum())
    half = float(student.ppf(LEVEL, df)) * np.sqrt(variance)
    centre, spread = _new_site(y, v, upper_tau2(y, v, tau2))
    wide = float(student.ppf(LEVEL, df - 1)) * spread
    i2, h2 = tau2 / (tau2 + typical), (tau2 + typical) / typical
    ends = (centre - wide, centre + wide)
    return Fit(mean, variance, tau2, i2, h2, q, mean - half, mean + half, ends, centre, spread)


def _new_site(y: Array, v: Array, tau2: float) -> tuple[float, float]:
    weight = 1 / (v + tau2)
    mean = float(weight @ y / weight.sum())
    variance = max(float(weight @ (y - mean) ** 2) / (len(y) - 1), 1.0) / float(weight.sum())
    return mean, float(np.sqrt(tau2 + variance))


def upper_tau2(y: Array, v: Array, at: float) -> float:
    """Upper 2/3 confidence limit of tau^2, where Q falls to the quantile, or `at` when it lies below.

    Newton's steps on the convex, falling Q never pass the root.
    """
    target = third_of_chi2(len(y) - 1)
    for _ in range(NEWTON_STEPS):
        weight = 1 / (v + at)
        rest = (y - weight @ y / weight.sum()) ** 2
        step = (float(weight @ rest) - target) / max(float(weight**2 @ rest), 1e-300)
        if step <= NEAR * at:
            break
        at += step
    return at


def third_of_chi2(df: int) -> float:
    """The 1/3 quantile of chi^2 by Wilson and Hilferty (1931): .828 for 2 degrees of freedom (exactly .811)."""
    return float(df * (1 - 2 / (9 * df) + THIRD * np.sqrt(2 / (9 * df))) ** 3)


def _dl(q: float, weight: Array) -> float:
    return float(max(0.0, (q - (len(weight) - 1)) / (_pairs(weight) / weight.sum())))


def _pairs(weight: Array) -> float:
    """(sum w)^2 - sum w^2, without its cancellation when one weight outweighs all others."""
    return float(2 * np.triu(np.outer(weight, weight), 1).sum())


def reml(y: Array, v: Array) -> float:
    """tau^2 where the restricted likelihood is flat for the first time; 0 when it falls from there.

    The root is bracketed in steps that do not depend on the data (1e-4, 8e-4, ...), so that other programs find the
    same one; then Fisher scoring inside the bracket, which is halved after 12 steps.
    """
    at, low, high = 0.0, 0.0, FIRST
    slope, speed = _slope(y, v, at)
    if slope <= 0:
        return 0.0
    while (found := _slope(y, v, high))[0] > 0:
        (slope, speed), at, low, high = found, high, high, 8 * high
    for step in range(STEPS):
        new = at + slope / speed
        if not low < new < high or step >= SCORING_STEPS:
            new = (low + high) / 2
        slope, speed = _slope(y, v, new)
        low, high = (new, high) if slope > 0 else (low, new)
        done, at = abs(new - at) <= NEAR * new, new
        if done:
            break
    return at


def _slope(y: Array, v: Array, tau2: float) -> tuple[float, float]:
    """Twice the slope of the restricted log likelihood at tau^2, and twice its expected information there."""
    weight = 1 / (v + tau2)
    total, two = float(weight.sum()), float(weight @ weight)
    fit = float(weight**2 @ (y - weight @ y / total) ** 2)
    information = two - 2 * float((weight**3).sum()) / total + (two / total) ** 2
    return fit - _pairs(weight) / total, max(information, 1e-300)


def meta_auroc(aurocs: Sequence[float], errors: Sequence[float | None]) -> dict[str, Any]:
    """A concept's `meta` in report.json, from released AUROCs and standard errors of the sites that have both.

    `status` is `not_estimable`, and every number None, with fewer than 3 sites, an AUROC of exactly 0 or 1 (its
    logit is infinite) or an error that is missing or outside `ERRORS`.
    """
    auroc = np.array(aurocs, dtype=np.float64)
    error = np.array([0.0 if value is None else value for value in errors], dtype=np.float64)
    inside = (auroc > 0).all() and (auroc < 1).all()
    inside &= (error >= ERRORS[0]).all() and (error <= ERRORS[1]).all()
    if len(auroc) < MIN_SITES or not inside:
        return {**dict.fromkeys(KEYS), "sites": len(auroc), "status": "not_estimable"}
    fit = random_effects(logit(auroc), (error / (auroc * (1 - auroc))) ** 2)
    ends = [float(expit(value)) for value in (fit.mean, fit.low, fit.high, *fit.prediction)]
    numbers = dict(zip(KEYS, [*ends, fit.tau2, fit.i2, fit.h2], strict=True))
    return {**numbers, "sites": len(auroc), "status": "estimated"}
