"""What if the other sites' probe may say "I don't know"? The most confident part of a site's cells. numpy only.

Selective classification (Chow 1970; El-Yaniv and Wiener 2010): cells are put in order of how sure the probe is, and
the accuracy is told for fixed shares of them (`config.COVERAGE`: 20, 40, 60, 80, 100 % by weight of units). A probe
that knows when it does not know is more often right on the parts that it keeps.

The parts lie inside each other, and all inside the cells behind `balanced_accuracy`, which leaves as well: two
of them tell what lies between. A part is therefore only told when what lies between it and the next larger one that
is told belongs to no unit or to enough of them. The shares are fixed here: nobody can ask for others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from ..config import COVERAGE
from .probe import unit_weights

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CLASS_UNITS = 5  # a class with fewer units says nothing about an accuracy (as for subgroups)


class Parts(NamedTuple):
    """Kept parts of m cells: `kept` [shares, m], and the units behind each [shares] (0: must not leave)."""

    kept: NDArray[np.bool_]
    units: Ints


def confidence(scores: Floats) -> Floats:
    """How sure the probe is of its answer, [m]: ln(p / (1 - p)) of the class that it names, from evidence [m, c].

    The log-odds order cells as the probability does, and stay apart where that is 1 to the last digit.
    """
    ordered = np.sort(scores, axis=1)
    return np.asarray(ordered[:, -1] - logsumexp(ordered[:, :-1], axis=1), dtype=np.float64)


def counted(labels: Ints, units: Ints) -> NDArray[np.bool_]:
    """Which of m cells count: those of a class that at least 5 units have."""
    enough = [
        index
        for index in np.unique(labels[labels >= 0])
        if len(np.unique(units[labels == index])) >= CLASS_UNITS
    ]
    return np.isin(labels, enough)


def kept_parts(sure: Floats, labels: Ints, units: Ints, least: int) -> Parts:
    """The most confident 20, 40, 60, 80 and 100 % of m cells.

    Args:
        sure: [m] confidence. labels, units: [m]; label -1 does not count.
        least: fewest units that may stand behind a number.

    Returns:
        Cells are kept until their weight reaches the share; every unit weighs the same, equal confidence stays
        together. Units are 0 where a class has fewer than 5 units left, where fewer than `least` units have a cell
        in the part, or where 1 to `least` - 1 have one between it and the next larger part that is told.
    """
    here = counted(labels, units)
    kept = np.zeros((len(COVERAGE), len(labels)), dtype=bool)
    behind = np.zeros(len(COVERAGE), dtype=np.int64)
    if len(np.unique(labels[here])) < 2:
        return Parts(kept, behind)
    weight, _ = unit_weights(units[here])
    for row, share in enumerate(COVERAGE):
        kept[row, here] = _most_confident(sure[here], weight, share)
    larger = np.asarray(labels >= 0)  # what `balanced_accuracy` is about
    for row in reversed(range(len(COVERAGE))):
        size, rest = (len(np.unique(units[part])) for part in (kept[row], larger & ~kept[row]))
        if size >= least and (rest == 0 or rest >= least) and _whole(kept[row], here, labels, units):
            behind[row], larger = size, kept[row]
    return Parts(kept, behind)


def _most_confident(sure: Floats, weight: Floats, share: float) -> NDArray[np.bool_]:
    """The fewest most confident cells with at least `share` of the weight, and all that are as sure as the last."""
    order = np.argsort(-sure, kind="stable")
    reached = np.cumsum(weight[order])
    last = min(int(np.searchsorted(reached, share - 1e-9)), len(order) - 1)
    return np.asarray(sure >= sure[order[last]])


def _whole(kept: NDArray[np.bool_], here: NDArray[np.bool_], labels: Ints, units: Ints) -> bool:
    """Whether every class that counts still has enough units: otherwise accuracies are not of the same question."""
    return all(
        len(np.unique(units[kept & (labels == index)])) >= CLASS_UNITS for index in np.unique(labels[here])
    )
