"""Does a meaning chosen at the other sites hold at the site left out? Counted block by block of rows. numpy only.

A meaning is a concept and a target. Chosen: more than `EFFECT` from .5 with one sign at every other site that can
say, of which there are at least two (hospitals do not all have the same kinds of cells). Held: the same sign and more
than `REPLICATED` at the site left out, which can say. Null: the same choice, and the site left out with its labels
shuffled. Dictionaries that serve as controls are counted in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .agreement import EFFECT, REPLICATED

MIN_OTHERS = 2
Array = NDArray[Any]
Counts = NDArray[np.int64]


class Folds:
    """Counts per site left out, and per concept over all sites left out.

    Args:
        sites, n: sizes.
        rows: concepts that the plan lists: only these count per site; empty: all.

    Attributes:
        pairs, held, null_pairs, null_held: [sites].
    """

    def __init__(self, sites: int, n: int, rows: Sequence[int] = ()) -> None:
        self._listed = np.zeros(n, np.bool_)
        self._listed[list(rows) or slice(None)] = True
        self.pairs, self.held, self.null_pairs, self.null_held = (np.zeros(sites, np.int64) for _ in range(4))
        self._tried, self._kept = np.zeros(n, np.int64), np.zeros(n, np.int64)

    def add(self, start: int, effects: Array, shuffled: Array | None = None) -> None:
        """One block of effects and of those with shuffled labels, [sites, rows, t], rows from `start` on."""
        if len(effects) < 2:
            return
        with np.errstate(invalid="ignore"):
            up, down = effects > EFFECT, effects < -EFFECT
        above, below, known = up.sum(axis=0), down.sum(axis=0), ~np.isnan(effects)
        count, least = known.sum(axis=0), min(MIN_OTHERS, len(effects) - 1)
        for site in range(len(effects)):
            others = count - known[site]
            enough = others >= least
            sign = (enough & (above - up[site] == others)).astype(np.int8)
            sign -= enough & (below - down[site] == others)
            chosen = (sign != 0) & known[site]
            held = chosen & _same(sign, effects[site])
            rows = slice(start, start + effects.shape[1])
            listed = self._listed[rows][:, None]
            self.pairs[site] += int((listed & chosen).sum())
            self.held[site] += int((listed & held).sum())
            if shuffled is not None:
                null = listed & (sign != 0) & ~np.isnan(shuffled[site])
                self.null_pairs[site] += int(null.sum())
                self.null_held[site] += int((null & _same(sign, shuffled[site])).sum())
            self._tried[rows] += chosen.sum(axis=1)
            self._kept[rows] += held.sum(axis=1)

    def mean_share(self) -> float | None:
        """Mean over sites left out of the share that held; None where no site has any choice."""
        known = self.pairs > 0
        return float((self.held[known] / self.pairs[known]).mean()) if known.any() else None

    def share(self) -> Array:
        """Per concept: share of its choices, over all sites left out, that held; NaN when it was never chosen."""
        return np.where(self._tried > 0, self._kept / np.maximum(self._tried, 1), np.nan)


def _same(sign: Array, effects: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.asarray(sign * effects > REPLICATED)
