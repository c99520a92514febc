"""Meanings that are chosen at the other sites: how many hold at the site left out. Formulas: docs/auditor.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

EFFECT, REPLICATED, MIN_OTHERS = 0.15, 0.10, 2


@dataclass
class Folds:
    """Counts per site left out, and per concept over all sites left out.

    Args:
        sites: how many. listed: rows that count per site (the plan's concepts); empty: all.

    Attributes:
        pairs, held, null_pairs, null_held: [sites]. tried, kept: by row.
    """

    sites: int
    listed: frozenset[int]
    tried: dict[int, int] = field(default_factory=dict)
    kept: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pairs, self.held, self.null_pairs, self.null_held = ([0] * self.sites for _ in range(4))

    def add(self, row: int, effects: Sequence[Sequence[float]], shuffled: Sequence[Sequence[float]]) -> None:
        """One concept's effects and those with shuffled labels, [sites][targets]."""
        for own, null in zip(zip(*effects, strict=True), zip(*shuffled, strict=True), strict=True):
            self._add(row, own, null)

    def _add(self, row: int, own: Sequence[float], null: Sequence[float]) -> None:
        up, down = sum(value > EFFECT for value in own), sum(value < -EFFECT for value in own)
        count, counts = sum(value == value for value in own), not self.listed or row in self.listed
        if max(up, down) < max(count - 1, 1):
            return  # whoever is left out, the others do not agree
        least = min(MIN_OTHERS, self.sites - 1)
        for site, (value, control) in enumerate(zip(own, null, strict=True)):
            others = count - (value == value)
            if others < max(least, 1):
                continue
            sign = (up - (value > EFFECT) == others) - (down - (value < -EFFECT) == others)
            if not sign:
                continue
            if value == value:
                self._choose(row, site, sign * value > REPLICATED, counts)
            if counts and control == control:
                self.null_pairs[site] += 1
                self.null_held[site] += sign * control > REPLICATED

    def _choose(self, row: int, site: int, held: bool, counts: bool) -> None:
        self.tried[row] = self.tried.get(row, 0) + 1
        self.kept[row] = self.kept.get(row, 0) + held
        self.pairs[site] += counts
        self.held[site] += held and counts

    def share(self, row: int) -> float:
        """Share of a concept's choices, over all sites left out, that held; NaN when it was never chosen."""
        return self.kept[row] / self.tried[row] if row in self.tried else math.nan

    def stated(self, site: int) -> dict[str, float | None]:
        """A site left out as report.json's `agreement/replication` states it."""
        pairs, held, null = self.pairs[site], self.held[site], self.null_pairs[site]
        share = (held + 0.5) / (pairs + 1)
        return {
            "pairs": pairs,
            "replicated": held,
            "share": held / pairs if pairs else None,
            "se": math.sqrt(share * (1 - share) / pairs) if pairs else None,
            "null": self.null_held[site] / null if null else None,
        }
