"""Codes of whole images, only the rows that fire, never tokens x concepts beyond one block.

A trained dictionary is sparse (a published CytoSAE image activates 4 % of 49,152 concepts), so everything after the
encoder product works on the few concepts with a positive maximum. `relu` goes through its encoder in blocks of
concepts that stay in cache; where the processor has bfloat16 products, a cheap one rules out, with a proven margin,
the concepts that cannot fire (`screen.py`). `pursuit` is sparse by construction.
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
from .screen import Screen, has_fast_bfloat16

BLOCK = 4096  # concepts per product: 257 tokens x 4,096 x 4 bytes = 4 MB, what stays in cache
CROWDED = 0.3  # share of a block that may fire, above which picking columns out costs more than it saves
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
    """A coder prepared for streaming.

    Args:
        coder: the dictionary.
        screen: rule concepts out with bfloat16 products first (`relu` only); by default where they are fast.
    """

    def __init__(self, coder: Coder, *, screen: bool | None = None) -> None:
        self.n, self.d = coder.n, coder.d
        self._coder = coder
        self._encoder: tuple[Tensor, Tensor, Tensor] | None = None
        self._screen: Screen | None = None
        if isinstance(coder.model, ReluModel):
            model = coder.model
            self._encoder = (model.W_enc.detach(), model.b_enc.detach(), model.b_dec.detach())
            if has_fast_bfloat16() if screen is None else screen:
                self._screen = Screen(self._encoder[0], self._encoder[1])

    @torch.inference_mode()
    def active_codes(self, images: Sequence[Codes]) -> Iterator[Active]:
        """Active rows of every image's tokens [T_i, d]; a concept appears once per image, in one block of rows."""
        lengths = [len(tokens) for tokens in images]
        tokens = torch.from_numpy(np.concatenate(images))
        if self._encoder is not None:
            yield from self._relu(self._encoder, tokens, lengths)
        elif isinstance(self._coder.model, PursuitModel):
            yield from self._pursuit(self._coder.model, tokens, lengths)
        else:
            for number, part in enumerate(_parts(tokens, lengths)):
                yield _active(number, 0, self._coder.codes(part))

    def _relu(
        self, encoder: tuple[Tensor, Tensor, Tensor], tokens: Tensor, lengths: list[int]
    ) -> Iterator[Active]:
        """f = ReLU((x - b_dec) W_enc + b_enc), block by block of concepts (sparse_autoencoder.py:89-113)."""
        W_enc, b_enc, b_dec = encoder
        centred = self._coder.centred(tokens) - b_dec
        if self._screen is not None:
            yield from self._screened(W_enc, b_enc, _parts(centred, lengths), self._screen)
            return
        for first in range(0, self.n, BLOCK):
            last = min(first + BLOCK, self.n)
            products = torch.addmm(b_enc[first:last], centred, W_enc[:, first:last])
            for number, part in enumerate(_parts(products, lengths)):
                yield _active(number, first, part)

    def _screened(
        self, W_enc: Tensor, b_enc: Tensor, images: list[Tensor], screen: Screen
    ) -> Iterator[Active]:
        """The same codes: only concepts that the screen cannot rule out go through the float32 product."""
        prepared = screen.prepare(images)
        for first in range(0, self.n, BLOCK):
            last = min(first + BLOCK, self.n)
            for number, kept in enumerate(screen.candidates(prepared, first, last)):
                image = images[number]
                if len(kept) > CROWDED * (last - first):
                    yield _active(number, first, torch.addmm(b_enc[first:last], image, W_enc[:, first:last]))
                    continue
                chosen = kept + first
                found = _active(number, 0, torch.addmm(b_enc[chosen], image, W_enc.index_select(1, chosen)))
                yield Active(number, chosen.numpy()[found.concepts], found.codes)

    def _pursuit(self, model: PursuitModel, tokens: Tensor, lengths: list[int]) -> Iterator[Active]:
        """Picks of every token, gathered by concept; a row that a token picks twice adds up."""
        picks = model.sparse(self._coder.centred(tokens))
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
