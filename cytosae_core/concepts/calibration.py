"""Do the probabilities of the other sites' probe hold here? Per class against the rest (audit.md 5.4). numpy only.

The probabilities are those that the probe's own model states: softmax of minus half the squared distances, for
classes that are equally frequent, at temperature 1. Nothing is tuned, neither here nor elsewhere. The model takes
hundreds of concepts for independent, so it counts the same evidence several times and is too sure of itself: a slope
far below 1 says by how much. Calibration in the large also holds what this site's mix of classes adds, since the
probe knows none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from ..config import CALIBRATION
from .probe import unit_weights

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Probabilities are stated between this and 1 minus this: beyond, only the probe's overconfidence speaks, and single
# images would carry the slope.
PROBABILITY_FLOOR = 1e-6
BINS, UNITS_PER_BIN = 5, 11
STEPS, TOLERANCE = 50, 1e-8


def class_logits(scores: Floats) -> Floats:
    """ln(p / (1 - p)) of each class's probability [m, c] from the evidence [m, c]; NaN for -inf, unknown."""
    out = np.full(scores.shape, np.nan)
    known = np.flatnonzero(np.isfinite(scores).all(axis=0))
    for index in known:
        rest = scores[:, known[known != index]]
        out[:, index] = scores[:, index] - logsumexp(rest, axis=1)
    return out


def calibration(logits: Floats, labels: Ints, units: Ints) -> tuple[Floats, Ints]:
    """Values [c, 7] in the order of `config.CALIBRATION`, NaN where unknown, and the units behind each class [c].

    Behind a class stand its units or those of the other classes, whichever are fewer.

    Args:
        logits: [m, c] of `class_logits`.
        labels, units: [m] of the same images.
    """
    classes = logits.shape[1]
    values, behind = np.full((classes, len(CALIBRATION)), np.nan), np.zeros(classes, dtype=np.int64)
    for index in range(classes):
        event = labels == index
        if np.isnan(logits[:, index]).any() or not event.any() or event.all():
            continue
        values[index] = binary_calibration(logits[:, index], event, units)
        behind[index] = min(len(np.unique(units[event])), len(np.unique(units[~event])))
    return values, behind


def binary_calibration(logit: Floats, event: NDArray[np.bool_], units: Ints) -> Floats:
    """slope, slope_se, citl, observed, expected, brier, ece [7] of one event, every unit weighing the same.

    Slope: b of logit P(event) = a + b logit, its error with the units as clusters (Liang and Zeger 1986). CITL: a at
    b = 1. Slope and error are NaN where a threshold parts events from the rest without a fault: no finite slope fits
    best. ECE: see `ece`.
    """
    limit = float(np.log((1 - PROBABILITY_FLOOR) / PROBABILITY_FLOOR))
    clipped = np.clip(logit, -limit, limit)
    stated, happened = expit(clipped), event.astype(np.float64)
    weight, _ = unit_weights(units)
    ones = np.ones_like(clipped)
    slope = logistic(np.stack([ones, clipped], axis=1), happened, units)
    large = logistic(ones[:, None], happened, units, offset=clipped)
    return np.array(
        [
            slope[0][1], slope[1][1], large[0][0], weight @ happened, weight @ stated,
            weight @ (stated - happened) ** 2, ece(logit, stated, happened, units),
        ]
    )  # fmt: skip


def logistic(
    design: Floats, happened: Floats, units: Ints, offset: Floats | float = 0.0
) -> tuple[Floats, Floats]:
    """Coefficients [q] of a logistic regression on `design` [m, q], and their errors with the units as clusters.

    Newton's method with halved steps; every unit weighs the same. NaN when it does not converge (separation).
    """
    names, place = np.unique(units, return_inverse=True)
    weight = unit_weights(units)[0] * len(names)
    beta = np.zeros(design.shape[1])
    nothing = np.full(len(beta), np.nan), np.full(len(beta), np.nan)

    def loss(at: Floats) -> float:
        line = design @ at + offset
        return float(weight @ (np.logaddexp(0, line) - happened * line))

    for _ in range(STEPS):
        stated = expit(design @ beta + offset)
        gradient = design.T @ (weight * (happened - stated))
        curvature = (design * (weight * stated * (1 - stated))[:, None]).T @ design
        if not np.linalg.cond(curvature) < 1 / TOLERANCE:
            return nothing
        move = np.linalg.solve(curvature, gradient)
        if np.abs(move).max() <= TOLERANCE * (1 + np.abs(beta).max()):
            return beta, _clustered(design, weight * (happened - stated), curvature, place)
        here = loss(beta)
        while loss(beta + move) > here and np.abs(move).max() > TOLERANCE:
            move = move / 2
        beta = beta + move
    return nothing


def _clustered(design: Floats, residual: Floats, curvature: Floats, place: Ints) -> Floats:
    """Sandwich errors [q] with U / (U - 1) for U units; NaN for one unit."""
    units = int(place.max()) + 1
    if units < 2:
        return np.full(design.shape[1], np.nan)
    summed = np.zeros((units, design.shape[1]))
    np.add.at(summed, place, design * residual[:, None])
    inverse = np.linalg.inv(curvature)
    variance = np.diag(inverse @ (summed.T @ summed) @ inverse) * units / (units - 1)
    return np.asarray(np.sqrt(np.clip(variance, 0, None)))


def ece(logit: Floats, stated: Floats, happened: Floats, units: Ints) -> float:
    """Expected calibration error: weighted mean over 5 bins of |observed - stated|, bins of equal weight in the order
    of `logit`; NaN when a bin holds fewer than 11 units."""
    weight, _ = unit_weights(units)
    order = np.argsort(logit, kind="stable")
    middle = np.cumsum(weight[order]) - weight[order] / 2
    number = np.empty(len(logit), dtype=np.int64)
    number[order] = np.minimum((middle * BINS).astype(np.int64), BINS - 1)
    error = 0.0
    for index in range(BINS):
        mine = number == index
        if len(np.unique(units[mine])) < UNITS_PER_BIN:
            return float("nan")
        error += abs(float(weight[mine] @ (happened[mine] - stated[mine])))
    return error
