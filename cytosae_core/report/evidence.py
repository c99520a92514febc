"""The released numbers, stacked once: what every part of the report is computed from. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import StudyConfig
from .agreement import verdicts
from .inputs import Comparators, StudyResult, quality_dict

Array = NDArray[Any]
Json = dict[str, Any]


class Evidence:
    """A study's result with tables as arrays.

    Attributes:
        sites: sites with final tables, in the protocol's order.
        effects, errors: AUROC - 1/2 and its standard error, [sites, n, t], NaN where suppressed.
        rates: firing rates [sites, n].
        verdicts: one per concept.
    """

    def __init__(
        self,
        study: StudyConfig,
        result: StudyResult,
        comparators: Comparators | None = None,
        *,
        encoder_depth: int = 12,
        canary_tolerance: float = 0.0,
    ) -> None:
        self.study, self.result, self.comparators = study, result, comparators
        self.depth, self.tolerance = encoder_depth, canary_tolerance
        self.final = result.describe.get("final", {})
        self._stacks: dict[tuple[str, str], Array] = {}  # tables lie on disk: each is read once
        self.sites = [site for site in study.sites if site in self.final]
        self.effects = self.stack("final", "auroc") - 0.5
        self.errors = self.stack("final", "auroc_se")
        self.rates = self._column("firing_rate", study.dictionary.n)
        self.small = {site: self._small(site) for site in self.sites}
        self.verdicts = verdicts(self.effects, self.errors) if len(self.sites) else []

    def stack(self, which: str, name: str) -> Array:
        """A table of one dictionary (`final`, `init`, `random`) over sites: [sites, n, t], NaN where missing."""
        if (which, name) not in self._stacks:
            self._stacks[which, name] = self._read(which, name)
        return self._stacks[which, name]

    def _read(self, which: str, name: str) -> Array:
        tables = self.result.describe.get(which, {})
        shape = (self.study.dictionary.n, len(self.study.targets))
        parts = [tables[site][name] if site in tables else np.full(shape, np.nan) for site in self.sites]
        return np.stack(parts).astype(np.float64) if parts else np.zeros((0, *shape))

    def _column(self, name: str, size: int) -> Array:
        parts = [self.final[site][name] for site in self.sites]
        return np.stack(parts) if parts else np.zeros((0, size))

    def _small(self, site: str) -> dict[str, Array]:
        table = self.final[site]
        return {name: table[name] for name in ("reliability", "same_site_null") if name in table}

    def quality(self, which: str, site: str) -> dict[str, float | None]:
        """Named quality numbers of one dictionary at one site; empty when it did not answer."""
        tables = self.result.describe.get(which, {})
        return quality_dict(tables[site]["quality"]) if site in tables else {}


def rounded(value: Any) -> float | None:
    """4 significant digits, or None for NaN."""
    return None if value is None or np.isnan(value) else float(f"{float(value):.4g}")


def named(names: tuple[str, ...], values: Array) -> dict[str, float | None]:
    """Rounded values by name."""
    return {name: rounded(value) for name, value in zip(names, values, strict=True)}


def mean_of(values: list[float | None] | list[float]) -> float | None:
    """Mean of the known values, None when there is none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
