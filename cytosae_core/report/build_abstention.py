"""report.json: how accurate is the other sites' probe where it is most sure? Per site, and the mean over sites.

A part's mean is taken over the sites that released both that part and all their cells, beside the same sites' mean on
all cells: their difference is what abstaining gains, and not which sites happen to answer.
"""

from __future__ import annotations

import numpy as np

from ..config import COUNTS, COVERAGE
from .evidence import Evidence, Json, rounded


def abstention(e: Evidence) -> Json:
    """Balanced accuracy on the most confident shares of cells (`config.COVERAGE`).

    Returns:
        `shares`; per site `value` and `se` by share (null: withheld) and its rounded number of units; `pooled` by
        share with the number of sites in it; `status` and `reason`.
    """
    tables = {site: table["coverage"] for site, table in e.scores.items() if "coverage" in table}
    known = {site: table for site, table in tables.items() if not np.isnan(table[:, 0]).all()}
    status, reason = _status(e, len(tables), len(known))
    return {
        "shares": list(COVERAGE),
        "sites": {
            site: {
                "value": [rounded(value) for value in table[:, 0]],
                "se": [rounded(value) for value in table[:, 1]],
                "units": _units(e, site),
            }
            for site, table in known.items()
        },
        "pooled": [_pooled(list(known.values()), row) for row in range(len(COVERAGE))],
        "status": status,
        "reason": reason,
    }


def _units(e: Evidence, site: str) -> int | None:
    counts, place = e.result.counts.get(site), COUNTS.index("units")
    return None if counts is None or np.isnan(counts[place]) else int(counts[place])


def _pooled(tables: list[np.ndarray], row: int) -> Json:
    both = [(table[row, 0], table[-1, 0]) for table in tables if not np.isnan(table[[row, -1], 0]).any()]
    mean = np.mean(both, axis=0) if both else np.full(2, np.nan)
    return {
        "share": COVERAGE[row],
        "mean": rounded(mean[0]),
        "everything": rounded(mean[1]),
        "sites": len(both),
    }


def _status(e: Evidence, told: int, known: int) -> tuple[str, str | None]:
    if known:
        return "estimated", None
    if told:
        return (
            "suppressed",
            f"every site withheld it: fewer than {e.study.min_units} units, or than 5 per class",
        )
    return (
        "not_assessed",
        "no site computed it (older sites, policies that do not name it, or no shared class)",
    )
