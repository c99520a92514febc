"""Statistics across sites, from released tables only: agreement, verdicts, replication, planted concepts.

An effect is AUROC - 1/2. Thresholds follow what was measured on real cells (portability): an effect counts when
it is larger than .15, and it replicates at a site that shows more than .10 with the same sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr

Array = NDArray[Any]
EFFECT = 0.15
REPLICATED = 0.10
# A site's own effect must be this many standard errors from zero before it can speak against the others:
# 1,024 concepts x 4 classes x 5 sites make 4 a Bonferroni-like bound (p = 6e-5).
CONTRADICTION_Z = 4.0
MIN_SITES = 3
VERDICTS = ("holds", "differs", "no class meaning", "too few patients")
RECOVERED_MEAN = 0.70
RECOVERED_WORST = 0.60


def rank_correlation(a: Array, b: Array) -> tuple[float | None, int]:
    """Spearman correlation over entries known on both sides, and their number."""
    known = ~(np.isnan(a) | np.isnan(b))
    if known.sum() < 3 or np.ptp(a[known]) == 0 or np.ptp(b[known]) == 0:
        return None, int(known.sum())
    return float(spearmanr(a[known], b[known]).statistic), int(known.sum())


SE_FLOOR = 0.02  # of an AUROC: errors below are those of degenerate tables


@dataclass
class Moments:
    """Weighted sums of pairs (x, y), added block by block; the last axis is summed."""

    weight: Array | float = 0.0
    x: Array | float = 0.0
    y: Array | float = 0.0
    xx: Array | float = 0.0
    yy: Array | float = 0.0
    xy: Array | float = 0.0
    count: Array | int = 0

    def add(self, x: Array, y: Array, variance: Array) -> None:
        """Add pairs with weights 1 / variance; pairs with a NaN are left out."""
        known = ~(np.isnan(x) | np.isnan(y) | np.isnan(variance))
        weight = np.where(known, 1 / np.where(known, variance, 1.0), 0.0)
        self.add_known(np.where(known, x, 0.0), np.where(known, y, 0.0), weight, known.sum(-1))

    def add_known(self, x: Array, y: Array, weight: Array, count: Any) -> None:
        """Add pairs without NaN; those of weight 0 do not count."""
        wx, wy = weight * x, weight * y
        self.weight, self.count = self.weight + weight.sum(-1), self.count + count
        self.x, self.y = self.x + wx.sum(-1), self.y + wy.sum(-1)
        self.xx, self.yy = self.xx + _dot(wx, x), self.yy + _dot(wy, y)
        self.xy = self.xy + _dot(wx, y)

    def correlation(self) -> Array:
        """Weighted Pearson correlation; NaN with fewer than 3 pairs or no spread."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_x, mean_y = self.x / self.weight, self.y / self.weight
            spread_x = np.maximum(self.xx / self.weight - mean_x**2, 0.0)
            spread_y = np.maximum(self.yy / self.weight - mean_y**2, 0.0)
            found = (self.xy / self.weight - mean_x * mean_y) / np.sqrt(spread_x * spread_y)
        some = (np.asarray(self.count) >= 3) & (spread_x > 1e-15) & (spread_y > 1e-15)
        return np.where(some, np.clip(found, -1, 1), np.nan)


def _dot(a: Array, b: Array) -> Array:
    """Sum of products over the last axis."""
    return np.asarray(a @ b if a.ndim == 1 else np.einsum("...i,...i->...", a, b))


def effect_variance(se_a: Array, se_b: Array) -> Array:
    """Variance of the difference of two effects, standard errors not below `SE_FLOOR`."""
    return np.asarray(np.maximum(se_a, SE_FLOOR) ** 2 + np.maximum(se_b, SE_FLOOR) ** 2)


def effect_correlation(a: Array, b: Array, se_a: Array, se_b: Array) -> tuple[float | None, int]:
    """Precision-weighted Pearson correlation of effects [n, t] of two sites, and the number of entries."""
    sums = Moments()
    sums.add(a.ravel(), b.ravel(), effect_variance(se_a, se_b).ravel())
    found = float(sums.correlation())
    return None if np.isnan(found) else found, int(sums.count)


@dataclass(frozen=True)
class Verdict:
    """What the sites say about one concept: `target` is a column of the tables, -1 when there is none."""

    verdict: str
    target: int
    mean: float
    sites: int


