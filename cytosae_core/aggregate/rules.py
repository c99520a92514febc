"""Aggregation of dictionary updates, one reply at a time, in numpy.

    D' = unit_rows(D + server_lr * sum_s w_si delta_si / sum_s w_si)

with w_si how often row i fired at site s (`firing-weighted`, default: -5 % FVU against size weights on real
cells, docs/decisions/001) or the number of training tokens of the site (`size-weighted`). A row nobody
released stays as it was.

The order of arrival cannot matter: deltas are float16 (multiples of 2**-24, at most 2 in magnitude) and weights
are integers below 2**20, so every product and every sum over up to 2**7 sites is exact in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MessageError, StudyError

Array = NDArray[Any]
MAX_WEIGHT = 2**20
MAX_SITES = 2**7
MAX_CHANGE = 2.0  # rows have norm 1, so an honest change of an entry is at most 2


class RowAverage:
    """Folds updates in; memory is two [n, d] float64 arrays whatever the number of sites.

    Args:
        dictionary: [n, d] float32 unit rows that the round started from.
        rule: `firing-weighted` or `size-weighted`.
        server_learning_rate: 1 moves by the average (2 diverges on real cells: docs/decisions/001).
    """

    def __init__(self, dictionary: Array, rule: str, server_learning_rate: float = 1.0) -> None:
        if rule not in ("firing-weighted", "size-weighted"):
            raise StudyError(f"Expected an aggregation rule, got rule={rule!r}.")
        self._base = dictionary.astype(np.float64)
        self._rule, self._rate = rule, server_learning_rate
        self._sum = np.zeros_like(self._base)
        self._weight = np.zeros(len(dictionary))
        self.sites = 0

    def fold(self, delta: Array, fired: Array, tokens: float) -> None:
        """Add one site's update.

        Args:
            delta: [n, d] float16; rows of zeros were withheld.
            fired: [n] float32 counts, NaN where withheld.
            tokens: training tokens of the site in this round.

        Raises:
            MessageError: shape, size of a change, or rows that fired and did not move (a site that sends the base
                back; rows that were withheld have no count).
        """
        if delta.shape != self._base.shape or fired.shape != self._weight.shape:
            raise MessageError("Expected an update of the dictionary's shape.", reason="SHAPE")
        if not (np.abs(delta) <= MAX_CHANGE).all():
            raise MessageError(f"Expected changes of at most {MAX_CHANGE} per entry.", reason="NORM")
        if (np.nan_to_num(fired) > 0).any() and not delta.any():
            raise MessageError("Expected changes of rows that fired.", code="data", reason="FREE_RIDE")
        if self.sites >= MAX_SITES:
            raise StudyError(f"Expected at most {MAX_SITES} sites in one aggregation.")
        released = (delta != 0).any(axis=1)
        counts = np.nan_to_num(fired) if self._rule == "firing-weighted" else np.full(len(fired), tokens)
        weight = np.where(released, np.clip(np.round(counts), 0, MAX_WEIGHT), 0.0)
        self._sum += weight[:, None] * delta.astype(np.float64)
        self._weight += weight
        self.sites += 1

    def result(self) -> Array:
        """The new dictionary [n, d] float32, unit rows."""
        moved = self._weight > 0
        step = self._sum[moved] / self._weight[moved, None]
        rows = self._base.copy()
        rows[moved] += self._rate * step
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.where(norms > 0, norms, 1), dtype=np.float32)
