"""A probe that needs sums only: nearest class mean with one variance per feature (diagonal discriminant).

Sites send class means and variances, never rows. The variance of a feature is its mean variance within classes
plus how much its class means differ between sites, so that a feature which moves with the site counts less.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
VARIANCE_FLOOR = 1e-6
CHUNK_BYTES = 64 * 1024 * 1024  # of float64 copies of features, at any width


@dataclass(frozen=True)
class Probe:
    """Class means [c, w] (NaN rows: class unknown) and one variance per feature [w]."""

    mean: Floats
    variance: Floats

    def predict(self, features: NDArray[np.float32]) -> Ints:
        """Class index of each row of `features` [images, w]."""
        return np.asarray(np.argmax(self.scores(features), axis=1), dtype=np.int64)

    def scores(self, features: NDArray[np.float32]) -> Floats:
        """Evidence for each class, [images, c]: minus half the squared distance to its mean in units of `variance`,
        without the part that all classes share; -inf for an unknown class. Softmax gives the probabilities that this
        Gaussian model states for classes that are equally frequent."""
        known = ~np.isnan(self.mean).any(axis=1)
        weight = self.mean[known] / self.variance
        offset = (weight * self.mean[known]).sum(axis=1) / 2
        out = np.full((len(features), len(self.mean)), -np.inf)
        step = max(1, CHUNK_BYTES // (8 * max(1, features.shape[1])))
        for start in range(0, len(features), step):
            part = features[start : start + step].astype(np.float64)
            out[start : start + step, known] = part @ weight.T - offset
        return out


@dataclass(frozen=True)
class AppliedProbe:
    """A probe of other sites on those images of a site whose class both sides have.

    Attributes:
        probe: the probe, its other classes unknown.
        chosen: [images] which images those are.
        scores: [m, c] evidence of the chosen images.
    """

    probe: Probe
    chosen: NDArray[np.bool_]
    scores: Floats


def apply_probe(probe: Probe, features: NDArray[np.float32], labels: Ints) -> AppliedProbe | None:
    """`probe` on `features` [images, w] with `labels` (-1: no class of the study); None below two shared classes."""
    taught = np.flatnonzero(~np.isnan(probe.mean).any(axis=1))
    shared = np.intersect1d(labels, taught)
    if len(shared) < 2:
        return None
    mean = np.full_like(probe.mean, np.nan)
    mean[shared] = probe.mean[shared]
    chosen = np.isin(labels, shared)
    restricted = Probe(mean, probe.variance)
    return AppliedProbe(restricted, chosen, restricted.scores(features[chosen]))


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


@dataclass
class ProbeSums:
    """Sums over sites of class means, their squares and class variances: all that a probe needs.

    A site can be taken out again (`without`), so leave-one-site-out keeps memory independent of the number of
    sites. NaN entries (withheld, or a class that a site does not have) do not count.
    """

    count: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    mean: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    square: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    variance: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, mean: Floats, variance: Floats) -> None:
        """Add one site's class means and variances [c, w]."""
        if not self.count.size:
            self.count, self.mean, self.square, self.variance = (np.zeros(mean.shape) for _ in range(4))
        for total, part in zip(self._totals(), _contribution(mean, variance), strict=True):
            total += part

    def without(self, mean: Floats, variance: Floats) -> Probe:
        """The probe of all added sites but the one with these moments."""
        parts = [
            total - part for total, part in zip(self._totals(), _contribution(mean, variance), strict=True)
        ]
        return _probe(*parts)

    def probe(self) -> Probe:
        """The probe of all added sites."""
        return _probe(*self._totals())

    def _totals(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.count, self.mean, self.square, self.variance


def _contribution(mean: Floats, variance: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    known = ~(np.isnan(mean) | np.isnan(variance))
    value = np.where(known, mean, 0.0).astype(np.float64)
    return known.astype(np.float64), value, value**2, np.where(known, variance, 0.0).astype(np.float64)


def _probe(count: Floats, total: Floats, square: Floats, variance: Floats) -> Probe:
    """Per class the mean over sites; per feature the mean variance within classes plus between sites.

    A feature that no site knows for some class is dropped: mean 0, infinite variance.
    """
    sites = np.maximum(np.round(count), 1)
    present = (count > 0.5).any(axis=1)
    usable = (count[present] > 0.5).all(axis=0)
    mean = total / sites
    between = np.clip(square / sites - mean**2, 0, None)
    spread = (variance / sites + between)[present].mean(axis=0) if present.any() else np.zeros(count.shape[1])
    mean = np.where(usable, mean, 0.0)
    mean[~present] = np.nan
    return Probe(mean, np.where(usable, spread + VARIANCE_FLOOR, np.inf))


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
