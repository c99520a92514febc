"""The benchmark of many sites still runs: its sites without data must follow the table of what may leave."""

from __future__ import annotations

from benchmarks.many_sites import measure


def test_a_statistics_round_of_sites_without_data() -> None:
    found = measure(3, 32, 16)
    assert found["answered"] == 3 and found["received_mb"] > 0
