"""Class-balanced ridge: a linear probe with a closed form, for every strength at once.

One-versus-rest targets +1/-1, weighted least squares with an unpenalised intercept (Hoerl and Kennard 1970; as a
classifier: Rifkin and Klautau 2004). Weights give every class of every group (site) the same total.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Strengths relative to standardised features and weights that sum to 1: from nearly none to nearly flat.
STRENGTHS = np.logspace(-3, 3, 13)


@dataclass(frozen=True)
class Scaler:
    """Weighted mean and standard deviation per feature [w]; features without spread become 0."""

    mean: Floats
    sd: Floats

    @classmethod
    def fit(cls, features: NDArray[Any], weights: Floats | None = None) -> Scaler:
        """From features [m, w] and weights [m] (default: all the same)."""
        values = np.asarray(features, np.float64)
        share = np.full(len(values), 1 / len(values)) if weights is None else weights / weights.sum()
        mean = share @ values
        return cls(mean, np.sqrt(share @ (values - mean) ** 2))

    def apply(self, features: NDArray[Any]) -> Floats:
        """(features - mean) / sd, [m, w]."""
        spread = np.where(self.sd > 1e-9, self.sd, np.inf)
        scaled = (np.asarray(features, np.float64) - self.mean) / spread
        return np.asarray(scaled)


@dataclass(frozen=True)
class RidgePath:
    """Probes for all strengths: features [m, w] -> class scores [strengths, m, c]."""

    basis: Floats  # [w, r] right singular vectors of the weighted, centred features
    inner: Floats  # [strengths, r, c]
    centre: Floats  # [w]
    offset: Floats  # [c]

    def scores(self, features: Floats) -> Floats:
        """Class scores [strengths, m, c]; the largest is the prediction."""
        weights = np.tensordot(self.basis, self.inner, axes=(1, 1))  # [w, strengths, c]
        found = np.tensordot(features - self.centre, weights, axes=1)
        return np.asarray(np.moveaxis(found, 1, 0) + self.offset)


def balancing_weights(labels: Ints, groups: Ints | None = None) -> Floats:
    """Weights [m] that sum to 1 and give every (group, class) the same total."""
    cell = labels if groups is None else groups * (labels.max() + 1) + labels
    _, place, count = np.unique(cell, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (count[place] * len(count)))


def fit_path(
    features: Floats, labels: Ints, n_classes: int, weights: Floats, strengths: Floats = STRENGTHS
) -> RidgePath:
    """All probes of a path from one singular value decomposition.

    Args:
        features: [m, w], standardised. labels: [m] in 0 .. n_classes - 1. weights: [m] >= 0.
        strengths: [s] penalties > 0.

    Raises:
        DataError: fewer than two classes, or features that are not finite.
    """
    if len(np.unique(labels)) < 2:
        raise DataError("Expected at least 2 classes to train a probe on.", hint="Check the labels.")
    if not np.isfinite(features).all():
        raise DataError("Expected finite features to train a probe on.")
    share = weights / weights.sum()
    targets = np.where(labels[:, None] == np.arange(n_classes), 1.0, -1.0)
    centre, offset = share @ features, share @ targets
    root = np.sqrt(share)[:, None]
    left, singular, basis = _svd(root * (features - centre))
    rotated = left.T @ (root * (targets - offset))
    shrink = singular / (singular**2 + strengths[:, None])  # [s, r]
    return RidgePath(basis, shrink[:, :, None] * rotated, centre, offset)


def _svd(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Thin SVD through the smaller Gram matrix: left [m, r], singular [r], right [w, r]."""
    m, w = values.shape
    gram = values.T @ values if w <= m else values @ values.T
    square, vectors = np.linalg.eigh(gram)
    keep = square > max(square[-1], 1e-300) * 1e-12
    singular, vectors = np.sqrt(square[keep]), vectors[:, keep]
    if w <= m:
        return values @ vectors / singular, singular, vectors
    return vectors, singular, values.T @ vectors / singular
