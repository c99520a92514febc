"""Four studies of phantom hospitals with known truth: concepts are called what they are (`make bench`: 20)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.planted import FIRST_SEED, make_pool, run_study, tally

STUDIES = 4


@pytest.mark.e2e
def test_planted_concepts_are_called_what_they_are(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, 187, say=lambda text: None)
    found = tally([run_study(pool, FIRST_SEED + seed, tmp_path / "study") for seed in range(STUDIES)])
    assert found["true_recurring"]["n"] == 12 and found["artefact_generalising"]["n"] == STUDIES
    assert found["true_recurring"]["share"] >= 0.9
    # The limits are 5 % over 20 studies (`make bench`). Other processors train another dictionary, so one of four is
    # what a rate of 5 % gives now and then; two of four it gives once in seventy times.
    assert found["artefact_generalising"]["share"] <= 0.25
    assert found["single_site_generalising"]["share"] <= 0.25
    assert found["true_generalising"]["share"] >= 0.25  # the gates are no wall
