"""Builds what a site needs to score the other sites' probes, from class moments only. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.concepts.probe import Probe, ProbeSums, standardise
from cytosae_core.config import VIEWS, StudyConfig

Array = NDArray[Any]
Tables = Mapping[str, Mapping[str, Array]]
# Requests hold finite numbers: a dropped feature has this variance, so that it weighs nothing.
DROPPED_VARIANCE = 1e30
COLOUR = "colour"
# Shares of pixels: 1 % more or less of a colour is never a finding. Without this floor colours decide that hardly
# occur at the other sites (on three public sources the control was then below chance at one, .15 for .25).
COLOUR_VARIANCE = 1e-4
# With many sites, a site is told apart from its neighbours in the protocol's order only (4 on each side):
# requests, memory and time stay independent of the number of sites.
NEIGHBOURS = 4
PEER_TABLES = tuple(
    f"{view}_{part}_{moment}"
    for view in ("code", "embedding")
    for part in ("half", "half_class")
    for moment in ("mean", "var")
)


class ScoreRequests:
    """Reads every site's tables once; then makes one site's request at a time."""

    def __init__(self, study: StudyConfig, tables: Tables) -> None:
        self.study, self.tables = study, tables
        self._sums = {view: ProbeSums() for view in (*VIEWS, COLOUR)}
        for site in tables:
            table = tables[site]
            for view, sums in self._sums.items():
                if has_view(view, table):
                    sums.add(*class_moments(view, table))

    def tensors(self, site: str) -> dict[str, Array]:
        """Probes of all sites but `site`, and half moments of the site and its peers, in the order of `peers`."""
        own = self.tables[site]
        out: dict[str, Array] = {}
        for view, sums in self._sums.items():
            if sums.count.size:
                probe = sums.without(*class_moments(view, own)) if has_view(view, own) else sums.probe()
                out |= _finite(view, probe)
        peers = [self.tables[self.study.sites[index]] for index in self.peers(site)]
        for name in PEER_TABLES:
            out[f"peer_{name}"] = np.stack([own[name], *(table[name] for table in peers)])
        return out

    def peers(self, site: str) -> list[int]:
        """Indices (in the protocol) of the sites that `site` is told apart from."""
        known = [index for index, name in enumerate(self.study.sites) if name in self.tables]
        place, count = known.index(self.study.sites.index(site)), len(known)
        if count <= 2 * NEIGHBOURS + 1:
            return [index for index in known if index != known[place]]
        steps = [step for step in range(-NEIGHBOURS, NEIGHBOURS + 1) if step]
        return [known[(place + step) % count] for step in steps]


def has_view(view: str, table: Mapping[str, Array]) -> bool:
    """Whether a site sent class moments of this view; colours come only from sites that keep facts of pictures."""
    return view != COLOUR or all(f"colour_class_{part}" in table for part in ("mean", "var"))


def class_moments(view: str, table: Mapping[str, Array]) -> tuple[Array, Array]:
    """Class means and variances [c, w] of one site in one view, NaN where withheld.

    A site with a single class has no contrast to teach (its standardised mean is zero): it is left out.
    """
    name = view if view in ("embedding", COLOUR) else "code"
    mean = table[f"{name}_class_mean"].astype(np.float64)
    variance = table[f"{name}_class_var"].astype(np.float64)
    if (~np.isnan(mean).all(axis=1)).sum() < 2:
        mean = np.full_like(mean, np.nan)
    if view != "standardised":
        return mean, variance
    centre, spread = table["code_all_mean"].astype(np.float64), table["code_all_var"].astype(np.float64)
    unknown = np.isnan(mean) | np.isnan(centre)
    fires = spread > 1e-12
    scaled = np.where(unknown, np.nan, standardise(mean, centre, spread))
    return scaled, np.where(unknown, np.nan, np.where(fires, variance / np.where(fires, spread, 1), 0.0))


def _finite(view: str, probe: Probe) -> dict[str, Array]:
    floor = COLOUR_VARIANCE if view == COLOUR else 0.0
    return {
        f"probe_{view}_mean": probe.mean.astype(np.float32),
        f"probe_{view}_var": np.clip(probe.variance, floor, DROPPED_VARIANCE).astype(np.float32),
    }
