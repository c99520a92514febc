"""Correction for testing many concepts: Benjamini and Hochberg 1995. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def benjamini_hochberg(p: NDArray[Any]) -> Floats:
    """q-values of p-values [m]: the smallest false discovery rate at which a test passes.

    NaN (not tested) stays NaN and does not count.

    Raises:
        ValueError: a p-value outside 0 .. 1.
    """
    values = np.asarray(p, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(values))
    if ((values[known] < 0) | (values[known] > 1)).any():
        raise ValueError("Expected p-values in 0 .. 1.")
    order = known[np.argsort(-values[known], kind="stable")]
    rank = len(known) - np.arange(len(known))
    out = np.full(values.shape, np.nan)
    out[order] = np.minimum.accumulate(values[order] * len(known) / rank)
    return np.asarray(np.minimum(out, 1.0))
