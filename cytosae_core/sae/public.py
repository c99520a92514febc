"""A finished dictionary of public tokens, and what a private study needs to know of them: the clip norm of moments.

mean, scale    of the public tokens            dictionary   k-means, then pursuit training on them
second_clip    twice the median norm of a public patient's second moment of what this dictionary leaves
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError
from ..privacy.moments import second_moment
from .init import public_centroids
from .models import PursuitModel
from .pursuit import unit_rows
from .scale import TokenScale
from .train import train_local

BATCH, PEAK = 1024, 6e-3  # tokens a step; learning rate of docs/measurements.md
FEWEST_PATIENTS = 20  # a median over fewer is no basis for a clip norm
CLIP_FACTOR = 2.0  # private cells leave more than public ones; tuned on made worlds (docs/decisions/013)


@dataclass(frozen=True)
class PublicDictionary:
    """tensors: `dictionary` [n, d], `mean` [d], `scale` [1]; second_clip: see above."""

    tensors: dict[str, NDArray[Any]]
    second_clip: float


def public_dictionary(
    tokens: NDArray[np.float32],
    patients: Sequence[NDArray[np.float32]],
    *,
    rows: int,
    k: int,
    steps: int,
    seed: int,
) -> PublicDictionary:
    """Train on public tokens [m, d] for `steps` steps.

    Args:
        patients: tokens [T, d] of each public patient, T as in the study's `privacy.tokens_of_a_patient`.

    Raises:
        DataError: fewer than 20 public patients.
    """
    if len(patients) < FEWEST_PATIENTS:
        raise DataError(
            f"Expected at least {FEWEST_PATIENTS} public patients, got {len(patients)}.",
            hint="Where a public source names no patients its images count.",
        )
    square = float((tokens.astype(np.float64) ** 2).sum())
    scale = TokenScale.from_sums(tokens.sum(axis=0, dtype=np.float64), square, float(len(tokens)))
    pool, rng = torch.from_numpy(scale.apply(tokens)), np.random.default_rng(seed)

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.from_numpy(rng.integers(len(pool), size=BATCH))
        return pool[chosen], torch.zeros(BATCH, dtype=torch.int64)

    start = unit_rows(torch.from_numpy(public_centroids(pool.numpy(), rows, seed=seed)))
    trained = train_local(
        start, batch, k=k, first=0, steps=steps, total=steps, peak=PEAK, n_units=1
    ).dictionary
    model = PursuitModel(trained, k)
    norms = [float(np.linalg.norm(second_moment(_residual(model, scale, part)))) for part in patients]
    made = {"dictionary": trained.numpy(), "mean": scale.mean, "scale": np.array([scale.scale], np.float32)}
    return PublicDictionary(made, CLIP_FACTOR * float(np.median(norms)))


def _residual(model: PursuitModel, scale: TokenScale, tokens: NDArray[np.float32]) -> NDArray[np.float64]:
    x = torch.from_numpy(scale.apply(tokens))
    rest: NDArray[np.float64] = (x - model.reconstruct(model.codes(x))).numpy().astype(np.float64)
    return rest
