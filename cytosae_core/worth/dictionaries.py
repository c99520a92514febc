"""Dictionaries trained without labels on several sites' tokens in one place: simulations only.

The same algorithm as a site's round (`sae.train`), with an equal share of every site in each batch; the
federated one differs by FVU 1.02 from it (docs/measurements.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from ..concepts.coder import Coder
from ..errors import DataError
from ..sae.init import public_centroids
from ..sae.models import PursuitModel
from ..sae.pursuit import random_dictionary
from ..sae.scale import TokenScale, rows_from_centroids
from ..sae.train import train_local

Floats32 = NDArray[np.float32]
# count, generator -> that many random tokens [count, d] of a site.
DrawTokens = Callable[[int, np.random.Generator], Floats32]
STEPS, BATCH, PEAK, TRAIN_K = 300, 512, 6e-3, 16
START_TOKENS, SCALE_TOKENS = 40_000, 20_000


def token_scale(draws: Mapping[str, DrawTokens], *, seed: int = 0) -> TokenScale:
    """Mean and scalar of tokens, every site weighing the same."""
    rng = np.random.default_rng([seed, 1])
    tokens = _mixed(draws, SCALE_TOKENS, rng).astype(np.float64)
    return TokenScale.from_sums(tokens.sum(axis=0), float((tokens**2).sum()), len(tokens))


def pooled_coder(
    draws: Mapping[str, DrawTokens], n: int, *, seed: int = 0, steps: int = STEPS, k: int = 32
) -> Coder:
    """A pursuit dictionary of n rows from all sites' tokens, without labels.

    Args:
        draws: site -> its tokens. n: rows. steps: of `BATCH` tokens, k=16 picks each; 0 gives the start itself.
        k: picks when coding afterwards (portability section 2.5: larger than in training).

    Raises:
        DataError: no site.
    """
    if not draws:
        raise DataError("Expected at least 1 site to train a dictionary on.")
    scale = token_scale(draws, seed=seed)
    rng = np.random.default_rng([seed, 2])
    start = public_centroids(_mixed(draws, START_TOKENS, rng), n, seed=seed)
    rows = torch.from_numpy(rows_from_centroids(start, scale))

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = scale.apply(_mixed(draws, BATCH, np.random.default_rng([seed, 3, step])))
        return torch.from_numpy(tokens), torch.zeros(len(tokens), dtype=torch.int64)

    if steps:
        trained = train_local(rows, batch, k=TRAIN_K, first=0, steps=steps, total=steps, peak=PEAK, n_units=1)
        rows = trained.dictionary
    return Coder(PursuitModel(rows, k), scale, "")


def random_coder(like: Coder, *, seed: int = 0) -> Coder:
    """The control: random unit rows of the same number, same scale, same k."""
    k = like.model.k if isinstance(like.model, PursuitModel) else TRAIN_K * 2
    return Coder(PursuitModel(random_dictionary(like.n, like.d, seed), k), like.scale, "")


def with_picks(coder: Coder, k: int) -> Coder:
    """The same pursuit dictionary, coding with k picks per token."""
    return Coder(PursuitModel(coder.model.dictionary, k), coder.scale, coder.sha256)


def _mixed(draws: Mapping[str, DrawTokens], count: int, rng: np.random.Generator) -> Floats32:
    """About `count` tokens, the same number from every site."""
    each = max(1, count // len(draws))
    return np.concatenate([draw(each, rng) for draw in draws.values()]).astype(np.float32)
