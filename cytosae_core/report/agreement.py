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
RECOVERED_MEAN = 0.70
RECOVERED_WORST = 0.60


def rank_correlation(a: Array, b: Array) -> tuple[float | None, int]:
    """Spearman correlation over entries known on both sides, and their number."""
    known = ~(np.isnan(a) | np.isnan(b))
    if known.sum() < 3 or np.ptp(a[known]) == 0 or np.ptp(b[known]) == 0:
        return None, int(known.sum())
    return float(spearmanr(a[known], b[known]).statistic), int(known.sum())


def effect_correlation(a: Array, b: Array, se_a: Array, se_b: Array) -> tuple[float | None, int]:
    """Precision-weighted Pearson correlation of effects [n, t] of two sites, and the number of entries."""
    variance = np.maximum(se_a, 0.02) ** 2 + np.maximum(se_b, 0.02) ** 2
    known = ~(np.isnan(a) | np.isnan(b) | np.isnan(variance))
    if known.sum() < 3:
        return None, int(known.sum())
    x, y, weight = a[known], b[known], 1 / variance[known]
    weight = weight / weight.sum()
    x, y = x - weight @ x, y - weight @ y
    spread = np.sqrt((weight @ x**2) * (weight @ y**2))
    return (float(weight @ (x * y) / spread) if spread > 0 else None), int(known.sum())


@dataclass(frozen=True)
class Verdict:
    """What the sites say about one concept: `target` is a column of the tables, -1 when there is none."""

    verdict: str
    target: int
    mean: float
    sites: int


def verdicts(effects: Array, errors: Array) -> list[Verdict]:
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
    found = []
    for row in range(effects.shape[1]):
        found.append(_verdict(row, weakest, loudness, mean, count))
    return found


def _known(values: Array, filler: float = np.inf) -> Array:
    return np.where(np.isnan(values), filler, values)


def _verdict(row: int, weakest: Array, loudness: Array, mean: Array, count: Array) -> Verdict:
    best, loudest = int(np.argmax(weakest[row])), int(np.argmax(loudness[row]))
    sites = int(count[row].max())
    if sites < MIN_SITES:
        return Verdict("too few patients", -1, float("nan"), sites)
    if weakest[row, best] > REPLICATED:
        return Verdict("holds", best, float(mean[row, best]) + 0.5, sites)
    if loudness[row, loudest] > 0:
        return Verdict("differs", loudest, float(mean[row, loudest]) + 0.5, sites)
    top = int(np.argmax(np.abs(mean[row])))
    return Verdict("no class meaning", top, float(mean[row, top]) + 0.5, sites)


def replication(effects: Array, held_out: int) -> tuple[int, int]:
    """(pairs, replicated): concept-target pairs chosen on the other sites, and how many hold at `held_out`.

    Chosen: > `EFFECT` with one sign at every other site. Replicated: same sign and > `REPLICATED` there.
    """
    others = np.delete(effects, held_out, axis=0)
    sign = np.sign(np.nansum(others, axis=0))
    with np.errstate(invalid="ignore"):
        chosen = (sign * others > EFFECT).all(axis=0) & ~np.isnan(effects[held_out])
        replicated = chosen & (sign * effects[held_out] > REPLICATED)
    return int(chosen.sum()), int(replicated.sum())


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
