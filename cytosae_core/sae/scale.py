"""Centring and scaling of tokens with federated sums: x~ = (x - mean) / scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import StudyError


@dataclass(frozen=True)
class TokenScale:
    """`mean` [d] float32 and one scalar `scale`: the root mean square of the centred entries.

    One mean and one scalar for all sites: per-site centring does not remove the site and costs class transfer
    (measured, docs/decisions/001).
    """

    mean: NDArray[np.float32]
    scale: float

    @classmethod
    def from_sums(cls, total: NDArray[np.float64], square: float, count: float) -> TokenScale:
        """From sum of tokens [d], sum of squared norms and number of tokens over all sites."""
        if not count > 0:
            raise StudyError("Expected token_count > 0 over the sites.")
        mean = total / count
        variance = square / count - float(mean @ mean)
        if not (np.isfinite(mean).all() and variance > 0):
            raise StudyError("Expected finite token sums with positive variance.")
        return cls(mean.astype(np.float32), float(np.sqrt(variance / len(mean))))

    def apply(self, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Centred and scaled tokens, same shape [..., d]."""
        return np.asarray((tokens - self.mean) / np.float32(self.scale), dtype=np.float32)


def rows_from_centroids(centroids: NDArray[np.float32], scale: TokenScale) -> NDArray[np.float32]:
    """Unit rows [n, d] from public cluster means [n, d] and the federated token scale."""
    rows = scale.apply(centroids)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (norms > 1e-6).all():
        raise StudyError("Expected public centroids that differ from the federated mean token.")
    return np.asarray(rows / norms, dtype=np.float32)