@dataclass(frozen=True)
class VerdictTable:
    """Verdicts of many concepts: `verdict` in `VERDICTS`, `target` (-1: none), `mean` AUROC at the target (NaN: none)
    and `sites`: the most sites that can say anything about one target. Arrays [n]."""

    verdict: NDArray[np.int8]
    target: NDArray[np.int64]
    mean: NDArray[np.float64]
    sites: NDArray[np.int64]


def verdicts(effects: Array, errors: Array) -> list[Verdict]:
    """One verdict per concept from effects and standard errors [sites, n, t]: `verdict_table` as a list."""
    found = verdict_table(effects, errors)
    columns = (found.verdict, found.target, found.mean, found.sites)
    return [
        Verdict(VERDICTS[verdict], int(target), float(mean), int(sites))
        for verdict, target, mean, sites in zip(*columns, strict=True)
    ]


def verdict_table(effects: Array, errors: Array) -> VerdictTable:
    """One verdict per concept from effects and standard errors [sites, n, t].

    holds             one target's mean effect exceeds `EFFECT`, and every site that can say (>= 3) shows more
                      than `REPLICATED` with the same sign
    differs           no target holds; one exceeds `EFFECT` by 4 standard errors at some site, and another site
                      shows at most `REPLICATED`
    too few patients  fewer than 3 sites can say
    no class meaning  the rest
    """
    count = (~np.isnan(effects)).sum(axis=0)  # [n, t]
    mean = np.nansum(effects, axis=0) / np.maximum(count, 1)
    oriented = np.sign(mean)[None] * effects
    with np.errstate(invalid="ignore"):
        weakest = np.where(count >= MIN_SITES, np.nanmin(_known(oriented), axis=0), -np.inf)
        loud = (np.abs(effects) > EFFECT) & (np.abs(effects) > CONTRADICTION_Z * np.maximum(errors, 1e-3))
        split = loud.any(axis=0) & (count >= MIN_SITES) & (weakest <= REPLICATED)
    loudness = np.where(split, np.nanmax(_known(np.abs(effects), 0), axis=0), 0)
    weakest = np.where(np.abs(mean) > EFFECT, weakest, -np.inf)
    return _table(weakest, loudness, mean, count)


def _known(values: Array, filler: float = np.inf) -> Array:
    return np.where(np.isnan(values), filler, values)


def _table(weakest: Array, loudness: Array, mean: Array, count: Array) -> VerdictTable:
    rows, sites = np.arange(len(mean)), count.max(axis=1)
    best, loudest, top = (
        np.argmax(weakest, axis=1),
        np.argmax(loudness, axis=1),
        np.argmax(np.abs(mean), axis=1),
    )
    holds, differs = weakest[rows, best] > REPLICATED, loudness[rows, loudest] > 0
    few = sites < MIN_SITES
    verdict = np.where(few, 3, np.where(holds, 0, np.where(differs, 1, 2)))
    target = np.where(few, -1, np.where(holds, best, np.where(differs, loudest, top)))
    middle = np.where(few, np.nan, mean[rows, target] + 0.5)
    return VerdictTable(verdict.astype(np.int8), target, middle, sites)


def recovered(effects: Array, column: int) -> tuple[list[float | None], int]:
    """AUROC at each site, as the held-out one, of the concept that the other sites choose for a target.

    Returns the oriented AUROC per site (None where it cannot be chosen or assessed) and the concept that all
    sites together choose.
    """
    values = effects[:, :, column]  # [sites, n]
    held: list[float | None] = []
    for site in range(len(values)):
        row, sign = _choose(np.delete(values, site, axis=0))
        known = row >= 0 and not np.isnan(values[site, row])
        held.append(float(sign * values[site, row]) + 0.5 if known else None)
    return held, _choose(values)[0]


def _choose(values: Array) -> tuple[int, float]:
    """The row whose weakest effect over sites is largest, among those known everywhere; -1 if none."""
    known = ~np.isnan(values).any(axis=0)
    if not known.any():
        return -1, 1.0
    sign = np.sign(np.where(known, values, 0).sum(axis=0))
    weakest = np.where(known, (sign * np.where(known, values, 0)).min(axis=0), -np.inf)
    row = int(np.argmax(weakest))
    return row, float(sign[row] or 1.0)


def matched_cosine(a: Array, b: Array) -> Array:
    """Cosines [n] of the rows of two dictionaries under the best one-to-one match (Hungarian)."""
    cosine = a.astype(np.float64) @ b.astype(np.float64).T
    rows, columns = linear_sum_assignment(-cosine)
    return np.asarray(cosine[rows, columns])
