"""A frozen dictionary and a second stage on what it leaves: rows that were added under differential privacy.

    z0 = pursuit of x on the public rows, k picks          r = x - z0 D0 - b
    z1 = pursuit of r on the added rows, k' picks          x^ = z0 D0 + z1 A + b

b is the site's own mean residual: it stays at the site. Adding the rows straight to the first stage, or shifting the
inputs by the site's mean, was measured to be worse (docs/privacy.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .models import PursuitModel
from .pursuit import SparseCodes, reconstruct


class ResidualModel:
    """`public` [n0, d] and `added` [a, d] rows, k and k' picks, and the site's own output bias [d].

    Rows of `added` that are zero never fire: a protocol keeps room for more rows than were found.
    """

    kind = "pursuit"

    def __init__(
        self, public: Tensor, added: Tensor, k: int, extra_k: int, bias: Tensor | None = None
    ) -> None:
        self.first = PursuitModel(public, k)
        self.second = PursuitModel(added, min(extra_k, len(added))) if len(added) else None
        self.bias = torch.zeros(public.shape[1]) if bias is None else bias
        self._dictionary = torch.cat([public, added])

    @property
    def dictionary(self) -> Tensor:
        return self._dictionary

    def residual(self, tokens: Tensor) -> tuple[SparseCodes, Tensor]:
        """Codes of the first stage, and what it and the bias leave [B, d]."""
        codes = self.first.sparse(tokens)
        return codes, tokens - reconstruct(codes, self.first.dictionary) - self.bias

    def codes(self, tokens: Tensor) -> Tensor:
        codes, rest = self.residual(tokens)
        dense = codes.dense(len(self.first.dictionary))
        if self.second is None:
            return dense
        return torch.cat([dense, self.second.codes(rest)], dim=1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return codes @ self._dictionary + self.bias


@torch.no_grad()
def output_bias(model: PursuitModel, tokens: Tensor) -> Tensor:
    """The mean residual [d] of a site's tokens [B, d] on the public rows: the site's own, it never leaves."""
    return (tokens - reconstruct(model.sparse(tokens), model.dictionary)).mean(dim=0)
