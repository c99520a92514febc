"""Histograms and curves under disclosure control (S9, S10): shared edges, few bins, small ones merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import EgressError
from ..policy import SitePolicy
from .disclosure import Floats, round_to_multiple

MAX_BINS, MAX_BIN_SHARE, MAX_CURVE_BINS = 40, 0.10, 10


@dataclass(frozen=True)
class Histogram:
    """counts [b] between edges [b + 1]; both empty when nothing may be shown."""

    edges: Floats
    counts: Floats


@dataclass(frozen=True)
class Curve:
    """Positives and negatives [b] between score edges [b + 1]; ROC, precision and calibration follow from them."""

    edges: Floats
    positives: Floats
    negatives: Floats


def protect_histogram(
    contributions: ArrayLike, edges: ArrayLike, policy: SitePolicy, max_bins: int = MAX_BINS
) -> Histogram:
    """A histogram over edges that every site shares.

    Args:
        contributions: [units, bins] items of each unit in each bin.
        edges: [bins + 1], from the protocol or public data, never from the site's own.

    Guarantees (tests/unit/test_disclosure.py):
        S9a. At most 40 bins, and at most one for every ten units: neighbours are merged in equal groups.
        S9b. A bin with fewer than `min_units` units is merged with its neighbours; every edge is a shared one.
        S9c. Counts are multiples of `round_to`. With too few units in all, nothing is shown.
    """
    items, borders = _checked(contributions, edges)
    if not policy.disclosure_control:
        return Histogram(borders, items.sum(axis=0))
    units = int((items > 0).any(axis=1).sum())
    allowed = min(max_bins, int(units * MAX_BIN_SHARE))
    if units < policy.min_units or allowed < 1:
        return Histogram(np.empty(0), np.empty(0))
    step = -(-items.shape[1] // allowed)
    groups = [
        list(range(start, min(start + step, items.shape[1]))) for start in range(0, items.shape[1], step)
    ]
    groups = _merged(groups, lambda group: _units(items, group) >= policy.min_units)
    counts = round_to_multiple([items[:, group].sum() for group in groups], policy.round_to)
    return Histogram(_outer(borders, groups), counts)


def curve_bins(
    positives: ArrayLike,
    negatives: ArrayLike,
    edges: ArrayLike,
    policy: SitePolicy,
    max_bins: int = MAX_CURVE_BINS,
) -> Curve:
    """What a ROC, precision-recall or calibration curve is drawn from; a step curve would give every rank away.

    Args:
        positives, negatives: [units, bins] items of each unit in each bin of the score.
        edges: [bins + 1], from the protocol, never quantiles of the site's own scores.

    Guarantees (tests/unit/test_disclosure.py):
        S10a. At most 10 bins; in each, positives and negatives have at least `min_units` units, or one of the two
              classes is merged away with its neighbours.
        S10b. With fewer than `min_units` units in either class nothing is shown.
    """
    good, borders = _checked(positives, edges)
    bad, _ = _checked(negatives, edges)
    if policy.disclosure_control:
        if min(_units(good, slice(None)), _units(bad, slice(None))) < policy.min_units:
            return Curve(np.empty(0), np.empty(0), np.empty(0))
        step = -(-good.shape[1] // max_bins)
    else:
        step = 1
    groups = [list(range(start, min(start + step, good.shape[1]))) for start in range(0, good.shape[1], step)]
    if policy.disclosure_control:
        groups = _merged(
            groups, lambda group: min(_units(good, group), _units(bad, group)) >= policy.min_units
        )
    ups = round_to_multiple([good[:, group].sum() for group in groups], policy.round_to)
    downs = round_to_multiple([bad[:, group].sum() for group in groups], policy.round_to)
    return Curve(_outer(borders, groups), ups, downs)


def _checked(contributions: ArrayLike, edges: ArrayLike) -> tuple[Floats, Floats]:
    items, borders = np.asarray(contributions, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    if items.ndim != 2 or borders.shape != (items.shape[1] + 1,) or not (np.diff(borders) > 0).all():
        raise EgressError("Expected [units, bins] items and bins + 1 rising edges.", reason="CONSIST")
    if (items < 0).any() or not np.isfinite(items).all():
        raise EgressError("Expected counts >= 0 in every bin.", reason="CONSIST")
    return items, borders


def _units(items: Floats, group: list[int] | slice) -> int:
    return int((items[:, group] > 0).any(axis=1).sum())


def _merged(groups: list[list[int]], enough: Callable[[list[int]], bool]) -> list[list[int]]:
    """Join every group that has not enough with the next one, the last with the one before."""
    out: list[list[int]] = []
    waiting: list[int] = []
    for group in groups:
        waiting = waiting + group
        if enough(waiting):
            out.append(waiting)
            waiting = []
    if waiting and out:
        out[-1] = out[-1] + waiting
    return out or [waiting]


def _outer(edges: Floats, groups: list[list[int]]) -> Floats:
    return np.asarray([edges[group[0]] for group in groups] + [edges[groups[-1][-1] + 1]])
