"""Tuning residual moments without anybody's data: made worlds only, so that it costs no privacy.

    python -m benchmarks.private_grid made [--seeds 3] --json
    python -m benchmarks.private_grid real SITES_FOLDER STORES_FOLDER --points 1:0.5:1 2:0.5:1 --json

A point is clip : share : edge. Clip: times the median norm of public patients' second moments. Share: part of the
promise (mu squared) that the second moment gets, the third gets the rest. Edge: times the noise's largest eigenvalue
above which a direction counts. `real` only shows what points chosen on made worlds do there: choosing on it would
cost privacy that nobody counted.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.privacy.accountant import noise_for
from cytosae_core.privacy.moments import (
    EDGE,
    residual_atoms,
    second_moment,
    subspace,
    tensor_atoms,
    third_clip,
    third_moment,
)
from cytosae_core.privacy.noise import exact_sum, grid_for

from .private_utility import DELTA, MOST_NOISE, explained, found, noised, residuals, seconds, with_rows
from .private_worlds import World, made, real

Floats = NDArray[np.float64]
Point = tuple[float, float, float]
CLIPS, SHARES, EDGES = (0.5, 1.0, 2.0, 4.0), (0.3, 0.5, 0.7), (0.9, 1.1, 1.4)
COUNTS, EPSILONS = (300, 1000), (1.0, 4.0)


def atoms_of(rest: Floats, clip: float, epsilon: float, share: float, edge: float) -> tuple[int, Floats]:
    """Rank and added rows of one point, on patients' residuals [p, T, d]; edge relative to `moments.EDGE`."""
    count, tokens, d = rest.shape
    whole = noise_for(epsilon, DELTA, 1)
    first, second = whole / math.sqrt(share), whole / math.sqrt(1 - share)
    total, grid = seconds(rest, clip, [count])[count]
    released = noised(total, clip, first, grid)
    space = subspace(released, d, first * clip * edge / EDGE, count)
    if not space.rank:
        return 0, np.zeros((0, d))
    third = third_clip(space.rank, tokens)
    fine = grid_for(third, count, MOST_NOISE)
    sums = np.asarray(sum(exact_sum(third_moment(part, space)[None], third, fine) for part in rest))
    rows = tensor_atoms(noised(sums, third, second, fine), space, second, third, count)
    return space.rank, residual_atoms(space, rows, np.zeros((0, d)))


def measure(
    world: World, points: list[Point], counts: list[int], epsilons: list[float]
) -> list[dict[str, Any]]:
    """Explained variance (no public atoms), planted concepts found and rank at every point."""
    rest, open_rest = residuals(world, world.patients), residuals(world, world.public)
    typical = float(np.median([np.linalg.norm(second_moment(part)) for part in open_rest]))
    cells = []
    for (clip, share, edge), count, epsilon in product(points, counts, epsilons):
        rank, rows = atoms_of(rest[:count], clip * typical, epsilon, share, edge)
        cell = {
            "clip": clip, "share": share, "edge": edge, "patients": count, "epsilon": epsilon, "rank": rank,
            "ev": explained(with_rows(world, rows), world), "found9": found(world.planted, rows)[0],
        }  # fmt: skip
        cells.append(cell)
        print(json.dumps(cell), file=sys.stderr, flush=True)
    return cells


def means(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The same cells of several worlds, averaged."""
    return [
        {
            **cells[0],
            **{name: float(np.mean([cell[name] for cell in cells])) for name in ("ev", "found9", "rank")},
        }
        for cells in zip(*runs, strict=True)
    ]


def main() -> int:
    """Print one JSON line: cells, the best first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("world", choices=("real", "made"))
    parser.add_argument("sites", type=Path, nargs="?")
    parser.add_argument("stores", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument(
        "--rare", type=float, default=0.2, help="made: of private activations on new concepts"
    )
    parser.add_argument("--new", type=int, default=12, help="made: number of new concepts")
    parser.add_argument("--points", nargs="*", default=[], metavar="CLIP:SHARE:EDGE")
    parser.add_argument("--counts", type=int, nargs="*", default=list(COUNTS))
    parser.add_argument("--epsilons", type=float, nargs="*", default=list(EPSILONS))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    asked = [tuple(map(float, point.split(":"))) for point in given.points]
    points: list[Point] = [(a, b, c) for a, b, c in asked or product(CLIPS, SHARES, EDGES)]
    runs = []
    for seed in range(given.seeds):
        if given.world == "made":
            world = made(max(given.counts), seed, share=given.rare, d=given.width, new=given.new)
        else:
            world = real(given.sites, given.stores, count=max(given.counts), seed=seed)
        runs.append(measure(world, points, given.counts, given.epsilons))
    print(json.dumps(sorted(means(runs), key=lambda cell: (cell["patients"], cell["epsilon"], -cell["ev"]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
