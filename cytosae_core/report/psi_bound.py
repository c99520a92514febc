"""Population stability index where some bins are withheld: a number that the true index is at least. numpy only.

    PSI = sum over bins (p - q) ln(p / q)

Every term is 0 or more, and putting bins together can only make the sum smaller (data processing inequality for the
two Kullback-Leibler divergences that it is made of). So bins that one side withheld are put into one remainder. How
large the remainder is is only known within limits: every share is then an interval, and a bin adds what the two
intervals differ by at least - nothing where they overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .heterogeneity import PSI_FLOOR, psi

Floats = NDArray[np.float64]
MIN_SHARED = 2


@dataclass(frozen=True)
class Histogram:
    """Units in each bin [b], NaN where withheld, and the fewest and most units that all bins hold together."""

    counts: Floats
    least: float
    most: float

    @property
    def shown(self) -> NDArray[np.bool_]:
        """[b] bins that were released."""
        return np.asarray(~np.isnan(self.counts))

    def shares(self, kept: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Smallest and largest share of the kept bins, and of all others together (last): [kept + 1] each."""
        own = self.counts[kept]
        low, high = own / self.most, own / self.least
        rest = 1 - own.sum() / np.array([self.least, self.most])
        return np.append(low, max(rest[0], 0.0)), np.append(high, max(rest[1], 0.0))


def histogram(counts: Any, units: float | None, inside: bool, min_units: int) -> Histogram | None:
    """One site's histogram of one fact, or None when it says nothing.

    Args:
        counts: [b] released counts, NaN where withheld.
        units: the site's units as it told them; None when withheld.
        inside: whether every unit has an image in the study's classes: then the bins hold all of `units`.
        min_units: withheld bins hold at least this many units together (disclosure.py, S5b).
    """
    values = np.asarray(counts, dtype=np.float64)
    total = float(np.nansum(values))
    if np.isnan(values).all() or total <= 0:
        return None
    if not np.isnan(values).any():
        return Histogram(values, total, total)
    if units is None:
        return None
    most = max(units, total + min_units)
    return Histogram(values, most if inside else total + min_units, most)


@dataclass(frozen=True)
class Bound:
    """A PSI that the true one is at least (or is: `exact`), over how many bins, against how many sites."""

    value: float
    exact: bool
    bins: int
    sites: int


def psi_bound(own: Histogram, others: list[Histogram]) -> Bound | str:
    """`own` against the mean of `others`, or the reason why nothing can be said.

    Compared are the bins that the site and more than half of the others released, with those others that released
    all of them.
    """
    if not others:
        return "no other site released how this is distributed"
    often = np.mean([other.shown for other in others], axis=0) > 0.5
    kept = own.shown & often
    used = [other for other in others if other.shown[kept].all()]
    if kept.sum() < MIN_SHARED or not used:
        return f"fewer than {MIN_SHARED} bins that this site and most others released"
    mine, theirs = own.shares(kept), [other.shares(kept) for other in used]
    middle = tuple(np.mean([pair[side] for pair in theirs], axis=0) for side in (0, 1))
    exact = bool(kept.all())
    value = psi(mine[0], middle[0]) if exact else _least(np.stack(mine), np.stack(middle))
    return Bound(value, exact, int(kept.sum()), len(used))


def _least(mine: Floats, middle: Floats) -> float:
    """The least that all bins add when their shares lie between rows 0 and 1 of [2, bins]."""
    return float(sum(_term(p, q) for p, q in zip(mine.T, middle.T, strict=True)))


def _term(p: Floats, q: Floats) -> float:
    """The least that one bin adds when its shares lie in the intervals p and q."""
    (p_low, p_high), (q_low, q_high) = (np.maximum(pair, PSI_FLOOR) for pair in (p, q))
    if p_low > q_high:
        return float((p_low - q_high) * np.log(p_low / q_high))
    if q_low > p_high:
        return float((q_low - p_high) * np.log(q_low / p_high))
    return 0.0
