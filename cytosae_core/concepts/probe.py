"""A probe that needs sums only: nearest class mean with one variance per feature (diagonal discriminant).

Sites send class means and variances, never rows. The variance of a feature is its mean variance within classes
plus how much its class means differ between sites, so that a feature which moves with the site counts less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
VARIANCE_FLOOR = 1e-6


@dataclass(frozen=True)
class Probe:
    """Class means [c, w] (NaN rows: class unknown) and one variance per feature [w]."""

    mean: Floats
    variance: Floats

    def predict(self, features: NDArray[np.float32]) -> Ints:
        """Class index of each row of `features` [images, w]."""
        known = ~np.isnan(self.mean).any(axis=1)
        distance = np.full((len(features), len(self.mean)), np.inf)
        for index in np.flatnonzero(known):
            distance[:, index] = ((features - self.mean[index]) ** 2 / self.variance).sum(axis=1)
        return np.asarray(np.argmin(distance, axis=1), dtype=np.int64)


def class_moments(
    features: NDArray[np.float32], labels: Ints, units: Ints, n_classes: int
) -> tuple[Floats, Floats, Ints]:
    """Per class: mean [c, w], variance [c, w] and units [c]; every unit weighs the same within a class."""
    width = features.shape[1]
    mean, variance = np.full((n_classes, width), np.nan), np.full((n_classes, width), np.nan)
    counts = np.zeros(n_classes, dtype=np.int64)
    for index in range(n_classes):
        chosen = labels == index
        if chosen.any():
            weight, counts[index] = unit_weights(units[chosen])
            values = features[chosen].astype(np.float64)
            mean[index] = weight @ values
            variance[index] = weight @ (values - mean[index]) ** 2
    return mean, variance, counts


def unit_weights(units: Ints) -> tuple[Floats, int]:
    """Weights that sum to 1 and give every unit the same total, and the number of units."""
    names, place, count = np.unique(units, return_inverse=True, return_counts=True)
    return 1.0 / (len(names) * count[place]), len(names)


def combine(means: Floats, variances: Floats) -> Probe:
    """A probe from site-wise class means and variances [s, c, w]; NaN where a site has nothing to say.

    A feature that some site withheld is dropped (mean 0, infinite variance would be the same).
    """
    known = ~np.isnan(means)
    count = known.sum(axis=0)
    present = (count > 0).any(axis=1)
    with np.errstate(invalid="ignore"):
        mean = np.where(count > 0, np.nansum(means, axis=0) / np.maximum(count, 1), np.nan)
    within = _mean_of_known(variances.reshape(-1, variances.shape[-1]))
    between = _mean_of_known(np.where(known, (means - mean) ** 2, np.nan).reshape(-1, means.shape[-1]))
    usable = (count[present] > 0).all(axis=0)
    variance = np.where(usable, within + between + VARIANCE_FLOOR, np.inf)
    mean[present] = np.where(usable, mean[present], 0.0)
    mean[~present] = np.nan
    return Probe(mean, variance)


def _mean_of_known(values: Floats) -> Floats:
    known = ~np.isnan(values)
    return np.asarray(np.nansum(values, axis=0) / np.maximum(known.sum(axis=0), 1))


def balanced_accuracy(predicted: Ints, labels: Ints, units: Ints) -> float:
    """Mean over classes of the share of right answers, every unit weighing the same within a class."""
    shares = []
    for index in np.unique(labels):
        chosen = labels == index
        weight, _ = unit_weights(units[chosen])
        shares.append(float(weight @ (predicted[chosen] == index)))
    return float(np.mean(shares)) if shares else float("nan")


def site_recall(
    features: NDArray[np.float32],
    labels: Ints,
    units: Ints,
    own: tuple[Floats, Floats],
    other: tuple[Floats, Floats],
) -> float:
    """Share of images that lie closer to their class' mean at the own site than at the other site.

    `own` and `other` are (mean, variance) [c, w] of the first half of the units; `features` are of the second
    half. Classes that both sites have count the same; NaN when there is none.
    """
    shares = []
    for index in np.unique(labels):
        mine, theirs = own[0][index], other[0][index]
        usable = ~(np.isnan(mine) | np.isnan(theirs))
        if not usable.any():
            continue
        variance = (own[1][index] + other[1][index])[usable] / 2 + VARIANCE_FLOOR
        values = features[labels == index][:, usable]
        gap = (((values - theirs[usable]) ** 2 - (values - mine[usable]) ** 2) / variance).sum(axis=1)
        weight, _ = unit_weights(units[labels == index])
        shares.append(float(weight @ ((gap > 0) + 0.5 * (gap == 0))))
    return float(np.mean(shares)) if shares else float("nan")


def standardise(values: NDArray[Any], mean: NDArray[Any], variance: NDArray[Any]) -> NDArray[np.float32]:
    """(values - mean) / sd per column; columns without spread become 0."""
    spread = np.sqrt(np.maximum(variance, 1e-12))
    return np.asarray(np.where(variance > 1e-12, (values - mean) / spread, 0), dtype=np.float32)
