"""What a concept adds to a class's evidence in the other sites' probe: its code is set to the site's mean. numpy.

The probe (`probe.Probe`) is a sum over concepts, so taking one concept away is exact and needs no second pass over
tokens: the evidence of class k changes by minus x_j mean_kj / variance_j, whatever the other concepts do. Which other
class is then the strongest is looked up again. This is what the concept does in this probe, not in nature: two
concepts that say the same share the credit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .auroc import unit_means
from .probe import AppliedProbe, unit_weights

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CHUNK_BYTES = 64 * 1024 * 1024
# Requests hold finite numbers: a feature that the probe does not use comes with a variance far above this.
UNUSED_VARIANCE = 1e20


def ablation(found: AppliedProbe, features: NDArray[np.float32], labels: Ints, units: Ints) -> Floats:
    """Fall of each class's mean margin when a concept is set to 0, as a share of the margins' mean size: [w, c].

    The margin of an image is the evidence for its own class minus that for the strongest other class; images of a
    class are averaged with every unit weighing the same. Positive: the concept speaks for the class. NaN for a class
    that is not in both the probe and the site, and for a concept that the probe does not use.

    Args:
        features: [m, w] standardised codes of the images that were tested; 0 is the site's mean.
        labels, units: [m] of the same images.
    """
    width, classes = features.shape[1], len(found.probe.mean)
    out = np.full((width, classes), np.nan)
    for own in np.unique(labels):
        mine = labels == own
        weight, _ = unit_weights(units[mine])
        before = found.scores[mine]
        margin = before[:, own] - _strongest_other(before, own)
        size = float(
            weight @ np.abs(margin)
        )  # of the mean margin nothing may be left where a probe is at chance
        if size > 0:
            after = _margins_without(found, features[mine], before, own, weight)
            out[:, own] = (weight @ margin - after) / size
    out[found.probe.variance > UNUSED_VARIANCE] = np.nan
    return out


def _strongest_other(scores: Floats, own: int) -> Floats:
    return np.asarray(np.delete(scores, own, axis=1).max(axis=1))


def _margins_without(
    found: AppliedProbe, features: Array, before: Floats, own: int, weight: Floats
) -> Floats:
    """Mean margin of class `own` without each concept, [w]; a block of concepts at a time."""
    slope = found.probe.mean / found.probe.variance  # [c, w]
    others = [index for index in np.flatnonzero(~np.isnan(slope).any(axis=1)) if index != own]
    out = np.empty(features.shape[1])
    step = max(1, CHUNK_BYTES // (8 * len(features)))
    for start in range(0, len(out), step):
        part = slice(start, start + step)
        values = features[:, part].astype(np.float64)
        rival = np.full(values.shape, -np.inf)
        for other in others:
            np.maximum(rival, before[:, other, None] - values * slope[other, part], out=rival)
        out[part] = weight @ (before[:, own, None] - values * slope[own, part] - rival)
    return out


def class_backing(
    codes: NDArray[np.float32],
    labels: Ints,
    units: Ints,
    fired_units: Ints,
    n_classes: int,
    dominated: Callable[[Array], NDArray[np.bool_]],
) -> Ints:
    """Units behind each concept's numbers of each class, [n, c]: the class's units, at most the units in which the
    concept fires (`fired_units` [n]), and none where a few units make up its codes in the class (disclosure rule S4).
    A fall of the margin is a multiple of the concept's class mean, so it is withheld wherever that mean is."""
    out = np.zeros((codes.shape[1], n_classes), dtype=np.int64)
    for index in np.unique(labels):
        mine = labels == index
        means, names = unit_means(codes[mine], units[mine])
        silent = ~(means > 0).any(axis=0)  # nobody contributes: a fact about all of the class's units
        out[:, index] = np.where(dominated(means) & ~silent, 0, np.minimum(fired_units, len(names)))
    return out
