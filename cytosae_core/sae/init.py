"""Where dictionary rows start: spherical k-means of PUBLIC tokens, never of hospital tokens.

The file holds the plain (unnormalised) mean token of every cluster. A row is that mean, centred with the
federated mean and set to unit length: a coordinator without torch can do it (`scale.rows_from_centroids`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import StudyError
from .pursuit import unit_rows


@torch.no_grad()
def public_centroids(
    tokens: NDArray[np.float32], n: int, *, seed: int, iterations: int = 4
) -> NDArray[np.float32]:
    """Cluster means [n, d] of public tokens [N, d], N >= n, by spherical k-means.

    Lloyd iterations on the directions of the centred tokens (Dhillon and Modha 2001); an empty cluster is
    restarted at the public token that its centroid explains worst. Same seed, same bytes on one machine.
    """
    if len(tokens) < n:
        raise StudyError(f"Expected at least n={n} public tokens, got {len(tokens)}.", hint="More images.")
    generator = torch.Generator().manual_seed(seed)
    plain = torch.from_numpy(np.ascontiguousarray(tokens))
    points = unit_rows(plain - plain.mean(dim=0))
    centres = points[torch.randperm(len(points), generator=generator)[:n]].clone()
    for _ in range(iterations):
        label, fit = _assign(points, centres)
        centres = unit_rows(_cluster_sums(points, label, n))
        empty = (centres.norm(dim=1) == 0).nonzero().squeeze(1)
        centres[empty] = points[fit.argsort()[: len(empty)]]
    label, fit = _assign(points, centres)
    counts = torch.bincount(label, minlength=n)
    means = _cluster_sums(plain, label, n) / counts.clamp_min(1)[:, None]
    lonely = (counts == 0).nonzero().squeeze(1)
    means[lonely] = plain[fit.argsort()[: len(lonely)]]
    return means.numpy()


def _assign(points: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest centre and its cosine for every point, in chunks that keep memory at 4,096 x n."""
    parts = [(chunk @ centres.T).max(dim=1) for chunk in points.split(4096)]  # type: ignore[no-untyped-call]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def _cluster_sums(points: torch.Tensor, label: torch.Tensor, n: int) -> torch.Tensor:
    return torch.zeros(n, points.shape[1]).index_add_(0, label, points)
