"""From stored tokens to image scores: the only place where codes of a site's own cells exist.

Concept effects use the largest code over stained-cell tokens, probes the mean (portability section 7: max for
the meaning of single concepts, mean for transfer). CLS is never pooled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..sae.models import Model
from ..sae.pursuit import SparseCodes, reconstruct
from ..sae.scale import TokenScale

# Codes of one chunk are dense: tokens x n x 4 bytes. 64 MiB keeps memory flat at any width.
CHUNK_BYTES = 64 * 1024 * 1024

ReadImages = Callable[[int, int], tuple[NDArray[np.float32], NDArray[np.bool_]]]


@dataclass(frozen=True)
class ImageScores:
    """Per image: `largest` and `mean` code [images, n], `fired` share of cell tokens [images, n], and the
    mean centred token `embedding` [images, d]. Never leaves the site."""

    largest: NDArray[np.float32]
    mean: NDArray[np.float32]
    fired: NDArray[np.float32]
    embedding: NDArray[np.float32]


@torch.no_grad()
def score_images(read: ReadImages, images: int, model: Model, scale: TokenScale) -> ImageScores:
    """Scores of `images` images; `read(start, stop)` gives tokens [b, 257, d] and cell masks [b, 257]."""
    n, d = model.dictionary.shape
    largest, mean, fired = (np.zeros((images, n), np.float32) for _ in range(3))
    out = ImageScores(largest, mean, fired, np.zeros((images, d), np.float32))
    for start in range(0, images, 16):
        tokens, mask = read(start, min(start + 16, images))
        for offset in range(len(tokens)):
            _score_one(out, start + offset, scale.apply(tokens[offset][mask[offset]]), model)
    return out


def _score_one(out: ImageScores, index: int, tokens: NDArray[np.float32], model: Model) -> None:
    n = out.largest.shape[1]
    chunk = max(1, CHUNK_BYTES // (4 * n))
    total = torch.zeros(n)
    fired = torch.zeros(n)
    largest = torch.zeros(n)
    for start in range(0, len(tokens), chunk):
        codes = model.codes(torch.from_numpy(tokens[start : start + chunk]))
        largest = torch.maximum(largest, codes.max(dim=0).values)
        total += codes.sum(dim=0)
        fired += (codes > 0).sum(dim=0)
    out.largest[index] = largest.numpy()
    out.mean[index] = (total / len(tokens)).numpy()
    out.fired[index] = (fired / len(tokens)).numpy()
    out.embedding[index] = tokens.mean(axis=0)


@torch.no_grad()
def quality_of_codes(
    tokens: NDArray[np.float32], codes: SparseCodes, dictionary: torch.Tensor
) -> NDArray[np.float32]:
    """As `quality`, from pursuit codes of these tokens that were made already."""
    fires = codes.values > 0
    error = float((torch.from_numpy(tokens) - reconstruct(codes, dictionary)).double().pow(2).sum())
    alive = torch.zeros(len(dictionary), dtype=torch.bool)
    alive[codes.rows[fires]] = True
    return _quality(tokens, error, _distinct(codes), alive)


def _distinct(codes: SparseCodes) -> int:
    """Rows that fire, over all tokens: a row that was picked twice counts once."""
    rows = torch.where(codes.values > 0, codes.rows, -1).sort(dim=1).values
    first = torch.ones_like(rows, dtype=torch.bool)
    first[:, 1:] = rows[:, 1:] != rows[:, :-1]
    return int((first & (rows >= 0)).sum())


@torch.no_grad()
def quality(tokens: NDArray[np.float32], model: Model) -> NDArray[np.float32]:
    """Quality of a dictionary on centred and scaled tokens [m, d], in the order of `config.QUALITY`.

    sse and sums of squares are per token; ss_global is about the federated mean, ss_own about the site's own
    mean; FVU = sse / ss, centred per dimension. l0 is codes per token; dead_fraction is the share of rows that
    fire on none of these tokens.
    """
    n = model.dictionary.shape[0]
    chunk = max(1, CHUNK_BYTES // (4 * n))
    error, active = 0.0, 0
    alive = torch.zeros(n, dtype=torch.bool)
    for start in range(0, len(tokens), chunk):
        part = torch.from_numpy(tokens[start : start + chunk])
        codes = model.codes(part)
        error += float((part - model.reconstruct(codes)).double().pow(2).sum())
        active += int((codes > 0).sum())
        alive |= (codes > 0).any(dim=0)
    return _quality(tokens, error, active, alive)


def _quality(
    tokens: NDArray[np.float32], error: float, active: int, alive: torch.Tensor
) -> NDArray[np.float32]:
    count = len(tokens)
    values = tokens.astype(np.float64)
    ss_global = float((values**2).sum())
    ss_own = float(((values - values.mean(axis=0)) ** 2).sum())
    dead = 1 - float(alive.float().mean())
    return np.array(
        [error / count, ss_global / count, ss_own / count, count, active / count, dead], dtype=np.float32
    )
