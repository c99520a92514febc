"""Class-balanced L2 logistic regression from sums: sites send gradient, Hessian and loss, never rows.

One-versus-rest, one problem per class. Problem c minimises

    F_c(w) = sum_i a_ic log(1 + exp(-y_ic x_i . w)) + penalty / 2 |w without intercept|^2,     y_ic = +1 / -1,

with a_ic such that the positives weigh 1/2 in all, every other class 1 / (2 (C - 1)), and within a class every unit
the same. F_c is a sum over sites, so Newton's method on summed gradients and Hessians is the pooled fit (IRLS;
Hastie, Tibshirani and Friedman 2009, section 4.4.1). Steps are halved until the loss falls by the Armijo rule, so
it converges on separable data too (the penalty keeps the minimum finite). All float64.

Two questions to a site: `unit_counts` once, then `site_sums` per step. A class with fewer than `minimum` units at a
site takes no part there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ..errors import DataError, StudyError
from .pooling import SiteTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MIN_UNITS = 11
ARMIJO, SMALLEST_STEP = 1e-4, 2.0**-30


@dataclass(frozen=True)
class Sums:
    """What a site sends per step, for C classes and k features (the intercept is the last entry).

    Attributes:
        gradient: [C, k + 1]. hessian: [C, k + 1, k + 1], symmetric. loss: [C], without the penalty.
    """

    gradient: Floats
    hessian: Floats
    loss: Floats

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.gradient + other.gradient, self.hessian + other.hessian, self.loss + other.loss)


@dataclass(frozen=True)
class Newton:
    """The coordinator's state: `trial` [C, k + 1] is what sites are asked about next.

    Attributes:
        accepted: last weights whose loss fell. objective: [C] theirs, infinite before the first answer.
        direction, slope, step: [C, k + 1], [C], [C] of the line search. penalty: L2 strength > 0.
    """

    trial: Floats
    accepted: Floats
    objective: Floats
    direction: Floats
    slope: Floats
    step: Floats
    penalty: float

    @property
    def decrement(self) -> float:
        """Largest expected fall of any problem's loss: half of g' H^-1 g (Boyd and Vandenberghe 2004, 9.5.1)."""
        return float(np.max(-self.slope) / 2)


def unit_counts(labels: Ints, units: Ints, n_classes: int, *, minimum: int = MIN_UNITS) -> Ints:
    """Units per class [C] that take part at a site; 0 for a class with fewer than `minimum`."""
    counts = np.array([len(np.unique(units[labels == c])) for c in range(n_classes)], np.int64)
    return np.where(counts >= minimum, counts, 0)


def site_sums(
    features: Floats, labels: Ints, units: Ints, weights: Floats, totals: Ints, *, minimum: int = MIN_UNITS
) -> Sums:
    """Gradient, Hessian and loss of one site at the given weights.

    Args:
        features: [m, k], standardised at the site. labels, units: [m].
        weights: [C, k + 1] asked about. totals: [C] units per class over all sites.

    Raises:
        StudyError: weights of another shape, a class without units, or numbers that are not finite.
    """
    n_classes = len(totals)
    if weights.shape != (n_classes, features.shape[1] + 1):
        raise StudyError(
            f"Expected weights[{n_classes}, {features.shape[1] + 1}], got {list(weights.shape)}."
        )
    if not (np.isfinite(features).all() and np.isfinite(weights).all()):
        raise StudyError("Expected finite features and weights.")
    rows, shares = _taking_part(labels, units, totals, minimum)
    x = np.column_stack([features[rows], np.ones(len(rows))]).astype(np.float64)
    out = [_problem(x, labels[rows] == c, shares, weights[c], n_classes) for c in range(n_classes)]
    gradient, hessian, loss = (np.array(part) for part in zip(*out, strict=True))
    return Sums(gradient, hessian, loss)


def start(n_classes: int, k: int, penalty: float) -> Newton:
    """Weights 0; `StudyError` without a positive penalty or two classes."""
    if not penalty > 0 or n_classes < 2 or k < 1:
        raise StudyError(f"Expected penalty > 0, classes >= 2 and k >= 1, got {penalty}, {n_classes}, {k}.")
    zero, infinite = np.zeros((n_classes, k + 1)), np.full(n_classes, np.inf)
    return Newton(zero, zero, infinite, zero, -infinite, np.ones(n_classes), penalty)


def newton_step(state: Newton, sums: Sums) -> Newton:
    """The next weights to ask about, from all sites' sums at `state.trial`. Every class on its own.

    A trial whose loss did not fall enough is halved back towards the accepted weights.
    """
    trial, penalty = state.trial, state.penalty
    ridge = np.full(trial.shape[1], penalty)
    ridge[-1] = 0.0
    objective = sums.loss + 0.5 * (ridge * trial**2).sum(axis=1)
    with np.errstate(invalid="ignore"):
        allowed = state.objective + ARMIJO * state.step * state.slope
    noise = 1e-14 * np.abs(objective)
    good = ~np.isfinite(state.objective) | (objective <= allowed + noise) | (state.step <= SMALLEST_STEP)
    accepted = np.where(good[:, None], trial, state.accepted)
    direction, slope = state.direction.copy(), state.slope.copy()
    for c in np.flatnonzero(good):
        gradient = sums.gradient[c] + ridge * trial[c]
        direction[c] = -np.linalg.solve(sums.hessian[c] + np.diag(ridge + 1e-12), gradient)
        slope[c] = gradient @ direction[c]
    step = np.where(good, 1.0, state.step / 2)
    return replace(
        state, trial=accepted + step[:, None] * direction, accepted=accepted,
        objective=np.where(good, objective, state.objective), direction=direction, slope=slope, step=step,
    )  # fmt: skip


def fit(
    sites: Mapping[str, SiteTable] | Sequence[SiteTable],
    n_classes: int,
    *,
    penalty: float = 1e-2,
    steps: int = 50,
    tolerance: float = 1e-12,
    minimum: int = MIN_UNITS,
) -> Floats:
    """The whole exchange in one process: weights [C, k + 1]. With one table it is the pooled fit.

    Raises:
        DataError: a class with too few units at every site. StudyError: no convergence within `steps`.
    """
    tables = list(sites.values()) if isinstance(sites, Mapping) else list(sites)
    totals = sum(
        (unit_counts(t.labels, t.units, n_classes, minimum=minimum) for t in tables), np.zeros(n_classes, int)
    )
    if (totals == 0).any():
        few = np.flatnonzero(totals == 0).tolist()
        raise DataError(
            f"Expected at least {minimum} units of every class at some site, classes {few} have fewer.",
            hint="Leave the class out or pool it with another.",
        )
    state = start(n_classes, tables[0].features.shape[1], penalty)
    for _ in range(steps):
        parts = [
            site_sums(t.features, t.labels, t.units, state.trial, totals, minimum=minimum) for t in tables
        ]
        state = newton_step(state, sum(parts[1:], parts[0]))
        if np.isfinite(state.slope).all() and state.decrement < tolerance:
            return state.trial
    raise StudyError(f"Expected convergence within steps={steps}.", hint="Use a larger penalty.")


def scores(features: Floats, weights: Floats) -> Floats:
    """One-versus-rest log odds [m, C]; the largest is the prediction."""
    return np.asarray(features @ weights[:, :-1].T + weights[:, -1])


def _taking_part(labels: Ints, units: Ints, totals: Ints, minimum: int) -> tuple[Ints, Floats]:
    """Rows of classes with enough units, and each row's share: every unit of a class weighs 1 / total units."""
    own = unit_counts(labels, units, len(totals), minimum=minimum)
    if (totals < own).any():
        raise StudyError("Expected totals at least as large as the site's own unit counts.")
    rows = np.flatnonzero(own[labels] > 0)
    pair = units[rows] * len(totals) + labels[rows]
    _, place, count = np.unique(pair, return_inverse=True, return_counts=True)
    return rows, 1.0 / (count[place] * totals[labels[rows]])


def _problem(
    x: Floats, positive: NDArray[np.bool_], shares: Floats, weights: Floats, n_classes: int
) -> tuple[Floats, Floats, float]:
    balanced = shares * np.where(positive, 0.5, 0.5 / (n_classes - 1))
    sign = np.where(positive, 1.0, -1.0)
    margin = sign * (x @ weights)
    wrong = expit(-margin)
    return (
        -x.T @ (balanced * sign * wrong),
        (x * (balanced * wrong * (1 - wrong))[:, None]).T @ x,
        float(balanced @ np.logaddexp(0, -margin)),
    )
