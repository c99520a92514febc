"""Cluster bootstrap over a site's units: errors of balanced accuracies and of their differences. numpy only.

What is resampled is the unit (patient, else slide, else source file), never the image: images of one patient are
alike, and a bootstrap over images would promise too much (audit.md 5.4; Efron and Tibshirani 1993, section 8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CHUNK_BYTES = 64 * 1024 * 1024
# One number to resample: right answers [images] (0 to 1), and labels [images] with -1 for images that do not count.
Column = tuple[Array, Ints]


def balanced_draws(columns: Sequence[Column], units: Ints, *, draws: int, seed: int) -> Floats:
    """Balanced accuracy of every column in every resample of `units` [images]: [draws, columns].

    Defined as `probe.balanced_accuracy`: the mean over classes of the mean over units of a unit's share of right
    answers. All columns see the same resamples, so that the difference of two columns is a paired one. A resample
    without a class leaves that class out; NaN for one that holds no class at all.
    """
    names, place = np.unique(units, return_inverse=True)
    parts = [_by_unit(right, labels, place, len(names)) for right, labels in columns]
    share = np.concatenate([part[0] for part in parts], axis=1)
    present = np.concatenate([part[1] for part in parts], axis=1)
    ends = np.cumsum([part[0].shape[1] for part in parts])[:-1]
    out = []
    for counts in _resamples(len(names), draws, seed):
        seen, summed = counts @ present, counts @ share
        value = np.where(seen > 0, summed / np.maximum(seen, 1), np.nan)
        out.append(np.stack([_row_means(block) for block in np.split(value, ends, axis=1)], axis=1))
    return np.concatenate(out)


def standard_error(draws: Floats) -> Floats:
    """Standard deviation over resamples (axis 0); NaN with fewer than two that say anything."""
    known = ~np.isnan(draws)
    count = known.sum(axis=0)
    centre = np.where(known, draws, 0).sum(axis=0) / np.maximum(count, 1)
    square = np.where(known, (draws - centre) ** 2, 0).sum(axis=0)
    return np.asarray(np.where(count > 1, np.sqrt(square / np.maximum(count - 1, 1)), np.nan))


def least_error(labels: Ints, units: Ints) -> float:
    """Standard error of a balanced accuracy with half a wrong unit in every class (`labels` [images], -1 for none).

    A resample cannot show an error that nobody made: a perfect accuracy would come with an error of 0 and outweigh
    every other site. This is the usual correction of 0 of n to 0.5 of n + 1.
    """
    sizes = [len(np.unique(units[labels == index])) for index in np.unique(labels[labels >= 0])]
    shares = [(0.5 / (size + 1), size) for size in sizes]
    if not shares:
        return float("nan")
    return float(np.sqrt(sum(share * (1 - share) / size for share, size in shares))) / len(shares)


def _by_unit(right: Array, labels: Ints, place: Ints, units: int) -> tuple[Floats, Floats]:
    """Each unit's share of right answers in each class that counts, and whether it has the class: [u, classes]."""
    classes = np.unique(labels[labels >= 0])
    share, present = np.zeros((units, len(classes))), np.zeros((units, len(classes)))
    for column, index in enumerate(classes):
        mine = labels == index
        count = np.bincount(place[mine], minlength=units)
        total = np.bincount(place[mine], weights=right[mine].astype(np.float64), minlength=units)
        share[:, column], present[:, column] = total / np.maximum(count, 1), count > 0
    return share, present


def _resamples(units: int, draws: int, seed: int) -> Iterator[Floats]:
    """How often each unit is drawn, [block, units] at a time: memory does not grow with the number of units."""
    rng = np.random.default_rng(seed)
    even = np.full(units, 1 / units)
    block = max(1, CHUNK_BYTES // (8 * units))
    for start in range(0, draws, block):
        yield rng.multinomial(units, even, size=min(block, draws - start)).astype(np.float64)


def _row_means(values: Floats) -> Floats:
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0).sum(axis=1), known.sum(axis=1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))
