"""Barcodes of patients, two patients, one patient against the others: against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cytosae_core.concepts.barcode import barcodes, compare, find_unit, typical
from cytosae_core.errors import DataError
from tests.records import record


def test_barcode_is_a_share_of_tokens_and_the_published_form_is_not() -> None:
    found = record([[10, 20, 0, 5], [20, 40, 0, 10]], [100, 200], [0, 0])
    assert barcodes(found) == pytest.approx(np.array([[0.1, 0.2, 0, 0.05]] * 2))
    published = barcodes(found, cytosae_compatible=True)  # divided by n = 4 concepts
    assert published == pytest.approx(np.array([[2.5, 5, 0, 1.25], [5, 10, 0, 2.5]]))
    assert published[1] == pytest.approx(2 * published[0])  # twice the cells, twice the barcode: the defect


def test_calibrated_barcodes_only_of_held_out_units() -> None:
    found = record(
        [[10, 0], [10, 0], [4, 4]], [100, 50, 0], [0, 0, 0],
        calibrated=[[0, 0], [5, 1], [1, 1]], held_out=[0, 1, 1],
    )  # fmt: skip
    shares = barcodes(found, calibrated=True)
    assert np.isnan(shares[0]).all()  # it set the thresholds
    assert shares[1] == pytest.approx([0.1, 0.02])
    assert np.isnan(shares[2]).all()  # no token


def test_bad_records() -> None:
    good = record([[1, 0]], [10], [0])
    with pytest.raises(DataError, match="calibrated thresholds"):
        barcodes(good, calibrated=True)
    with pytest.raises(DataError, match="barcodes per patient"):
        barcodes(replace(good, unit_counts=np.zeros((0, 2), np.int32)))
    with pytest.raises(DataError, match="at least one token"):
        barcodes(replace(good, tokens=np.array([0])))


def test_find_unit_names_near_ones() -> None:
    found = record([[1], [1]], [10, 10], [0, 0])
    assert find_unit(found, "p1") == 1
    with pytest.raises(DataError, match=r"got 'p11'.*p1"):
        find_unit(found, "p11")


def test_comparison_by_hand_within_one_class() -> None:
    shares = np.array([[0.50], [0.10], [0.10], [0.14], [0.18]])
    found = compare(shares, np.zeros(5, int), 0, 1)
    assert found.difference == pytest.approx([0.4])
    # the three others differ by +-.04, +-.04, +-.08: ordered pairs, middle 95 %
    others = [-0.08, -0.04, -0.04, 0.04, 0.04, 0.08]
    assert found.low == pytest.approx(np.quantile(others, [0.025]))
    assert found.high == pytest.approx(np.quantile(others, [0.975]))
    # unordered pairs of all five that differ by at least .4: (0, 1) and (0, 2), of ten
    assert found.p == pytest.approx([2 / 10]) and found.pairs == 10 and found.others == 3
    assert found.outside.tolist() == [True]


def test_comparison_across_classes_expects_their_difference() -> None:
    low, high = [0.10, 0.11, 0.12, 0.13, 0.14], [0.50, 0.51, 0.52, 0.53, 0.54]
    shares = np.array([*low, *high])[:, None]
    label = np.repeat([0, 1], 5)
    usual = compare(shares, label, 5, 0)
    assert usual.difference == pytest.approx([0.4]) and not usual.outside.any()
    # of the 25 pairs only some differ by at most .4: (5, 0..4), (6, 1..4), ... = 15; two-sided, at most 1
    assert usual.p == pytest.approx([1.0])
    shares[5] = 0.9
    strange = compare(shares, label, 5, 0)
    assert strange.outside.all() and strange.p == pytest.approx([2 * 1 / 25])


def test_comparison_without_enough_others_says_so() -> None:
    found = compare(np.array([[0.1], [0.2], [0.1], [0.3]]), np.zeros(4, int), 0, 1)
    assert np.isnan([found.low, found.high, found.p]).all() and found.pairs == 0
    assert not found.outside.any() and "only 2 other patients" in found.basis


def test_comparison_refuses_oneself_and_the_absent() -> None:
    shares = np.array([[0.1], [np.nan]])
    with pytest.raises(DataError, match="two different"):
        compare(shares, np.zeros(2, int), 0, 0)
    with pytest.raises(DataError, match="both patients"):
        compare(shares, np.zeros(2, int), 0, 1)


def test_robust_z_by_hand() -> None:
    shares = np.array([[0.30], [0.10], [0.12], [0.14], [0.20]])
    found = typical(shares, np.full(5, 1000), 0)
    # median of the others .13, MAD = median(.03, .01, .01, .07) = .02
    assert found.z == pytest.approx([(0.30 - 0.13) / (1.4826 * 0.02)])
    assert found.others == 4


def test_spread_is_never_below_one_token() -> None:
    shares = np.array([[0.05], [0.0], [0.0], [0.0]])
    assert typical(shares, np.full(4, 100), 0).z == pytest.approx([0.05 / 0.01])


def test_plug_in_rate_by_hand() -> None:
    shares = np.zeros((5, 4))
    shares[0] = [0.09, 0.05, 0.0, 0.0]
    shares[1] = [0.0, 0.0, 0.06, 0.0]
    found = typical(shares, np.full(5, 100), 0)
    # own z: 9, 5, 0, 0. Others' z: patient 1 has one concept at 6. Rate at 9: 0 / 1. At 5: (1 / 4) / 2.
    assert found.q == pytest.approx([0.0, 0.125, 1.0, 1.0])


def test_plug_in_rate_never_falls_with_stronger_evidence() -> None:
    shares = np.zeros((5, 5))
    shares[0, :4] = [0.09, 0.08, 0.07, 0.06]
    shares[1, 4] = 0.10
    # rates at 9, 8, 7, 6: .25 / 1, .25 / 2, .25 / 3, .25 / 4; the strongest is as good as the set it leads
    assert typical(shares, np.full(5, 100), 0).q == pytest.approx([0.0625] * 4 + [1.0])


def test_typical_concepts_of_a_peculiar_patient_and_of_nobody() -> None:
    rng = np.random.default_rng(5)
    shares = rng.binomial(2000, 0.05, size=(20, 400)) / 2000
    called = [int((typical(shares, np.full(20, 2000), unit).q <= 0.05).sum()) for unit in range(20)]
    assert np.mean(called) < 1  # of 400 concepts, and no patient is peculiar
    shares[3, :10] += 0.06
    assert set(np.flatnonzero(typical(shares, np.full(20, 2000), 3).q <= 0.05)) >= set(range(10))


def test_typical_needs_others_and_warns_of_small_patients() -> None:
    few = typical(np.full((3, 2), 0.1), np.full(3, 100), 0)
    assert np.isnan(few.z).all() and "only 2 other patients" in few.basis
    small = typical(np.full((5, 2), 0.1), np.array([10, 100, 100, 100, 100]), 0)
    assert "few cells" in small.warning
    within = typical(np.full((5, 2), 0.1), np.full(5, 100), 0, among=np.array([1, 1, 1, 1, 0], bool))
    assert within.others == 3
    with pytest.raises(DataError, match="barcode of the patient"):
        typical(np.full((5, 2), np.nan), np.full(5, 100), 0)
