"""One vector per image: concepts and raw embeddings of the same stained-cell tokens, pooled the same way.

    mean        mean over the cell's tokens (probes: portability section 7)
    max         largest value over the cell's tokens
    mean+max    both, side by side
    unit        the mean as a direction, length 1 per image: how strongly a cell is stained drops out

Raw embeddings are tokens centred and scaled with the dictionary's own mean and scalar, so both see one input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..concepts.coder import Coder
from ..concepts.scores import ReadImages, score_images
from ..errors import DataError

Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]
POOLINGS = ("mean", "max", "mean+max", "unit")


@dataclass(frozen=True)
class Pools:
    """Mean and largest value over the cell's tokens, [images, w] each."""

    mean: Floats32
    largest: Floats32

    def features(self, pooling: str) -> Floats32:
        """Features [images, w or 2 w] under one of `POOLINGS`; DataError for another name."""
        choices: dict[str, Callable[[], Floats32]] = {
            "mean": lambda: self.mean,
            "max": lambda: self.largest,
            "mean+max": lambda: np.hstack([self.mean, self.largest]),
            "unit": lambda: unit_length(self.mean),
        }
        if pooling not in choices:
            raise DataError(f"Expected a pooling in {POOLINGS}, got pooling={pooling!r}.")
        return choices[pooling]()


@dataclass(frozen=True)
class SiteTable:
    """One site's images as a probe sees them: `features` [m, w], `labels` [m], `units` [m] (indices)."""

    features: NDArray[Any]
    labels: Ints
    units: Ints


def unit_length(values: Floats32) -> Floats32:
    """Rows divided by their L2 norm; rows of norm 0 stay 0."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.maximum(norms, 1e-12), np.float32)


def concept_pools(read: ReadImages, images: int, coder: Coder) -> Pools:
    """Mean and largest code of every concept over the cell tokens of `images` images, [images, n]."""
    found = score_images(read, images, coder.model, coder.scale)
    return Pools(found.mean, found.largest)


def raw_pools(read: ReadImages, images: int, coder: Coder) -> Pools:
    """The same of the tokens themselves, centred and scaled as the dictionary sees them, [images, d]."""
    mean, largest = (np.zeros((images, coder.d), np.float32) for _ in range(2))
    for start in range(0, images, 16):
        tokens, mask = read(start, min(start + 16, images))
        for offset in range(len(tokens)):
            cell = coder.scale.apply(tokens[offset][mask[offset]])
            mean[start + offset], largest[start + offset] = cell.mean(axis=0), cell.max(axis=0)
    return Pools(mean, largest)


def indices_of(names: Sequence[str], order: Sequence[str] | None = None) -> Ints:
    """Position of every name in `order` (default: sorted names)."""
    known = {name: index for index, name in enumerate(order if order is not None else sorted(set(names)))}
    return np.array([known[name] for name in names], dtype=np.int64)
