"""What privacy costs: explained variance and recovered concepts against epsilon and the number of patients.

    python -m benchmarks.private_utility real SITES_FOLDER STORES_FOLDER --json
    python -m benchmarks.private_utility made --json

Residual moments (privacy/moments.py) with OpenDP's noise, beside the frozen public dictionary, the same with the
site's own output bias, with free public atoms, the same without noise, and training without privacy. Explained
variance is centred per dimension, mean over the sources' held-out tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytosae_core.privacy.accountant import noise_for
from cytosae_core.privacy.moments import (
    Subspace,
    residual_atoms,
    second_moment,
    second_size,
    subspace,
    tensor_atoms,
    third_clip,
    third_moment,
)
from cytosae_core.privacy.noise import exact_sum, grid_for, with_noise
from cytosae_core.privacy.terms import SHARES_WITH_ATOMS
from cytosae_core.sae.models import PursuitModel
from cytosae_core.sae.public import CLIP_FACTOR
from cytosae_core.sae.pursuit import reconstruct
from cytosae_core.sae.residual import ResidualModel
from cytosae_core.sae.train import train_local

from .private_worlds import World, made, real

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MOST_NOISE = 20.0  # noise multiplier up to which sums fit their words
EPSILONS, COUNTS, DELTA = (1.0, 2.0, 4.0, 8.0), (100, 200, 500, 1000, 2000, 5000), 1e-5
FINE_TUNE = 300
SPLIT = SHARES_WITH_ATOMS["second"] / (
    SHARES_WITH_ATOMS["second"] + SHARES_WITH_ATOMS["third"]
)  # the product's
AT_ONCE = 64  # patients


@dataclass(frozen=True)
class Cell:
    """One cell of the table. epsilon None: no noise. ev: rows added / with free public atoms too. found: share of
    planted concepts with cosine above .9 and above .8."""

    epsilon: float | None
    patients: int
    rank: int
    atoms: int
    ev: float
    ev_public: float
    found9: float
    found8: float


def residuals(world: World, patients: NDArray[np.float32]) -> Floats:
    """What the public dictionary leaves of every patient's tokens, [p, T, d]."""
    model = PursuitModel(world.dictionary, world.k)
    out = []
    for start in range(
        0, len(patients), AT_ONCE
    ):  # codes do not depend on the batch; the Gram matrix is made once
        part = patients[start : start + AT_ONCE]
        tokens = torch.from_numpy(part.reshape(-1, part.shape[2]))
        rest = tokens - reconstruct(model.sparse(tokens), world.dictionary)
        out.append(rest.numpy().reshape(part.shape))
    return np.concatenate(out).astype(np.float64)


def seconds(rest: Floats, clip: float, counts: Sequence[int]) -> dict[int, tuple[Ints, float]]:
    """Exact sums of clipped second moments of the first `count` patients of [p, T, d], and their grid."""
    grid = grid_for(clip, max(counts), MOST_NOISE)
    total, found = np.zeros(second_size(rest.shape[2]), np.int64), {}
    for place, part in enumerate(rest[: max(counts)], start=1):
        total = total + exact_sum(second_moment(part)[None], clip, grid)
        if place in counts:
            found[place] = (total, grid)
    return found


def noised(total: Ints, clip: float, noise: float, grid: float) -> Floats:
    """The released sum; noise 0: without any."""
    return np.asarray((with_noise(total, clip, noise, grid) if noise else total) * grid)


def release(
    rest: Floats, second: tuple[Ints, float], clip: float, epsilon: float | None
) -> tuple[Subspace, Floats]:
    """Both releases on patients' residuals [p, T, d]: the subspace, and the tensor's atoms."""
    count, tokens, d = rest.shape
    whole = noise_for(epsilon, DELTA, 1) if epsilon else 0.0
    first, noise = whole / math.sqrt(SPLIT), whole / math.sqrt(1 - SPLIT)
    space = subspace(noised(second[0], clip, first, second[1]), d, first * clip, count)
    if not space.rank:
        return space, np.zeros((0, d))
    third = third_clip(space.rank, tokens)
    grid = grid_for(third, count, MOST_NOISE)
    total = sum(exact_sum(third_moment(part, space)[None], third, grid) for part in rest)
    return space, tensor_atoms(noised(np.asarray(total), third, noise, grid), space, noise, third, count)


