"""Concepts against raw embeddings, left-out site by left-out site: the whole table with its controls.

A *variant* is one way to make features (dictionary, number of picks, pooling). For every left-out site the variant
with the best inner (training-site) balanced accuracy is *selected*, for concepts and for raw embeddings alike; all
variants are reported. Nothing is chosen by the left-out site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .intervals import Estimate, UnitBootstrap, estimate_of
from .pooling import POOLINGS, Pools, SiteTable
from .transfer import FORMS, Held, leave_one_site_out

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Tick = Callable[[], None]


@dataclass(frozen=True)
class Truth:
    """Labels and units [m] of one site (indices)."""

    labels: Ints
    units: Ints


@dataclass(frozen=True)
class Variant:
    """One way to make features: `source` (raw, or a dictionary's name), `pooling`."""

    source: str
    pooling: str

    def __str__(self) -> str:
        return f"{self.source} {self.pooling}"


@dataclass
class Arm:
    """All variants of one kind of features: pools by source, then seed, then site."""

    pools: Mapping[str, Sequence[Mapping[str, Pools]]]
    poolings: tuple[str, ...] = POOLINGS
    held: dict[str, dict[Variant, list[dict[str, Held]]]] = field(default_factory=dict)

    def variants(self) -> list[Variant]:
        """Every variant of this arm."""
        return [Variant(s, p) for s in self.pools for p in self.poolings]

    def run(self, truth: Mapping[str, Truth], n_classes: int, tick: Tick, *, only: str | None = None) -> None:
        """Leave-one-site-out (or leave out `only` one) of every variant, seed and form."""
        for form in FORMS:
            self.held[form] = {}
            for variant in self.variants():
                runs = []
                for pools in self.pools[variant.source]:
                    tables = {
                        site: SiteTable(pools[site].features(variant.pooling), t.labels, t.units)
                        for site, t in truth.items()
                    }
                    runs.append(leave_one_site_out(tables, form, n_classes, only=only))
                    tick()
                self.held[form][variant] = runs

    def select(self, form: str, site: str) -> Variant:
        """The variant with the best inner balanced accuracy (mean over seeds) when `site` is left out."""
        found = self.held[form]
        return max(found, key=lambda variant: float(np.mean([run[site].inner for run in found[variant]])))


class Judge:
    """Scores predictions at every site with the same resamples of units for all methods."""

    def __init__(self, truth: Mapping[str, Truth]) -> None:
        self.truth = dict(truth)
        self.boots = {
            site: UnitBootstrap(t.labels, t.units, seed=number)
            for number, (site, t) in enumerate(truth.items())
        }

    def site(self, site: str, runs: list[Ints]) -> tuple[float, Floats]:
        """Balanced accuracy at a site and its draws, means over seeds."""
        labels = self.truth[site].labels
        parts = [self.boots[site].balanced(predicted == labels) for predicted in runs]
        return float(np.mean([value for value, _ in parts])), np.mean([draws for _, draws in parts], axis=0)

    def by_image(self, site: str, runs: list[Ints]) -> float:
        """Balanced accuracy with every image counting the same (how older numbers were counted)."""
        labels = self.truth[site].labels
        return float(np.mean([[(p[labels == c] == c).mean() for c in np.unique(labels)] for p in runs]))

    def row(self, predictions: Mapping[str, list[Ints]]) -> Row:
        """One line of the table from predictions per site and seed."""
        found = {site: self.site(site, runs) for site, runs in predictions.items()}
        return Row(
            {site: estimate_of(*pair) for site, pair in found.items()},
            {site: self.by_image(site, runs) for site, runs in predictions.items()},
            float(np.mean([value for value, _ in found.values()])),
            np.mean([draws for _, draws in found.values()], axis=0),
        )


@dataclass(frozen=True)
class Row:
    """Balanced accuracy per left-out site and their mean; `draws` of the mean. Sites are not resampled."""

    sites: Mapping[str, Estimate]
    by_image: Mapping[str, float]
    value: float
    draws: Floats

    @property
    def mean(self) -> Estimate:
        """Mean over sites with its interval."""
        return estimate_of(self.value, self.draws)

    def minus(self, other: Row) -> Estimate:
        """Difference of the means, resamples of units in common."""
        return estimate_of(self.value - other.value, self.draws - other.draws)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "mean": self.mean.to_dict(),
            "sites": {site: estimate.to_dict() for site, estimate in self.sites.items()},
            "mean_by_image": float(np.mean(list(self.by_image.values()))),
            "sites_by_image": dict(self.by_image),
        }


def variant_row(arm: Arm, form: str, variant: Variant, judge: Judge) -> Row:
    """The line of one variant."""
    runs = arm.held[form][variant]
    return judge.row({site: [run[site].predicted for run in runs] for site in judge.truth})


def selected_row(arm: Arm, form: str, judge: Judge) -> tuple[Row, dict[str, Variant]]:
    """The line of the selected variants, and which variant was selected for each left-out site."""
    chosen = {site: arm.select(form, site) for site in judge.truth}
    predictions = {
        site: [run[site].predicted for run in arm.held[form][variant]] for site, variant in chosen.items()
    }
    return judge.row(predictions), chosen


def inner_of(arm: Arm, form: str, variant: Variant) -> dict[str, float]:
    """Inner balanced accuracy per left-out site, mean over seeds: what a choice may look at."""
    runs = arm.held[form][variant]
    return {site: float(np.mean([run[site].inner for run in runs])) for site in runs[0]}


def shuffled(truth: Mapping[str, Truth], *, seed: int = 0) -> dict[str, Truth]:
    """The control: labels exchanged between the images of each site."""
    rng = np.random.default_rng(seed)
    return {site: Truth(rng.permutation(t.labels), t.units) for site, t in truth.items()}
