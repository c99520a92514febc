"""Codes of whole images, only the rows that fire, never tokens x concepts beyond one block.

A trained dictionary is sparse (a published CytoSAE image activates 4 % of 49,152 concepts), so everything after the
encoder product works on the few concepts with a positive maximum. `relu` goes through its encoder in blocks of
concepts that stay in cache; `pursuit` is sparse by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..sae.models import PursuitModel, ReluModel
from .coder import Coder

BLOCK = 2048  # concepts per product: 257 tokens x 2,048 x 4 bytes = 2 MB, a core's share of cache
Codes = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Active:
    """Codes of the concepts that fire in one image: `concepts` [a] ascending, `codes` [a, T] >= 0.

    `image` is the position in the list of images given to `active_codes`.
    """

    image: int
    concepts: Ints
    codes: Codes


class ActiveCoder:
    """A coder prepared for streaming. Only what coding needs is kept: no decoder of a `relu` dictionary."""

    def __init__(self, coder: Coder) -> None:
        self.n, self.d = coder.n, coder.d
        self._coder = coder
        self._encoder: tuple[Tensor, Tensor, Tensor] | None = None
        if isinstance(coder.model, ReluModel):
            model = coder.model
            self._encoder = (model.W_enc.detach(), model.b_enc.detach(), model.b_dec.detach())

    @torch.inference_mode()
    def active_codes(self, images: Sequence[Codes]) -> Iterator[Active]:
        """Active rows of every image's tokens [T_i, d]; a concept appears once per image, in one block of rows."""
        lengths = [len(tokens) for tokens in images]
        tokens = torch.from_numpy(np.concatenate(images))
        if self._encoder is not None:
            yield from self._relu(tokens, lengths)
        elif isinstance(self._coder.model, PursuitModel):
            yield from self._pursuit(tokens, lengths)
        else:
            for number, part in enumerate(_parts(tokens, lengths)):
                yield _active(number, 0, self._coder.codes(part))

    def _relu(self, tokens: Tensor, lengths: list[int]) -> Iterator[Active]:
        """f = ReLU((x - b_dec) W_enc + b_enc), block by block of concepts (sparse_autoencoder.py:89-113)."""
        if self._encoder is None:
            return
        W_enc, b_enc, b_dec = self._encoder
        centred = self._coder.centred(tokens) - b_dec
        buffer = torch.empty(len(tokens), min(BLOCK, self.n))
        for first in range(0, self.n, BLOCK):
            last = min(first + BLOCK, self.n)
            products = buffer[:, : last - first] if last - first == buffer.shape[1] else None
            products = torch.addmm(b_enc[first:last], centred, W_enc[:, first:last], out=products)
            for number, part in enumerate(_parts(products, lengths)):
                yield _active(number, first, part)

    def _pursuit(self, tokens: Tensor, lengths: list[int]) -> Iterator[Active]:
        """Picks of every token, gathered by concept; a row that a token picks twice adds up."""
        if not isinstance(self._coder.model, PursuitModel):
            return
        picks = self._coder.model.sparse(self._coder.centred(tokens))
        rows, values = _parts(picks.rows, lengths), _parts(picks.values, lengths)
        for number, (row, value) in enumerate(zip(rows, values, strict=True)):
            concepts, place = torch.unique(row[value > 0], return_inverse=True)
            token = torch.arange(len(row))[:, None].expand_as(row)[value > 0]
            codes = torch.zeros(len(concepts), len(row))
            codes.index_put_((place, token), value[value > 0], accumulate=True)
            yield Active(number, concepts.numpy(), codes.numpy())


def _active(number: int, first: int, products: Tensor) -> Active:
    """Concepts of a block with a positive maximum; `products` [T, block] before or after ReLU."""
    chosen = torch.nonzero(products.amax(dim=0) > 0)[:, 0]
    codes = products[:, chosen].T.clamp_min(0).contiguous()
    return Active(number, chosen.numpy() + first, codes.numpy())


def _parts(values: Tensor, lengths: list[int]) -> list[Tensor]:
    """The rows of each image."""
    ends = np.cumsum(lengths)
    return [values[end - length : end] for end, length in zip(ends, lengths, strict=True)]
