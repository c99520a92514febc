"""Statistics across sites on tables with a known answer."""

from __future__ import annotations

import numpy as np
import pytest

from cytosae_core.report.agreement import (
    effect_correlation,
    matched_cosine,
    rank_correlation,
    recovered,
    verdicts,
)
from cytosae_core.report.folds import Folds

SE = 0.03


def table(*rows: list[float]) -> np.ndarray:
    """[sites, concepts, 1] from one list of site effects per concept."""
    return np.array(rows, dtype=float).T[:, :, None]


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ([0.3, 0.25, 0.2, 0.16], "holds"),
        ([-0.3, -0.25, -0.2, -0.16], "holds"),
        ([0.3, 0.25, 0.2, 0.12], "holds"),
        ([0.3, 0.25, 0.2, 0.05], "differs"),
        ([0.3, 0.25, 0.2, -0.2], "differs"),
        ([0.05, 0.02, -0.03, 0.0], "no class meaning"),
        ([0.11, 0.12, 0.13, 0.12], "no class meaning"),
        ([0.3, 0.3, np.nan, np.nan], "too few patients"),
        ([0.3, 0.3, 0.3, np.nan], "holds"),
    ],
)
def test_verdicts(effects: list[float], verdict: str) -> None:
    values = table(effects)
    assert verdicts(values, np.full(values.shape, SE))[0].verdict == verdict


def test_a_loud_site_with_a_wide_interval_does_not_speak_against_the_others() -> None:
    values = table([0.3, 0.02, 0.0, 0.01])
    assert verdicts(values, np.full(values.shape, 0.1))[0].verdict == "no class meaning"


def test_the_best_target_is_named() -> None:
    effects = np.zeros((3, 1, 2))
    effects[:, 0, 1] = 0.3
    found = verdicts(effects, np.full(effects.shape, SE))[0]
    assert (found.target, found.sites) == (1, 3) and found.mean == pytest.approx(0.8)


def test_noise_does_not_hold() -> None:
    rng = np.random.default_rng(0)
    effects = rng.normal(0, 0.07, (5, 1000, 4))
    found = verdicts(effects, np.full(effects.shape, 0.07))
    assert sum(item.verdict == "holds" for item in found) <= 2


def test_meanings_are_chosen_without_the_held_out_site() -> None:
    """The last concept is unknown at site 3: the other two that can say are enough to choose it for site 0."""
    effects = table([0.3, 0.3, 0.3, 0.3], [0.3, 0.3, 0.3, 0.0], [0.0, 0.3, 0.3, 0.3], [0.3, 0.3, 0.3, np.nan])
    folds = Folds(4, 4)
    folds.add(0, effects, np.zeros_like(effects))
    assert (folds.pairs[3], folds.held[3]) == (2, 1)
    assert (folds.pairs[0], folds.held[0]) == (3, 2)
    assert folds.null_held.sum() == 0 < folds.null_pairs.sum()


def test_a_control_dictionary_is_counted_by_the_same_rule_without_a_null() -> None:
    effects = table([0.3, 0.3, 0.3, 0.3], [0.3, 0.3, 0.3, 0.0], [0.0, 0.3, 0.3, 0.3], [0.3, 0.3, 0.3, np.nan])
    folds, plain = Folds(4, 4), Folds(4, 4)
    folds.add(0, effects, np.zeros_like(effects))
    plain.add(0, effects)
    assert (plain.pairs == folds.pairs).all() and (plain.held == folds.held).all()
    assert plain.null_pairs.sum() == 0
    assert plain.mean_share() == pytest.approx(np.mean(folds.held / folds.pairs))
    assert Folds(4, 4).mean_share() is None


def test_one_other_site_chooses_nothing_where_there_are_more() -> None:
    effects = table([0.3, 0.3, np.nan])
    folds = Folds(3, 1)
    folds.add(0, effects, effects)
    assert folds.pairs.sum() == 0


def test_planted_concept_is_chosen_on_the_other_sites() -> None:
    effects = np.zeros((3, 5, 1))
    effects[:, 2, 0] = -0.4
    effects[0, 4, 0] = 0.5  # strong at one site only: must not win the fold that holds site 0 out
    held, row = recovered(effects, 0)
    assert row == 2 and held == pytest.approx([0.9, 0.9, 0.9])


def test_planted_with_nothing_known_says_nothing() -> None:
    held, row = recovered(np.full((3, 4, 1), np.nan), 0)
    assert held == [None, None, None] and row == -1


def test_rank_correlation_ignores_withheld_entries() -> None:
    a, b = np.array([1.0, 2, 3, np.nan, 5]), np.array([10.0, 20, 30, 7, np.nan])
    assert rank_correlation(a, b) == (pytest.approx(1.0), 3)
    assert rank_correlation(a[:2], b[:2]) == (None, 2)


def test_effect_correlation_weighs_by_precision() -> None:
    a, b = np.array([0.1, 0.2, 0.3, 0.9]), np.array([0.1, 0.2, 0.3, -0.9])
    se = np.array([0.02, 0.02, 0.02, 5.0])
    value, count = effect_correlation(a, b, se, se)
    plain, _ = effect_correlation(a, b, np.full(4, 0.02), np.full(4, 0.02))
    assert count == 4 and value is not None and plain is not None and value > 0.9 > 0 > plain


def test_matched_cosine_undoes_a_permutation() -> None:
    rows = np.random.default_rng(0).standard_normal((20, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert matched_cosine(rows, rows[::-1]) == pytest.approx(np.ones(20))
