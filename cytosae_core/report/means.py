"""Means over sites of released tables, added one site at a time; NaN is left out. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
RECURS = 0.7  # cosine above which a site's own dictionary has the same row


class Means:
    """Running mean of tables of one shape."""

    def __init__(self) -> None:
        self._sum: Floats | None = None
        self._count: Floats | None = None

    def add(self, table: Array | None) -> None:
        """Add one site's table; None adds nothing."""
        if table is None:
            return
        known = ~np.isnan(table)
        value = np.where(known, table, 0.0).astype(np.float64)
        if self._sum is None or self._count is None:
            self._sum, self._count = value, known.astype(np.float64)
        else:
            self._sum += value
            self._count += known

    @property
    def value(self) -> Floats | None:
        """Mean over the sites that released an entry, NaN where none did; None when no site had the table."""
        if self._sum is None or self._count is None:
            return None
        return np.where(self._count > 0, self._sum / np.maximum(self._count, 1), np.nan)

    @property
    def count(self) -> Floats | None:
        """Sites that released each entry."""
        return self._count


class Recurrence:
    """Does a site's own dictionary, trained from other random rows, have a concept's row?

    Attributes:
        sites: number of sites that compared.
        found: [n] sites where the nearest row has a cosine of at least `RECURS`, above that site's null.
    """

    def __init__(self) -> None:
        self.sites = 0
        self.found: Array = np.zeros(0, np.int64)
        self._own, self._start, self._null = Means(), Means(), Means()

    def add(self, table: Mapping[str, Array]) -> None:
        """Add one site's description, if it compared."""
        if "recurrence" not in table:
            return
        own = np.asarray(table["recurrence"], dtype=np.float64)
        null = float(table["recurrence_null"][0]) if "recurrence_null" in table else np.nan
        with np.errstate(invalid="ignore"):
            hit = (own >= RECURS) & ~(own <= null)
        self.found = hit.astype(np.int64) + (self.found if self.sites else 0)
        self.sites += 1
        self._own.add(own)
        self._start.add(table.get("recurrence_init"))
        self._null.add(table.get("recurrence_null"))

    @property
    def mean(self) -> Floats | None:
        """[n] mean cosine with the nearest row of a site's dictionary."""
        return self._own.value

    @property
    def init(self) -> Floats | None:
        """[n] the same before those dictionaries were trained."""
        return self._start.value

    @property
    def null(self) -> float:
        """Mean over sites of the 95th percentile for permuted rows; NaN when unknown."""
        value = self._null.value
        return float("nan") if value is None else float(value[0])
