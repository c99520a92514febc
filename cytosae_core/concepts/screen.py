"""Which concepts of a ReLU autoencoder cannot fire in an image: a bfloat16 product with a margin that is proven.

Rounding to bfloat16 changes a number by at most u = 2^-8 of itself. With x', w' the rounded vectors,
|x.w - x'.w'| <= (2u + u^2) |x| |w| (Cauchy-Schwarz), the product's own rounding adds at most u |x'.w'|, and sums in
float32 at most about d 2^-24 |x| |w|. A concept whose largest product plus all of this plus its bias is not above 0
fires at no token of the image; all others are computed in float32 as before. Nothing that fires is lost (tested at
the threshold itself).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 2.0**-8  # unit roundoff of bfloat16
SUM_ROUNDING = 2.0**-24  # of float32


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively (AVX-512 BF16 or AMX); elsewhere the screen costs time."""
    checks = (
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(check is not None and bool(check()) for check in checks)


@dataclass(frozen=True)
class Prepared:
    """Rounded tokens of several images, where each image ends, and its longest token."""

    tokens: Tensor
    ends: list[int]
    longest: list[float]


class Screen:
    """Prepared for W_enc [d, n] and b_enc [n]; keeps a bfloat16 copy of W_enc (2 n d bytes)."""

    def __init__(self, W_enc: Tensor, b_enc: Tensor) -> None:
        self._low = W_enc.bfloat16()
        d = W_enc.shape[0]
        share = 2 * ROUNDING + ROUNDING**2 + 4 * d * SUM_ROUNDING
        self._margin = W_enc.norm(dim=0) * share  # [n], times |x|
        self._bias = b_enc

    def prepare(self, images: list[Tensor]) -> Prepared:
        """Centred tokens [T_i, d] of some images, rounded once for all blocks."""
        ends = torch.tensor([len(image) for image in images]).cumsum(0).tolist()
        longest = [float(image.norm(dim=1).max()) for image in images]
        return Prepared(torch.cat(images).bfloat16(), ends, longest)

    def candidates(self, given: Prepared, first: int, last: int) -> list[Tensor]:
        """For every image: the concepts of first .. last that may fire, ascending, counted from `first`."""
        products = given.tokens @ self._low[:, first:last]
        found, start = [], 0
        for end, longest in zip(given.ends, given.longest, strict=True):
            highest = products[start:end].amax(dim=0).float()
            start = end
            reach = highest + highest.abs() * ROUNDING + self._margin[first:last] * longest
            found.append(torch.nonzero(reach + self._bias[first:last] > 0)[:, 0])
        return found
