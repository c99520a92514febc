"""Can a site be read from one concept alone, within class? A concept for which it can may be stain or lamp.

A site has its own images and the other sites' class means. It tells, for every concept, how many of its second-half
images lie nearer to its own first-half class mean than to a peer's. One site's value alone is one-sided: where a
concept is rare, images without it fall to the site whose mean is smaller, which scores above .5 while the other
scores below. The mean over both sites is .5 for a concept that does not know the site. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .probe import unit_weights

if TYPE_CHECKING:  # the coordinator's side may use this where torch is not
    from .tables import Labelled

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CHUNK_BYTES = 64 * 1024 * 1024
NULL_DEALS = 10


def concept_site(
    values: NDArray[np.float32], labels: Ints, units: Ints, own: Floats, peers: Sequence[Floats]
) -> tuple[Floats, Ints]:
    """Share of images nearer to the own class mean than to a peer's, mean over peers and classes: [n], and the units
    of the classes that count: [n].

    Args:
        values: [m, n] one number per image and concept, of the second half of the units.
        labels, units: [m] of the same images.
        own, peers: class means [c, n] of the first half, here and at each peer; NaN where unknown.

    Returns:
        shares (ties count half, NaN where no class is known on both sides) and units.
    """
    total, count = np.zeros(values.shape[1]), np.zeros(values.shape[1], dtype=np.int64)
    names, place = np.unique(units, return_inverse=True)
    behind = np.zeros((len(names), values.shape[1]), dtype=np.bool_)
    for index in np.unique(labels):
        mine = labels == index
        weight, _ = unit_weights(units[mine])
        used = np.zeros(values.shape[1], dtype=np.bool_)
        for peer in peers:
            known = ~(np.isnan(own[index]) | np.isnan(peer[index]))
            share = _nearer(values[mine], weight, np.asarray(own[index]), np.asarray(peer[index]))
            total += np.where(known, share, 0)
            count += known
            used |= known
        behind[np.unique(place[mine])] |= used
    share = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return share, np.asarray(behind.sum(axis=0), dtype=np.int64)


def _nearer(values: Array, weight: Floats, own: Floats, other: Floats) -> Floats:
    """Weighted share of `values` [m, n] on the own side of the point half-way between two means [n]."""
    out = np.empty(len(own))
    step = max(1, CHUNK_BYTES // (8 * max(1, len(values))))
    for start in range(0, len(out), step):
        part = slice(start, start + step)
        side = (values[:, part] - (own[part] + other[part]) / 2) * np.sign(own[part] - other[part])
        out[part] = (weight @ (side > 0) + weight @ (side >= 0)) / 2
    return out


def concept_site_null(values: NDArray[np.float32], known: Labelled, *, seed: int) -> Floats:
    """The same for two pretended sites, mean over both: [n], near .5 whatever the concept.

    The units of this site are dealt to two pretended sites `NULL_DEALS` times; each deal is fitted on the first half
    and scored on the second (as `tables.same_site_null`). NaN where no deal had a class on both sides.
    """
    rng = np.random.default_rng(seed)
    total, count = np.zeros(values.shape[1]), np.zeros(values.shape[1], dtype=np.int64)
    for _ in range(NULL_DEALS):
        side = (rng.permutation(int(known.units.max()) + 1) % 2)[known.units]
        for share in _pretended(values, known, side):
            total += np.nan_to_num(share)
            count += ~np.isnan(share)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _pretended(values: NDArray[np.float32], known: Labelled, side: Ints) -> list[Floats]:
    """Shares [n] at each of the two pretended sites; none when one has no images in a half."""
    inside = known.labels >= 0
    fits = [inside & (side == index) & (known.halves == 0) for index in (0, 1)]
    tests = [inside & (side == index) & (known.halves == 1) for index in (0, 1)]
    if not all(part.any() for part in fits + tests):
        return []
    means = [_class_means(values[fit], known.labels[fit], known.units[fit], known.n_classes) for fit in fits]
    return [
        concept_site(values[test], known.labels[test], known.units[test], means[index], [means[1 - index]])[0]
        for index, test in enumerate(tests)
    ]


def _class_means(values: NDArray[np.float32], labels: Ints, units: Ints, n_classes: int) -> Floats:
    """Mean [c, n] of each class, every unit weighing the same; NaN for a class without images."""
    weights = np.zeros((n_classes, len(values)))
    for index in np.unique(labels):
        weights[index, labels == index], _ = unit_weights(units[labels == index])
    out = np.full((n_classes, values.shape[1]), np.nan)
    there = weights.any(axis=1)
    step = max(1, CHUNK_BYTES // (8 * len(values)))
    for start in range(0, values.shape[1], step):
        out[there, start : start + step] = weights[there] @ values[:, start : start + step]
    return out
