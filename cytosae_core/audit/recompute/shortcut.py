"""How much of a concept's variance within a class is between sites, and its null. Formulas: docs/auditor.md."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .given import Given, Values, mean_known

MIN_SITES, Z = 3, 0.8416
NAMES = ("code_class_mean", "code_half_class_mean", "code_class_var")
Cell = tuple[
    float, float, float
]  # a site's mean in the first half of its units, in the second, variance within


def site_shares(given: Given) -> tuple[list[float], list[float], list[float]]:
    """The share of every concept, its upper limit and its null, [n] each; empty when no site gave class means of
    halves."""
    given_by = [[given.numbers.values("describe", 0, site, name) for name in NAMES] for site in given.sites]
    tables = [[values for values in tensors if values is not None] for tensors in given_by]
    tables = [tensors for tensors in tables if len(tensors) == len(NAMES)]
    if not tables:
        return [], [], []
    found: tuple[list[float], list[float], list[float]] = [], [], []
    for row in range(given.n):
        each = [_shares(_cells(tables, row + given.n * place)) for place in range(given.c)]
        for column, values in zip(found, zip(*each, strict=True), strict=True):
            column.append(mean_known(values))
    return found


def _cells(tables: Sequence[Sequence[Values]], at: int) -> list[Cell]:
    """The sites that can say something of a class and a concept."""
    found = []
    for mean, half, variance in tables:
        whole, first, within = mean[at], half[at], variance[at]
        if whole == whole and first == first and within == within:
            found.append((first, 2 * whole - first, within))
    return found


def _shares(cells: Sequence[Cell]) -> tuple[float, float, float]:
    """B / (B + W) of one class, its upper limit, and the same with every site's first half beside the next one's
    second."""
    if len(cells) < MIN_SITES:
        return math.nan, math.nan, math.nan
    first, second = [cell[0] for cell in cells], [cell[1] for cell in cells]
    within = mean_known([cell[2] for cell in cells])
    between, null = _covariance(first, second), _covariance(first, [*second[1:], second[0]])
    spread = math.sqrt(max(_covariance(first, first), 0.0) * max(_covariance(second, second), 0.0))
    most = _upper(between, max(spread - between, 0.0), (len(cells) - 1) / Z**2)
    return _share(between, within), _share(most, within), _share(null, within)


def _upper(between: float, noise: float, k: float) -> float:
    """The largest B' with (B' - B)^2 k = (B' + e)^2 + B'^2, e being the noise of a half."""
    middle = k * between + noise
    root = math.sqrt(max(middle**2 - (k - 2) * (k * between**2 - noise**2), 0.0))
    return (middle + root) / (k - 2)


def _covariance(a: Sequence[float], b: Sequence[float]) -> float:
    total_a = total_b = both = 0.0
    for x, y in zip(a, b, strict=True):
        total_a, total_b, both = total_a + x, total_b + y, both + x * y
    return (both - total_a * total_b / len(a)) / (len(a) - 1)


def _share(between: float, within: float) -> float:
    between = max(between, 0.0)
    return between / (between + within) if between + within > 0 else 0.0
