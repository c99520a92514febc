"""Accuracy on the most confident cells: examples counted by hand, and parts that must not leave."""

from __future__ import annotations

import numpy as np
import pytest

from cytosae_core.concepts.coverage import confidence, counted, kept_parts
from cytosae_core.config import COVERAGE

LEAST = 5


def cells(units: int, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """One cell per unit, classes in turn: labels and units."""
    return np.arange(units) % classes, np.arange(units)


def test_confidence_is_the_log_odds_of_the_named_class() -> None:
    share = np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
    assert np.allclose(confidence(np.log(share)), np.log([0.7 / 0.3, 1.0]))
    unknown = np.array([[2.0, 0.0, -np.inf]])  # a class that the probe does not know takes no part
    assert np.allclose(confidence(unknown), 2.0)
    sure = confidence(np.array([[500.0, 0.0], [900.0, 0.0]]))  # both probabilities are 1 to the last digit
    assert sure[1] > sure[0]


def test_shares_of_cells_of_equal_units_are_counted_by_hand() -> None:
    labels, units = cells(50)
    sure = np.arange(50.0)  # the last cell is the surest
    found = kept_parts(sure, labels, units, LEAST)
    assert found.kept.sum(axis=1).tolist() == [10, 20, 30, 40, 50] and found.units.tolist() == [
        10,
        20,
        30,
        40,
        50,
    ]
    assert found.kept[0].nonzero()[0].tolist() == list(range(40, 50))


def test_a_unit_with_many_cells_weighs_no_more_than_one_with_a_single_cell() -> None:
    """20 units of one cell and one unit of 100: 100 sure cells are 1/21 of the weight, not most of it."""
    labels = np.concatenate([np.arange(20) % 2, np.zeros(100, int)])
    units = np.concatenate([np.arange(20), np.full(100, 20)])
    sure = np.concatenate([np.arange(20.0), np.full(100, 99.0)])
    found = kept_parts(sure, labels, units, LEAST)
    assert found.kept[0].sum() == 100 + 4  # 1/21 + 4/21 of the weight is the first to reach 20 %
    assert found.kept[-1].all()


def test_cells_of_the_same_confidence_stay_together() -> None:
    labels, units = cells(40)
    found = kept_parts(np.zeros(40), labels, units, LEAST)
    assert found.kept.all() and (found.units == 40).all()  # five times the same part: nothing lies between


def test_a_part_in_which_a_class_is_nearly_gone_is_another_question() -> None:
    labels, units = cells(50)
    sure = np.arange(50.0) + 100 * (labels == 0)  # the 25 cells of class 0 are surer than all others
    found = kept_parts(sure, labels, units, LEAST)
    assert found.units.tolist() == [0, 0, 30, 40, 50]  # at 60 % five units of class 1 are there, at 40 % none


def test_parts_that_differ_by_few_units_are_not_both_told() -> None:
    labels, units = cells(30)
    found = kept_parts(np.arange(30.0), labels, units, 7)
    # 6, 12, 18, 24, 30 units: neighbours differ by 6 units, those after the next by 12; the smallest part has 6.
    assert found.units.tolist() == [0, 0, 18, 0, 30]


@pytest.mark.parametrize("seed", range(20))
def test_no_two_told_numbers_differ_by_few_units(seed: int) -> None:
    rng = np.random.default_rng(seed)
    units = rng.integers(0, rng.integers(12, 80), 150)
    labels = rng.integers(-1, 3, 150)
    labels[(labels == 2) & (rng.random(150) < 0.8)] = 0
    found = kept_parts(np.round(rng.normal(size=150), 1), labels, units, LEAST)
    told = [labels >= 0, *(found.kept[row] for row in reversed(range(len(COVERAGE))) if found.units[row])]
    for place, large in enumerate(told):
        for small in told[place + 1 :]:
            between = len(np.unique(units[large & ~small]))
            assert between == 0 or between >= LEAST
            assert not (small & ~large).any()


def test_a_rare_class_is_not_told_by_what_is_left_without_it() -> None:
    """`balanced_accuracy` counts the rare class, 100 % does not: their difference would be the rare class."""
    labels = np.concatenate([np.arange(40) % 2, np.full(3, 2)])
    units, sure = np.arange(43), np.arange(43.0)
    found = kept_parts(sure, labels, units, LEAST)
    assert counted(labels, units).sum() == 40
    assert found.units[-1] == 0 and found.units[3] == 32


def test_nothing_is_told_of_one_class_or_of_no_cell() -> None:
    none = np.full(30, -1)
    for labels in (np.zeros(30, int), none, np.where(np.arange(30) < 4, 1, 0)):
        assert not kept_parts(np.arange(30.0), labels, np.arange(30), LEAST).units.any()
