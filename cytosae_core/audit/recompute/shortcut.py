"""How much of a concept's variance within a class is between sites, and its null. Formulas: docs/auditor.md."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .given import Given, Values, mean_known

MIN_SITES = 3
NAMES = ("code_class_mean", "code_half_class_mean", "code_class_var")
Cell = tuple[
    float, float, float
]  # a site's mean in the first half of its units, in the second, variance within


def site_shares(given: Given) -> tuple[list[float], list[float]]:
    """The share of every concept and its null, [n] each; empty when no site gave class means of halves."""
    found = [[given.numbers.values("describe", 0, site, name) for name in NAMES] for site in given.sites]
    tables = [[values for values in tensors if values is not None] for tensors in found]
    tables = [tensors for tensors in tables if len(tensors) == len(NAMES)]
    if not tables:
        return [], []
    shares, nulls = [], []
    for row in range(given.n):
        each = [_shares(_cells(tables, row + given.n * place)) for place in range(given.c)]
        shares.append(mean_known([share for share, _ in each]))
        nulls.append(mean_known([null for _, null in each]))
    return shares, nulls


def _cells(tables: Sequence[Sequence[Values]], at: int) -> list[Cell]:
    """The sites that can say something of a class and a concept."""
    found = []
    for mean, half, variance in tables:
        whole, first, within = mean[at], half[at], variance[at]
        if whole == whole and first == first and within == within:
            found.append((first, 2 * whole - first, within))
    return found


def _shares(cells: Sequence[Cell]) -> tuple[float, float]:
    """B / (B + W) of one class, and the same with every site's first half beside the next site's second."""
    if len(cells) < MIN_SITES:
        return math.nan, math.nan
    first, second = [cell[0] for cell in cells], [cell[1] for cell in cells]
    within = mean_known([cell[2] for cell in cells])
    return _share(_covariance(first, second), within), _share(
        _covariance(first, [*second[1:], second[0]]), within
    )


def _covariance(a: Sequence[float], b: Sequence[float]) -> float:
    total_a = total_b = both = 0.0
    for x, y in zip(a, b, strict=True):
        total_a, total_b, both = total_a + x, total_b + y, both + x * y
    return (both - total_a * total_b / len(a)) / (len(a) - 1)


def _share(between: float, within: float) -> float:
    between = max(between, 0.0)
    return between / (between + within) if between + within > 0 else 0.0
