"""Does a site, on its own and from another start, find the same concept? Rows against a dictionary trained here.

The site trains a dictionary on its own tokens from RANDOM rows of its own seed. It shares nothing with the study's
dictionary but the tokens' scale, so a row that comes back was in the cells, not in the start. What leaves are, per
concept, the largest cosine after training, the same before training, and one number for permuted rows. The site's
dictionary itself stays here and is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..sae.first import random_rows
from ..sae.train import Batches, train_local

Array = NDArray[Any]
Floats = NDArray[np.float64]
CHUNK_BYTES = 64 * 1024 * 1024
NULL_QUANTILE = 0.95


@dataclass(frozen=True)
class Recurrence:
    """Largest cosines [n] with the trained and with the untrained local rows; `null`: 95th percentile over concepts
    of the largest cosine with the trained rows when each concept's coordinates are permuted."""

    trained: Floats
    start: Floats
    null: float


@dataclass(frozen=True)
class LocalTraining:
    """How a site trains the dictionary that it compares concepts with.

    Attributes:
        batches: step -> scaled tokens and their units, as in a round.
        steps: local steps; peak: learning rate; k: picks per token.
        n_units: units are 0 .. n_units - 1.
        seed: of the random rows, one that no other dictionary of the study has.
    """

    batches: Batches
    steps: int
    peak: float
    k: int
    n_units: int
    seed: int


def recurrence(rows: Array, local: LocalTraining) -> Recurrence:
    """Compare the rows [n, d] of a dictionary with one of the same width that is trained here."""
    n, d = rows.shape
    start = random_rows(n, d, local.seed)
    trained = train_local(
        torch.from_numpy(start), local.batches, k=local.k, first=0, steps=local.steps, total=local.steps,
        peak=local.peak, n_units=local.n_units,
    ).dictionary.numpy()  # fmt: skip
    permuted = np.random.default_rng(local.seed).permuted(rows, axis=1)
    null = float(np.quantile(largest_cosine(permuted, trained), NULL_QUANTILE))
    return Recurrence(largest_cosine(rows, trained), largest_cosine(rows, start), null)


def largest_cosine(rows: Array, others: Array) -> Floats:
    """Largest cosine of each of `rows` [n, d] with any of `others` [m, d]: [n]; 0 for a row without length.

    The sign counts: codes are never negative, so a row and its negative are two concepts.
    """
    left, right = _unit(rows), _unit(others)
    step = max(1, CHUNK_BYTES // (4 * len(right)))
    parts = [(left[start : start + step] @ right.T).max(axis=1) for start in range(0, len(left), step)]
    return np.asarray(np.clip(np.concatenate(parts), -1, 1), dtype=np.float64)


def _unit(rows: Array) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float32)
