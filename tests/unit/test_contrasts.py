"""Class means, contrasts and likeness over patients: against values worked out by hand, and under no difference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cytosae_core.concepts.contrasts import (
    benjamini_hochberg,
    class_barcodes,
    contrast,
    likeness,
    one_vs_rest,
)
from cytosae_core.errors import DataError

NAN = np.nan


def test_class_means_count_patients_not_cells() -> None:
    shares = np.array([[0.1, 0.0], [0.3, 0.0], [0.2, 0.6], [0.9, 0.9], [NAN, NAN], [0.5, 0.5]])
    found = class_barcodes(shares, np.array([0, 0, 0, 1, 1, -1]), 3)
    assert found.units.tolist() == [3, 1, 0]  # the one without tokens and the one of several classes are out
    assert found.mean[0] == pytest.approx([0.2, 0.2]) and found.mean[1] == pytest.approx([0.9, 0.9])
    assert np.isnan(found.mean[2]).all()
    assert np.isfinite(found.low[0]).all() and np.isnan(found.low[1:]).all()
    assert (found.low[0] <= found.mean[0]).all() and (found.mean[0] <= found.high[0]).all()
    assert (found.low >= 0)[0].all()


def test_identical_patients_have_an_interval_of_no_width() -> None:
    found = class_barcodes(np.full((4, 1), 0.25), np.zeros(4, int), 1)
    assert found.low[0] == pytest.approx([0.25]) and found.high[0] == pytest.approx([0.25])


def test_interval_of_three_by_hand() -> None:
    """One resample in 27 takes the largest thrice, so the 97.5 % point is the largest: .6. Stretched by sqrt(3 / 2)
    and by t with 2 degrees of freedom, 4.3027, over 1.95996."""
    found = class_barcodes(np.array([[0.0], [0.3], [0.6]]), np.zeros(3, int), 1)
    assert found.high[0] == pytest.approx([0.3 + 0.3 * 1.5**0.5 * 4.30265 / 1.95996], rel=1e-5)
    assert found.low[0] == [0.0]  # a share is never below 0


@pytest.mark.parametrize("units", [4, 12])
def test_bootstrap_intervals_cover(units: int) -> None:
    """400 concepts of one true mean: about 95 % of the intervals hold it. A plain percentile interval of 4 units
    holds it in about 75 %."""
    rng = np.random.default_rng(units)
    found = class_barcodes(rng.normal(10, 1, (units, 400)), np.zeros(units, int), 1)
    held = (found.low[0] <= 10) & (found.high[0] >= 10)
    assert 0.89 < held.mean() <= 0.99


def test_contrast_by_hand_with_every_exchange() -> None:
    shares = np.array([[0.5, 0.1], [0.6, 0.2], [0.7, 0.1], [0.1, 0.1], [0.2, 0.2], [0.1, 0.1]])
    label = np.array([0, 0, 0, 1, 1, 1])
    found = contrast(shares, label, 0, 1)
    assert found.difference == pytest.approx([0.6 - 0.4 / 3, 0])
    # of the 20 splits only the two that part the groups completely reach .467
    splits = [
        abs(shares[list(s), 0].mean() - np.delete(shares[:, 0], s).mean())
        for s in itertools.combinations(range(6), 3)
    ]
    assert found.p[0] == pytest.approx(np.mean(np.array(splits) >= found.difference[0] - 1e-12)) == 0.1
    assert found.p[1] == 1
    assert found.q == pytest.approx([0.2, 1.0])
    assert found.attainable == pytest.approx(0.1) and found.units == (3, 3) and found.tested == 2
    assert "few units, not few differences" in found.words  # 5 % can never be reached, and it says so
    assert found.low[0] < found.difference[0] < found.high[0]


def test_contrast_turns_its_sign_with_the_classes() -> None:
    rng = np.random.default_rng(0)
    shares, label = rng.random((10, 30)), np.repeat([0, 1], 5)
    there, back = contrast(shares, label, 0, 1), contrast(shares, label, 1, 0)
    assert there.difference == pytest.approx(-back.difference)
    assert there.p == pytest.approx(back.p)


def test_top_contrasts_are_signed() -> None:
    shares = np.zeros((6, 4))
    shares[:3, 1], shares[3:, 2], shares[:3, 3] = 0.2, 0.5, 0.1
    found = contrast(shares, np.repeat([0, 1], 3), 0, 1)
    assert found.top(2).tolist() == [1, 2] and found.top(50).tolist() == [1, 3, 2]  # 0 differs nowhere


def test_class_of_two_patients_gets_neither_interval_nor_test() -> None:
    found = contrast(np.random.default_rng(0).random((7, 3)), np.array([0] * 5 + [1] * 2), 0, 1)
    for values in (found.low, found.high, found.p, found.q):
        assert np.isnan(values).all()
    assert np.isfinite(found.difference).all() and "2 unit(s), 3 are needed" in found.words


def test_rare_concepts_are_not_tested() -> None:
    shares = np.zeros((6, 2))
    shares[:, 0], shares[0, 1] = np.arange(6), 0.4  # the second occurs in one patient
    found = contrast(shares, np.repeat([0, 1], 3), 0, 1)
    assert found.tested == 1 and np.isfinite(found.p[0]) and np.isnan(found.p[1]) and np.isnan(found.q[1])


def test_one_against_the_rest_weighs_classes_alike() -> None:
    shares = np.array([0.9] * 3 + [0.1] * 3 + [0.5] * 30)[:, None]
    label = np.array([0] * 3 + [1] * 3 + [2] * 30)
    assert one_vs_rest(shares, label, 0).difference == pytest.approx([0.9 - (0.1 + 0.5) / 2])


def test_one_against_the_rest_leaves_small_classes_out_and_says_so() -> None:
    shares = np.array([0.9] * 3 + [0.1] * 3 + [0.5] * 2)[:, None]
    found = one_vs_rest(shares, np.array([0] * 3 + [1] * 3 + [2] * 2), 0)
    assert found.difference == pytest.approx([0.8]) and np.isfinite(found.p).all()
    assert "1 class(es) with fewer than 3 units left out" in found.words


def test_no_difference_gives_uniform_p_and_no_discovery() -> None:
    rng = np.random.default_rng(3)
    found = contrast(rng.random((24, 500)), np.repeat([0, 1], 12), 0, 1)
    assert 0.02 < (found.p < 0.05).mean() < 0.09
    assert (found.q <= 0.05).sum() <= 1


def test_p_of_random_exchanges_is_never_zero() -> None:
    shares = np.repeat([0.1, 0.9], 12)[:, None] + np.random.default_rng(0).random((24, 1)) / 100
    found = contrast(shares, np.repeat([0, 1], 12), 0, 1)
    assert found.p == pytest.approx([1 / 5000]) and found.attainable == pytest.approx(1 / 5000)


def test_seed_fixes_every_number() -> None:
    rng = np.random.default_rng(3)
    shares, label = rng.random((24, 20)), np.repeat([0, 1], 12)
    one, same, other = (contrast(shares, label, 0, 1, seed=seed) for seed in (1, 1, 2))
    assert (one.p == same.p).all() and (one.low == same.low).all() and not (one.low == other.low).all()


def test_bad_contrasts() -> None:
    shares, label = np.random.default_rng(0).random((6, 2)), np.repeat([0, 1], 3)
    with pytest.raises(DataError, match="two different classes"):
        contrast(shares, label, 1, 1)
    with pytest.raises(DataError, match="units in every class"):
        contrast(shares, label, 0, 2)
    with pytest.raises(DataError, match="at least two classes"):
        one_vs_rest(shares[:3], label[:3], 0)
    with pytest.raises(DataError, match="single class"):
        class_barcodes(shares, np.full(6, -1), 2)


def test_benjamini_hochberg_by_hand() -> None:
    # sorted .01 .02 .03 .5 over m = 4: .04, .04, .04, .5
    assert benjamini_hochberg(np.array([0.02, 0.5, 0.01, NAN, 0.03])) == pytest.approx(
        [0.04, 0.5, 0.04, NAN, 0.04], nan_ok=True
    )
    assert np.isnan(benjamini_hochberg(np.full(3, NAN))).all()


def test_likeness_is_pearson_ordered_by_class() -> None:
    rng = np.random.default_rng(0)
    shares = rng.random((9, 40))
    shares[8] = 0.3  # no spread: correlates with nothing
    label = np.array([1, 0, 1, 0, -1, 0, 1, 0, 1])
    found = likeness(shares, label)
    assert found.label.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, -1] and sorted(found.order) == list(range(9))
    place = {unit: row for row, unit in enumerate(found.order.tolist())}
    assert found.correlation[place[0], place[3]] == pytest.approx(np.corrcoef(shares[0], shares[3])[0, 1])
    assert np.diag(found.correlation) == pytest.approx(np.ones(9))
    assert found.correlation[place[8], place[0]] == 0


def test_likeness_puts_twins_side_by_side() -> None:
    rng = np.random.default_rng(1)
    bases = rng.random((3, 50))
    shares = np.concatenate([bases, bases]) + 0.01 * rng.random((6, 50))  # twins: 0-3, 1-4, 2-5
    order = likeness(shares, np.zeros(6, int)).order.tolist()
    assert all(abs(order.index(i) - order.index(i + 3)) == 1 for i in range(3))


def test_likeness_does_not_see_the_divisor_of_a_barcode() -> None:
    """Tokens or number of concepts: a Pearson correlation is the same, so no second map is drawn."""
    counts = np.random.default_rng(2).integers(0, 50, (6, 30)).astype(float)
    tokens = np.array([[100], [2000], [300], [50], [900], [10]])
    ours, published = likeness(counts / tokens, np.zeros(6, int)), likeness(counts / 30, np.zeros(6, int))
    assert ours.order.tolist() == published.order.tolist()
    assert ours.correlation == pytest.approx(published.correlation)


def test_likeness_needs_two() -> None:
    with pytest.raises(DataError, match="at least two patients"):
        likeness(np.array([[0.1, 0.2], [NAN, NAN]]), np.zeros(2, int))
