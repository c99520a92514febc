"""The encoder-free sparse autoencoder: codes by non-negative matching pursuit on a dictionary.

A token x (already centred and scaled, `TokenScale`) is explained by at most k rows of a dictionary D (n x d,
unit rows): repeatedly take the row with the largest positive product with what is left, and subtract it.
Deterministic and independent of the batch. No encoder exists that could be sent, trapped or read
(DESIGN section 5; measured against trained encoders in docs/decisions/001).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Above this width the n x n Gram matrix (4 n^2 bytes) is not built; products are recomputed instead.
GRAM_MAX_ROWS = 8192
# Products below this are rounding noise of a token that is already explained (entries have rms 1).
NOISE_FLOOR = 1e-5


@dataclass(frozen=True)
class SparseCodes:
    """Codes of B tokens: `rows` [B, k] int64 and `values` [B, k] float32 >= 0; a zero value is no firing."""

    rows: Tensor
    values: Tensor

    def dense(self, n: int) -> Tensor:
        """The codes as [B, n] (rows picked twice add up)."""
        out = torch.zeros(self.rows.shape[0], n, dtype=self.values.dtype)
        return out.scatter_add_(1, self.rows, self.values)


def gram_matrix(dictionary: Tensor) -> Tensor | None:
    """D D^T [n, n], or None when n is above `GRAM_MAX_ROWS`."""
    return dictionary @ dictionary.T if dictionary.shape[0] <= GRAM_MAX_ROWS else None


@torch.no_grad()
def pursue(tokens: Tensor, dictionary: Tensor, k: int, gram: Tensor | None = None) -> SparseCodes:
    """Non-negative matching pursuit.

    Args:
        tokens: [B, d] float32, centred and scaled.
        dictionary: [n, d] float32, unit rows.
        k: largest number of picks per token.
        gram: `gram_matrix(dictionary)` when the caller keeps it.

    Returns:
        SparseCodes with k picks per token, in the order taken.
    """
    if gram is None:
        gram = gram_matrix(dictionary)
    products = tokens @ dictionary.T  # [B, n]: product of every row with the residual
    rows = torch.empty(tokens.shape[0], k, dtype=torch.int64)
    values = torch.empty(tokens.shape[0], k, dtype=tokens.dtype)
    residual = tokens.clone() if gram is None else None
    for pick in range(k):
        best, index = products.max(dim=1)
        best = torch.where(best > NOISE_FLOOR, best, 0.0)
        rows[:, pick], values[:, pick] = index, best
        if gram is not None:
            products -= best[:, None] * gram[index]
        elif residual is not None:
            residual -= best[:, None] * dictionary[index]
            products = residual @ dictionary.T
    return SparseCodes(rows, values)


@torch.no_grad()
def reconstruct(codes: SparseCodes, dictionary: Tensor) -> Tensor:
    """Sum of the picked rows times their values: [B, d], centred and scaled tokens."""
    summed: Tensor = torch.nn.functional.embedding_bag(
        codes.rows, dictionary, per_sample_weights=codes.values, mode="sum"
    )
    return summed


def unit_rows(matrix: Tensor) -> Tensor:
    """Rows divided by their L2 norm; rows of norm 0 stay 0."""
    norms: Tensor = matrix.norm(dim=1, keepdim=True)
    return matrix / norms.clamp_min(1e-12)


def random_dictionary(n: int, d: int, seed: int) -> Tensor:
    """Random unit rows [n, d]: the control, and the start where no public tokens exist."""
    generator = torch.Generator().manual_seed(seed)
    return unit_rows(torch.randn(n, d, generator=generator))
