"""The same tables as ACRO, and as OpenSAFELY's and DataSHIELD's documents and code: same cells withheld.

ACRO's answers are recorded (tests/vectors/make_acro.py says how and with which version). OpenSAFELY: the rounding
example of its documentation, docs/outputs/sdc.md. DataSHIELD: the small-cells rule of dsBase, R/histogramDS2.R.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_core.policy import SitePolicy
from cytosae_core.privacy.bins import protect_histogram
from cytosae_core.privacy.disclosure import dominance, protect_counts, protect_table

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "acro.json").read_text())
TEN = SitePolicy("acro", "masked", min_units=10)


def cells(table: dict[str, Any]) -> dict[tuple[int, int], np.ndarray]:
    """Cell in ACRO's positions -> contributions of its patients."""
    out: dict[tuple[int, int], list[int]] = {}
    for row, column, value in table["patients"]:
        place = (table["rows"].index(row), table["columns"].index(column))
        out.setdefault(place, []).append(value)
    return {place: np.array(values, dtype=np.float64) for place, values in out.items()}


def flagged(table: dict[str, Any], *checks: str) -> set[tuple[int, int]]:
    return {tuple(cell) for check in checks for cell in table["flagged"][check]}


def test_vectors_are_of_acro_and_flag_something() -> None:
    assert VECTORS["acro"] == "1.0.2" and VECTORS["risk_appetite"]["safe_threshold"] == TEN.min_units
    counts = {check: sum(len(t["flagged"][check]) for t in VECTORS["tables"]) for check in
              VECTORS["tables"][0]["flagged"]}  # fmt: skip
    assert all(count >= 10 for count in counts.values()), counts


@pytest.mark.parametrize("index", range(len(VECTORS["tables"])))
def test_threshold_as_acro(index: int) -> None:
    table = VECTORS["tables"][index]
    found = cells(table)
    ours = {
        place for place, values in found.items() if np.isnan(protect_counts(len(values), len(values), TEN))
    }
    assert ours == flagged(table, "MinimumThresholdCheck") & set(found)


@pytest.mark.parametrize("index", range(len(VECTORS["tables"])))
def test_dominance_as_acro(index: int) -> None:
    """Ours = ACRO's nk-rule or p-ratio, or one patient above one half, which ACRO does not ask."""
    table = VECTORS["tables"][index]
    found = cells(table)
    ours = {place for place, values in found.items() if dominance(values, TEN)}
    half = {place for place, values in found.items() if values.max() > 0.5 * values.sum()}
    assert ours == (flagged(table, "NKCheck", "PPercentCheck") & set(found)) | half


def test_opensafely_redact_then_round() -> None:
    """Redact counts <= 7, round to 5, totals are sums of the rounded counts: the two columns of the example."""
    seven = SitePolicy("opensafely", "masked", min_units=8)
    for true, shown, total in (
        ([3, 8, 16, 23], [np.nan, 10, 15, 25], 50),
        ([18, 23, 31, 44], [20, 25, 30, 45], 120),
    ):
        out = protect_counts(true, true, seven)
        np.testing.assert_array_equal(out, shown)
        assert np.nansum(out) == total


def test_opensafely_total_gives_no_redacted_cell_back() -> None:
    """Its example of secondary disclosure: 1 of 51. Here a second cell goes, and the total is of shown cells."""
    table = protect_table(
        [[1], [10], [15], [25]], [[1], [10], [15], [25]], SitePolicy("x", "masked", min_units=8)
    )
    assert np.isnan(table.cells[:, 0]).tolist() == [True, True, False, False]
    assert table.column_totals.tolist() == [40.0]


def test_datashield_small_bins_never_shown() -> None:
    """dsBase sets bins with 1 to nfilter.tab - 1 = 2 entries to zero; here they are merged, so no entry is lost."""
    counts = np.array([1, 2, 12, 20, 31, 2, 0, 12, 1, 0])
    policy = SitePolicy("datashield", "masked", min_units=3)
    people = np.repeat(np.arange(10), counts)
    items = np.eye(10)[people]  # one entry per unit
    shown = protect_histogram(items, np.arange(11.0), policy)
    invalid = (counts > 0) & (counts < 3)
    assert invalid.sum() == 4 and len(shown.counts) <= 10
    edges = shown.edges.astype(int)
    merged = np.add.reduceat(counts, edges[:-1])
    assert (merged >= 3).all() and merged.sum() == counts.sum()
    np.testing.assert_array_equal(shown.counts, np.round(merged / 5) * 5)
    assert set(edges) <= set(range(11))
