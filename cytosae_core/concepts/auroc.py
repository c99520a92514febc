"""AUROC of many concepts at once, with the unit (patient, else slide, else source file) as what is counted.

A unit enters once per side: with the mean score of its positive images and of its negative images. The standard
error is Obuchowski's (Biometrics 1997, 53:567) for clustered data, which knows that one patient may stand on
both sides; tests compare it with a bootstrap over units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class AurocTable:
    """`value` and `se` [n] (NaN where a side is empty), and the units on the smaller side."""

    value: Floats
    se: Floats
    units: int


def unit_means(scores: NDArray[np.float32], units: Ints) -> tuple[Floats, Ints]:
    """Mean score of each unit: [u, n] and the unit ids [u], sorted."""
    names, place = np.unique(units, return_inverse=True)
    total = np.zeros((len(names), scores.shape[1]))
    np.add.at(total, place, scores)
    return total / np.bincount(place)[:, None], names


def unit_auroc(scores: NDArray[np.float32], positive: NDArray[np.bool_], units: Ints) -> AurocTable:
    """AUROC of every column of `scores` [images, n] for `positive` [images], over units [images]."""
    n = scores.shape[1]
    if not positive.any() or positive.all():
        return AurocTable(np.full(n, np.nan), np.full(n, np.nan), 0)
    high, high_units = unit_means(scores[positive], units[positive])
    low, low_units = unit_means(scores[~positive], units[~positive])
    place_high, place_low = placements(high, low)
    value = place_high.mean(axis=0)
    se = _obuchowski(place_high - value, place_low - value, high_units, low_units)
    return AurocTable(value, se, min(len(high), len(low)))


def placements(high: Floats, low: Floats) -> tuple[Floats, Floats]:
    """Share of the other side that a value beats (ties count half): [h, n] and, for the low side, [l, n]."""
    h, low_count = len(high), len(low)
    ranks = rankdata(np.concatenate([high, low]), axis=0)
    place_high = (ranks[:h] - rankdata(high, axis=0)) / low_count
    place_low = 1 - (ranks[h:] - rankdata(low, axis=0)) / h
    return place_high, place_low


def _obuchowski(high: Floats, low: Floats, high_units: Ints, low_units: Ints) -> Floats:
    m, k = len(high), len(low)
    if min(m, k) < 2:
        return np.full(high.shape[1], np.nan)
    both, left, right = np.intersect1d(high_units, low_units, return_indices=True)
    units = m + k - len(both)
    joint = (high[left] * low[right]).sum(axis=0) * units / (units - 1)
    variance = (high**2).sum(axis=0) / (m - 1) / m + (low**2).sum(axis=0) / (k - 1) / k + 2 * joint / (m * k)
    return np.asarray(np.sqrt(np.clip(variance, 0, None)))
