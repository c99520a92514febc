"""Balanced accuracy and its interval, with the unit (patient, else slide, else source file) as what is resampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LEVEL = 0.95
DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate_of(value: float, draws: Floats) -> Estimate:
    """The value with the middle 95 % of its bootstrap draws."""
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))


class UnitBootstrap:
    """The same resamples of units for every method, so that differences between methods are paired.

    Balanced accuracy is the mean over classes of the mean over units of a unit's share of right answers (as
    `concepts.probe.balanced_accuracy`); a resample without a class leaves that class out.
    """

    def __init__(self, labels: Ints, units: Ints, *, draws: int = DRAWS, seed: int = 0) -> None:
        names, self.place = np.unique(units, return_inverse=True)
        self.classes, self.label = np.unique(labels, return_inverse=True)
        self.shape = (len(names), len(self.classes))
        self.total = self._sum(np.ones(len(labels)))
        rng = np.random.default_rng(seed)
        even = np.full(len(names), 1 / len(names))
        self.counts = rng.multinomial(len(names), even, size=draws).astype(np.float64)  # [draws, u]

    def balanced(self, right: NDArray[np.bool_]) -> tuple[float, Floats]:
        """Balanced accuracy of right answers [m], and its draws [draws]."""
        present = (self.total > 0).astype(np.float64)
        share = self._sum(right.astype(np.float64)) / np.maximum(self.total, 1)
        value = (share.sum(axis=0) / present.sum(axis=0)).mean()
        seen = self.counts @ present
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = np.nanmean(np.where(seen > 0, (self.counts @ share) / seen, np.nan), axis=1)
        return float(value), draws

    def _sum(self, values: Floats) -> Floats:
        out = np.zeros(self.shape)
        np.add.at(out, (self.place, self.label), values)
        return out
