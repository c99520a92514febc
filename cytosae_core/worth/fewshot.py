"""Name a concept from a few labelled cells: which dictionary rows speak of it, and which other cells show it.

Labels are spread over a graph of all cells of the pool (Zhou et al. 2004, label spreading), and a class-balanced
L2 logistic regression over the dictionary rows is fitted to the spread labels: its weights say which rows carry the
concept, and it scores cells that were in no graph. With `unlabelled=False` only the labelled cells are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import cg

from ..errors import DataError
from .crossval import weighted_auroc
from .federated import Newton, Sums, newton_step, start
from .intervals import Estimate, estimate_of
from .pooling import unit_length
from .ridge import Scaler

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NEIGHBOURS, ALPHA = 10, 0.9
SHOTS, REPEATS = (1, 2, 5, 10, 20), 10
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Refined:
    """`weights` [n] over dictionary rows (per standard deviation of the code), `scores` [m] log odds of the cells,
    `spread` [m] soft labels in [-1, 1] from the graph (NaN without it)."""

    weights: Floats
    scores: Floats
    spread: Floats
    scaler: Scaler
    bias: float

    def score(self, features: NDArray[Any]) -> Floats:
        """Log odds [k] of cells that were not in the pool."""
        return np.asarray(self.scaler.apply(features) @ self.weights + self.bias)


def refine(
    features: NDArray[Any], labelled: Ints, positive: NDArray[np.bool_], *,
    unlabelled: bool = True, penalty: float = 1e-1, trust: float = 0.5,
) -> Refined:  # fmt: skip
    """Turn a few labelled cells into weights over dictionary rows.

    Args:
        features: [m, n] pooled codes of all cells, labelled and not.
        labelled: [l] rows that have a label. positive: [l] whether they show the concept.
        unlabelled: spread the labels over the other cells.
        penalty: L2 strength. trust: weight of all unlabelled cells together, next to 1 of the labelled ones.

    Raises:
        DataError: no positive or no negative cell, a row twice or outside, or numbers that are not finite.
    """
    values = np.asarray(features, np.float64)
    if not positive.any() or positive.all():
        raise DataError("Expected at least one cell that shows the concept and one that does not.")
    if len(set(labelled.tolist())) < len(labelled) or not 0 <= labelled.min() <= labelled.max() < len(values):
        raise DataError(f"Expected different labelled cells among 0 .. {len(values) - 1}.")
    if len(labelled) != len(positive) or not np.isfinite(values).all():
        raise DataError("Expected one label per labelled cell and finite features.")
    scaler = Scaler.fit(values)
    x = scaler.apply(values)
    share, target, spread = np.zeros(len(x)), np.zeros(len(x)), np.full(len(x), np.nan)
    if unlabelled:
        spread = spread_labels(x, labelled, positive)
        share = trust * _balanced(np.abs(spread), spread > 0)
        target = np.asarray(spread > 0, np.float64)
    own = np.ones(len(labelled))
    share[labelled], target[labelled] = _balanced(own, positive), positive
    weights = soft_logistic(x, target, share, penalty)
    return Refined(weights[:-1], x @ weights[:-1] + weights[-1], spread, scaler, float(weights[-1]))


def spread_labels(x: Floats, labelled: Ints, positive: NDArray[np.bool_]) -> Floats:
    """Soft labels in [-1, 1]: F = (1 - a)(1 - a S)^-1 Y per side (Zhou et al. 2004, equation 4), sides balanced.

    S is the normalised graph of the 10 nearest neighbours by cosine; 0 where no label reaches.
    """
    graph = neighbour_graph(x)
    sides = []
    for side in (True, False):
        start_at = np.zeros(len(x))
        start_at[labelled[positive == side]] = 1 / max(1, int((positive == side).sum()))
        system = sparse.identity(len(x), format="csr") - ALPHA * graph
        found, _ = cg(system, start_at, rtol=1e-8, maxiter=500)
        sides.append(np.clip(found, 0, None))
    total = sides[0] + sides[1]
    return np.asarray(np.where(total > 1e-12, (sides[0] - sides[1]) / np.maximum(total, 1e-12), 0.0))


def neighbour_graph(x: Floats) -> Any:
    """Symmetric graph of nearest neighbours by cosine, D^-1/2 W D^-1/2: sparse [m, m]."""
    direction = unit_length(x.astype(np.float32))
    cosine = direction @ direction.T
    np.fill_diagonal(cosine, -np.inf)
    k = min(NEIGHBOURS, len(x) - 1)
    near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
    rows = np.repeat(np.arange(len(x)), k)
    weight = np.clip(cosine[rows, near.ravel()], 0, None).astype(np.float64)
    graph = sparse.csr_matrix((weight, (rows, near.ravel())), shape=(len(x), len(x)))
    graph = graph.maximum(graph.T)
    root = sparse.diags(1 / np.sqrt(np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1e-12)))
    return (root @ graph @ root).tocsr()


def soft_logistic(x: Floats, target: Floats, share: Floats, penalty: float) -> Floats:
    """Weights [n + 1] of an L2 logistic regression, in the space of the rows (n may exceed the cells)."""
    used = share > 0
    left, singular, right = np.linalg.svd(x[used], full_matrices=False)
    z = np.column_stack([left * singular, np.ones(int(used.sum()))])
    state = start(2, z.shape[1] - 1, penalty)
    sign, weight = 2 * target[used] - 1, share[used]
    for _ in range(60):
        state = newton_step(state, _both(z, sign, weight, state))
        if state.decrement < 1e-10:
            break
    found = state.trial[0]
    return np.append(right.T @ found[:-1], found[-1])


def _both(z: Floats, sign: Floats, weight: Floats, state: Newton) -> Sums:
    """The same problem twice: `newton_step` solves one problem per class."""
    from scipy.special import expit

    margin = sign * (z @ state.trial[0])
    wrong = expit(-margin)
    gradient = -z.T @ (weight * sign * wrong)
    hessian = (z * (weight * wrong * (1 - wrong))[:, None]).T @ z
    loss = float(weight @ np.logaddexp(0, -margin))
    return Sums(np.stack([gradient] * 2), np.stack([hessian] * 2), np.array([loss] * 2))


def _balanced(weight: Floats, positive: NDArray[np.bool_]) -> Floats:
    """Weights scaled so that both sides sum to 1/2; a side without weight stays 0."""
    out = np.zeros(len(weight))
    for side in (True, False):
        total = weight[positive == side].sum()
        if total > 0:
            out[positive == side] = weight[positive == side] / (2 * total)
    return out


@dataclass(frozen=True)
class Trial:
    """AUROC on held-out cells after naming from `shots` cells per side: one value per repeat [r]."""

    shots: int
    unlabelled: bool
    auroc: Floats

    @property
    def estimate(self) -> Estimate:
        """Mean over repeats with the interval of that mean (repeats resampled)."""
        rng = np.random.default_rng(0)
        draws = self.auroc[rng.integers(len(self.auroc), size=(2000, len(self.auroc)))].mean(axis=1)
        return estimate_of(float(self.auroc.mean()), draws)


def learning_curve(
    features: NDArray[Any], positive: NDArray[np.bool_], units: Ints, *,
    shots: tuple[int, ...] = SHOTS, repeats: int = REPEATS, shuffle: bool = False, tick: Tick | None = None,
) -> list[Trial]:  # fmt: skip
    """Held-out AUROC against the number of labels per side, with and without unlabelled cells.

    Every repeat draws new units for the pool (half) and new labelled cells; the other half is scored.

    Args:
        shuffle: the control: labels of the labelled cells exchanged.

    Raises:
        DataError: fewer than max(shots) + 5 cells on a side in half of the data.
    """
    need = 2 * (max(shots) + 5)
    if min(positive.sum(), (~positive).sum()) < need:
        raise DataError(
            f"Expected at least {need} cells with and without the concept, got {int(positive.sum())} and "
            f"{int((~positive).sum())}.",
            hint="Ask for fewer labels.",
        )
    found: dict[tuple[int, bool], list[float]] = {(s, u): [] for s in shots for u in (False, True)}
    for repeat in range(repeats):
        rng = np.random.default_rng([repeat, 11])
        pool, test = _halves(positive, units, rng)
        order = [rng.permutation(np.flatnonzero(positive[pool] == side)) for side in (True, False)]
        for s, u in found:
            labelled = np.concatenate([order[0][:s], order[1][:s]])
            sides = positive[pool][labelled]
            sides = rng.permutation(sides) if shuffle else sides
            named = refine(features[pool], labelled, sides, unlabelled=u)
            scores = named.score(features[test])
            found[s, u].append(float(weighted_auroc(scores, positive[test], np.ones((1, len(test))))[0]))
        if tick:
            tick(repeat + 1, repeats)
    return [Trial(s, u, np.array(values)) for (s, u), values in found.items()]


def _halves(positive: NDArray[np.bool_], units: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Rows of a random half of the units and of the others."""
    names = rng.permutation(np.unique(units))
    chosen = np.isin(units, names[: len(names) // 2])
    for rows in (chosen, ~chosen):
        if not positive[rows].any() or positive[rows].all():
            raise DataError("Expected cells with and without the concept in both halves of the units.")
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)
