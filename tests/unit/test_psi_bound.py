"""A PSI where bins are withheld is never more than the true one, and is the true one where none is."""

from __future__ import annotations

import numpy as np
import pytest

from cytosae_core.report.heterogeneity import psi
from cytosae_core.report.psi_bound import Bound, Histogram, histogram, psi_bound

NAN = float("nan")


def whole(*counts: float) -> Histogram:
    made = histogram(counts, sum(counts), True, 5)
    assert made is not None
    return made


def bound(own: Histogram, *others: Histogram) -> Bound:
    made = psi_bound(own, list(others))
    assert isinstance(made, Bound), made
    return made


def test_without_a_withheld_bin_it_is_the_index_itself() -> None:
    found = bound(whole(10, 30, 60), whole(20, 20, 60), whole(40, 20, 40))
    assert found.exact and (found.bins, found.sites) == (3, 2)
    assert found.value == pytest.approx(psi(np.array([0.1, 0.3, 0.6]), np.array([0.3, 0.2, 0.5])))


def test_a_remainder_is_one_bin_counted_by_hand() -> None:
    own = histogram([50, 30, NAN, NAN], 100, True, 5)  # the remainder holds 20 of 100 units
    other = histogram([25, 25, NAN, NAN], 100, True, 5)  # and 50 of 100 there
    assert own is not None and other is not None
    found = bound(own, other)
    by_hand = 0.25 * np.log(2) + 0.05 * np.log(30 / 25) + 0.3 * np.log(50 / 20)
    assert not found.exact and found.bins == 2 and found.value == pytest.approx(by_hand)


def test_shares_that_may_be_the_same_add_nothing() -> None:
    """Units outside the classes are in no bin: the bins hold between 45 + 5 and 100 units together."""
    own = histogram([30, 15, NAN], 100, False, 5)
    assert own is not None and (own.least, own.most) == (50, 100)
    assert bound(own, whole(40, 25, 35)).value == 0.0  # 30 of 50..100 may be 40 %, 15 may be 25 %
    by_hand = 0.2 * np.log(0.3 / 0.1) + 0.5 * np.log(0.8 / 0.3)  # nearest ends; the remainder may be 10 %
    assert bound(own, whole(10, 80, 10)).value == pytest.approx(by_hand)


@pytest.mark.parametrize("seed", range(40))
def test_it_is_never_above_the_true_index(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables = rng.multinomial(200, rng.dirichlet(np.ones(8)), size=4) + rng.integers(0, 30, (4, 8)) + 1
    hidden = rng.random((4, 8)) < 0.3
    told = []
    for counts, gone in zip(tables, hidden, strict=True):
        outside = int(rng.integers(0, 40))  # units without an image in the classes: told, but in no bin
        least = int(counts[gone].sum()) or 1
        told.append(histogram(np.where(gone, NAN, counts), counts.sum() + outside, False, least))
    known = [item for item in told if item is not None]
    found = psi_bound(known[0], known[1:])
    if isinstance(found, Bound):
        often = np.mean([item.shown for item in known[1:]], axis=0) > 0.5
        kept = known[0].shown & often
        used = [place for place in range(1, 4) if known[place].shown[kept].all()]
        shares = tables / tables.sum(axis=1, keepdims=True)
        assert found.value <= psi(shares[0], shares[used].mean(axis=0)) + 1e-9


def test_too_few_bins_or_sites_give_a_reason_and_no_number() -> None:
    own = whole(10, 30, 60)
    one = histogram([20, NAN, NAN], 100, True, 5)
    assert one is not None
    assert "no other site" in str(psi_bound(own, []))
    assert "fewer than 2 bins" in str(psi_bound(own, [one]))
    assert histogram([NAN, NAN, NAN], 100, True, 5) is None
    assert histogram([0, 0, 0], 0, True, 5) is None
    assert histogram([20, NAN, NAN], None, True, 5) is None  # nobody knows how large the remainder is
