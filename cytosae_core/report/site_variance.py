"""The shortcut check from sums: how much of a concept's variance within a class is between sites? numpy only.

    m0, m1   a site's class mean of the concept in the first and in the second half of its units
    B        covariance over sites of m0 and m1: noise of the two halves is independent, so B is free of it
    W        mean over sites of the variance within site and class
    share    B / (B + W), mean over classes; the null pairs m0 of a site with m1 of another one
    high     the same with the largest B' that would give so small a B one time in five (a score interval, 80 %):
             B' - z sqrt(((B' + e)^2 + B'^2) / (S - 1)) = B, z = .8416, e = max(0, sqrt(var m0 var m1) - B)

A share of .185 is what two equally large groups of sites have that one concept tells apart with AUROC .75 (normal
scores: distance .954 standard deviations, B = (.954 / 2)^2); .121 is AUROC .70. Fitted and checked on other units:
a difference that only one half shows does not count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Array = NDArray[Any]
MIN_SITES = 3
Z = 0.8416  # 80 % of a normal distribution lie below
HALVES = ("count", "m0", "m1", "both")


class Shares(NamedTuple):
    """Share of the variance between sites, its upper limit (80 %), and its null: [n] each."""

    share: Floats
    high: Floats
    null: Floats


@dataclass
class SiteVariance:
    """Sums over sites, added one at a time: memory does not grow with their number. All arrays are [c, n]."""

    _sums: dict[str, Floats] = field(default_factory=dict)
    _before: Floats | None = None  # null: each site that can say with the next one that can
    _opening: Floats | None = None

    def add(self, mean: Array, half_mean: Array, variance: Array) -> None:
        """One site's class means over all units and over the first half, and variance within class; NaN: withheld."""
        whole, first = mean.astype(np.float64), half_mean.astype(np.float64)
        second, within = 2 * whole - first, variance.astype(np.float64)
        known = ~(np.isnan(whole) | np.isnan(first) | np.isnan(within))
        values = {
            "count": np.ones_like(whole),
            "m0": first,
            "m1": second,
            "both": first * second,
            "square0": first**2,
            "square1": second**2,
            "w": within,
        }
        for name, value in values.items():
            self._add(name, np.where(known, value, 0.0))
        first, second = np.where(known, first, np.nan), np.where(known, second, np.nan)
        if self._before is None or self._opening is None:
            self._before, self._opening = first, second
            return
        self._add_null(self._before, second)
        self._before = np.where(known, first, self._before)
        self._opening = np.where(np.isnan(self._opening), second, self._opening)

    def _add_null(self, first: Floats, second: Floats) -> None:
        known = ~(np.isnan(first) | np.isnan(second))
        values = {
            "null_count": np.ones_like(first),
            "null0": first,
            "null1": second,
            "null_both": first * second,
        }
        for name, value in values.items():
            self._add(name, np.where(known, value, 0.0))

    def _add(self, name: str, value: Floats) -> None:
        if name in self._sums:
            self._sums[name] += value
        else:
            self._sums[name] = value.copy()

    def shares(self) -> Shares:
        """What is known of all sites; NaN with fewer than 3 sites in every class."""
        if self._before is None or self._opening is None:
            return Shares(np.zeros(0), np.zeros(0), np.zeros(0))
        self._add_null(self._before, self._opening)  # the last site with the first one
        self._opening = None
        total = self._sums
        count = total["count"]
        between = _covariance(*(total[name] for name in HALVES))
        null = _covariance(total["null_count"], total["null0"], total["null1"], total["null_both"])
        spread = [_covariance(count, total[m], total[m], total[f"square{m[1]}"]) for m in ("m0", "m1")]
        most = _upper(between, np.sqrt(np.maximum(spread[0], 0) * np.maximum(spread[1], 0)), count)
        within = total["w"] / np.maximum(count, 1)
        return Shares(_share(between, within), _share(most, within), _share(null, within))


def _upper(between: Floats, spread: Floats, count: Floats) -> Floats:
    """The largest B' of the module's text (a score interval): the larger root of a quadratic in B'."""
    noise, k = np.maximum(spread - between, 0), (np.maximum(count, MIN_SITES) - 1) / Z**2
    middle = k * between + noise
    root = np.sqrt(np.maximum(middle**2 - (k - 2) * (k * between**2 - noise**2), 0))
    return np.asarray((middle + root) / (k - 2))


def _covariance(count: Floats, first: Floats, second: Floats, both: Floats) -> Floats:
    enough = count >= MIN_SITES
    size = np.where(enough, count, MIN_SITES)
    return np.where(enough, (both - first * second / size) / (size - 1), np.nan)


def _share(between: Floats, within: Floats) -> Floats:
    """Mean over classes of B / (B + W); a negative B counts as 0. 0 for a concept that never varies."""
    positive = np.maximum(between, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(positive + within > 0, positive / (positive + within), 0.0)
    share = np.where(np.isnan(between), np.nan, share)
    known = ~np.isnan(share)
    total = np.where(known, share, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)
