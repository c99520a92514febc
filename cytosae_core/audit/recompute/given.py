"""What the sites gave, as tables by site and means over sites: what every concept's numbers are computed from.

All sums go over sites in the protocol's order, one after the other, in double precision: where two concepts are equal
but for rounding, their places in a list depend on it. NaN is a value that a site's door withheld.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .numbers import Numbers

Values = Sequence[float]


@dataclass(frozen=True)
class Given:
    """Tables of the sites that described the final dictionary, in the protocol's order.

    Attributes:
        numbers: report and replies. sites: their names.
        n, t, c: concepts, targets, classes (the first targets).
        auroc, error, shuffled: [sites] of [n, t], each flat, NaN where a site has none. rates: [sites] of [n].
    """

    numbers: Numbers
    sites: list[str]
    n: int
    t: int
    c: int
    auroc: list[Values]
    error: list[Values]
    shuffled: list[Values]
    rates: list[Values]

    def row(self, tables: Sequence[Values], row: int) -> list[Values]:
        """One concept's values at every target, [sites][t]."""
        start = row * self.t
        return [table[start : start + self.t] for table in tables]

    def described(self, name: str) -> list[Values]:
        """A tensor of every site that gave it with its description, flat."""
        return self._all("describe", name)

    def scored(self, name: str) -> list[Values]:
        """A tensor of every site that gave it with its scores, flat."""
        return self._all("score", name)

    def _all(self, kind: str, name: str) -> list[Values]:
        found = [self.numbers.values(kind, 0, site, name) for site in self.numbers.protocol["sites"]]
        return [values for values in found if values is not None]


def read_given(numbers: Numbers) -> Given:
    """The tables that all concepts share. Raises `Missing` when a reply that arrived is not in the bundle."""
    statistics, n = numbers.protocol["statistics"], numbers.protocol["dictionary"]["n"]
    t, sites = len(numbers.targets), described_sites(numbers)
    wide = {"auroc": n * t, "auroc_se": n * t, "auroc_shuffled": n * t, "firing_rate": n}
    tables = {
        name: [_or_nan(numbers.values("describe", 0, site, name), size) for site in sites]
        for name, size in wide.items()
    }
    return Given(numbers, sites, n, t, len(statistics["classes"]), *tables.values())


def described_sites(numbers: Numbers) -> list[str]:
    """Sites whose description of the final dictionary arrived, in the protocol's order."""
    tensors = numbers.replies.tensors
    return [site for site in numbers.protocol["sites"] if ("describe", 0, site) in tensors]


def _or_nan(values: Values | None, size: int) -> Values:
    return [math.nan] * size if values is None else values


def means(tables: Sequence[Values]) -> list[float]:
    """Entry by entry the mean of the known values, NaN where there is none; empty without tables."""
    return [mean_known(values) for values in zip(*tables, strict=True)]


def mean_known(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN, added from the first to the last; NaN without any."""
    total, count = 0.0, 0
    for value in values:
        if value == value:
            total += value
            count += 1
    return total / count if count else math.nan