def explained(model: ResidualModel | PursuitModel, world: World, *, bias: bool = True) -> float:
    """Mean over sources of 1 - FVU, the bias fitted on the first half of a source's held-out tokens."""
    values = []
    for tokens in world.test.values():
        half = len(tokens) // 2
        rest = tokens - model.reconstruct(model.codes(tokens))
        if isinstance(model, ResidualModel) and bias:
            first = tokens[:half] - model.first.reconstruct(model.first.codes(tokens[:half]))
            model.bias = first.mean(dim=0)
            rest = tokens - model.reconstruct(model.codes(tokens))
        spread = (tokens[half:] - tokens[half:].mean(dim=0)).square().sum()
        values.append(1 - float(rest[half:].square().sum() / spread))
    return float(np.mean(values))


def with_rows(world: World, rows: Floats) -> ResidualModel:
    """The public dictionary and a second stage of these rows."""
    added = torch.from_numpy(rows.astype(np.float32)).reshape(-1, world.dictionary.shape[1])
    return ResidualModel(world.dictionary, added, world.k, world.extra)


def found(planted: Floats, rows: Floats) -> tuple[float, float]:
    """Share of planted concepts with a row of cosine above .9 and above .8."""
    if not len(planted) or not len(rows):
        return (math.nan, math.nan) if not len(planted) else (0.0, 0.0)
    best = (planted @ rows.T).max(axis=1)
    return float((best > 0.9).mean()), float((best > 0.8).mean())


def fine_tuned(world: World, count: int, rows: Floats) -> float:
    """Training without privacy, of the public rows and the same number of added ones, k + k' picks."""
    tokens = torch.from_numpy(world.patients[:count].reshape(-1, world.dictionary.shape[1]))
    start = torch.cat([world.dictionary, torch.from_numpy(rows.astype(np.float32))])
    rng = np.random.default_rng(0)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return tokens[torch.from_numpy(rng.integers(len(tokens), size=512))], torch.zeros(
            512, dtype=torch.int64
        )

    k = world.k + world.extra
    result = train_local(start, batch, k=k, first=0, steps=FINE_TUNE, total=FINE_TUNE, peak=6e-3, n_units=1)
    return explained(PursuitModel(result.dictionary, k), world)


def table(
    world: World, counts: tuple[int, ...], epsilons: tuple[float, ...], clip_factor: float = CLIP_FACTOR
) -> dict[str, Any]:
    """Every cell, and the comparators. clip_factor: times the median of public patients."""
    public_rest = residuals(world, world.public)
    clip = clip_factor * float(np.median([np.linalg.norm(second_moment(part)) for part in public_rest]))
    public_sum = seconds(public_rest, clip, [len(public_rest)])[len(public_rest)]
    free = residual_atoms(
        *release(public_rest, public_sum, clip, None), np.zeros((0, world.dictionary.shape[1]))
    )
    rest = residuals(world, world.patients)
    nothing = np.zeros((0, rest.shape[2]))
    out: dict[str, Any] = {
        "second_clip": clip,
        "zero_shot": explained(PursuitModel(world.dictionary, world.k), world),
        "output_bias": explained(with_rows(world, nothing), world),
        "same_l0": explained(PursuitModel(world.dictionary, world.k + world.extra), world),
        "public_atoms": explained(with_rows(world, free), world),
        "clipped": float(np.mean([np.linalg.norm(second_moment(part)) > clip for part in rest[:500]])),
        "cells": [],
        "trained": {},
    }
    sums = seconds(rest, clip, counts)
    for count in counts:
        for epsilon in (*epsilons, None):
            space, atoms = release(rest[:count], sums[count], clip, epsilon)
            alone = residual_atoms(space, atoms, nothing)
            cell = Cell(
                epsilon, count, space.rank, len(atoms), explained(with_rows(world, alone), world),
                explained(with_rows(world, np.concatenate([alone, free])), world), *found(world.planted, alone),
            )  # fmt: skip
            out["cells"].append(asdict(cell))
            print(json.dumps(asdict(cell)), file=sys.stderr, flush=True)
        out["trained"][count] = fine_tuned(world, count, alone)
    return out


def main() -> int:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world", choices=("real", "made"))
    parser.add_argument("sites", type=Path, nargs="?")
    parser.add_argument("stores", type=Path, nargs="?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--share", type=float, default=0.2, help="made: of private activations on new concepts"
    )
    parser.add_argument("--width", type=int, default=128, help="made: numbers of a token")
    parser.add_argument("--clip-factor", type=float, default=CLIP_FACTOR)
    parser.add_argument("--counts", type=int, nargs="*", default=list(COUNTS))
    parser.add_argument("--epsilons", type=float, nargs="*", default=list(EPSILONS))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.world == "real":
        world = real(given.sites, given.stores, count=max(given.counts), seed=given.seed)
    else:
        world = made(max(given.counts), given.seed, share=given.share, d=given.width)
    print(json.dumps(table(world, tuple(given.counts), tuple(given.epsilons), given.clip_factor)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
