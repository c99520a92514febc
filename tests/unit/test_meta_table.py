"""Random effects of many rows at once: the same numbers as one by one, and intervals that cover what they promise."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from cytosae_core.report.meta import random_effects, reml
from cytosae_core.report.meta_table import FitTable, probability_above, random_effects_table
from cytosae_core.report.multiplicity import benjamini_hochberg

SAME = ("mean", "variance", "tau2", "i2", "h2", "q", "low", "high", "centre", "spread")


def made(rows: int, sites: int, seed: int, missing: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    v = rng.uniform(0.003, 0.4, (rows, sites))
    spread = rng.choice([0.0, 0.1, 1.5], (rows, 1))
    y = rng.normal(0.3, 1, (rows, 1)) + spread * rng.standard_normal((rows, sites))
    y += np.sqrt(v) * rng.standard_normal((rows, sites))
    y[rng.random((rows, sites)) < missing] = np.nan
    return y, v


@pytest.mark.parametrize(("sites", "missing"), [(3, 0.0), (5, 0.3), (8, 0.0), (30, 0.5)])
def test_every_row_is_what_it_is_alone(sites: int, missing: float) -> None:
    y, v = made(300, sites, seed=sites, missing=missing)
    found = random_effects_table(y, v)
    for row in range(len(y)):
        known = ~np.isnan(y[row])
        assert found.sites[row] == known.sum()
        if known.sum() < 3:
            assert np.isnan(found.mean[row]) and np.isnan(found.p[row])
            continue
        alone = random_effects(y[row][known], v[row][known])
        for name in SAME:
            assert getattr(found, name)[row] == pytest.approx(getattr(alone, name), rel=1e-8, abs=1e-9), name
        pair = (found.prediction_low[row], found.prediction_high[row])
        assert pair == pytest.approx(alone.prediction, rel=1e-8, abs=1e-9)


def test_rows_that_scoring_alone_does_not_end() -> None:
    """Wide spreads of variances make Fisher scoring creep: the bracket is halved instead."""
    rng = np.random.default_rng(5)
    v = 10 ** rng.uniform(-6, 0, (500, 6))
    y = rng.standard_normal((500, 6)) * 0.2
    found = random_effects_table(y, v)
    expected = [reml(y[row], v[row]) for row in range(len(y))]
    assert found.tau2 == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_bcg() -> None:
    """The 13 BCG trials (Colditz et al. 1994; metafor's dat.bcg): log risk ratios."""
    a = np.array([4, 6, 3, 62, 33, 180, 8, 505, 29, 17, 186, 5, 27], float)
    b = np.array([119, 300, 228, 13536, 5036, 1361, 2537, 87886, 7470, 1699, 50448, 2493, 16886], float)
    c = np.array([11, 29, 11, 248, 47, 372, 10, 499, 45, 65, 141, 3, 29], float)
    d = np.array([128, 274, 209, 12619, 5761, 1079, 619, 87892, 7232, 1600, 27197, 2338, 17825], float)
    y = np.log(a / (a + b)) - np.log(c / (c + d))
    v = 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)
    found = random_effects_table(y[None], v[None])
    assert found.q[0] == pytest.approx(152.2330, abs=1e-4)
    assert found.tau2[0] == pytest.approx(0.3132, abs=1e-4)
    assert found.mean[0] == pytest.approx(-0.7145, abs=1e-4)
    assert (100 * found.i2[0], found.h2[0]) == pytest.approx((92.22, 12.86), abs=0.01)
    assert 100 * found.i2_q[0] == pytest.approx(92.12, abs=0.01)


def test_the_order_of_sites_and_sites_that_know_nothing_change_nothing() -> None:
    y, v = made(100, 7, seed=1, missing=0.2)
    found = random_effects_table(y, v)
    order = np.random.default_rng(0).permutation(7)
    turned = random_effects_table(y[:, order], v[:, order])
    wider = random_effects_table(
        np.pad(y, ((0, 0), (0, 2)), constant_values=np.nan), np.pad(v, ((0, 0), (0, 2)))
    )
    for item in fields(FitTable):
        first = getattr(found, item.name)
        for other in (turned, wider):
            assert np.allclose(first, getattr(other, item.name), rtol=1e-7, atol=1e-9, equal_nan=True), (
                item.name
            )


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_variance_that_is_none_is_refused(bad: float) -> None:
    y, v = made(2, 4, seed=2)
    v[1, 2] = bad
    with pytest.raises(ValueError, match="above 0"):
        random_effects_table(y, v)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        random_effects_table(np.zeros((2, 3)), np.ones((2, 4)))


@pytest.mark.parametrize("sites", [5, 8, 20, 100])
@pytest.mark.parametrize("tau", [0.05, 0.15, 0.3, 0.5, 1.0])
def test_the_prediction_interval_covers_the_next_site(sites: int, tau: float) -> None:
    """95 % intervals cover between 90 and 99 % (3,000 seeded draws: standard error .5 %); more where there is hardly
    any spread at few sites, which no method can know."""
    rng = np.random.default_rng(sites)
    v = rng.uniform(0.01, 0.2, (3000, sites))
    truth = 0.4 + tau * rng.standard_normal((3000, sites + 1))
    found = random_effects_table(truth[:, :-1] + np.sqrt(v) * rng.standard_normal((3000, sites)), v)
    new = truth[:, -1]
    covered = ((found.prediction_low <= new) & (new <= found.prediction_high)).mean()
    assert 0.90 <= covered <= (0.99 if tau > 0.05 else 1.0)
    assert 0.92 <= ((found.low <= 0.4) & (found.high >= 0.4)).mean() <= (0.99 if tau > 0.05 else 1.0)


def test_the_probability_of_the_next_site_is_what_happens() -> None:
    rng = np.random.default_rng(3)
    v = np.full((4000, 10), 0.05)
    truth = 0.3 + 0.4 * rng.standard_normal((4000, 11))
    found = random_effects_table(truth[:, :-1] + np.sqrt(v) * rng.standard_normal((4000, 10)), v)
    assert probability_above(found, 0.3).mean() == pytest.approx(0.5, abs=0.02)
    happens = (truth[:, -1] > 0).mean()
    assert happens - 0.06 < probability_above(found, 0.0).mean() < happens  # cautious: the wider interval's


def test_q_values_are_scipy_s() -> None:
    p = np.random.default_rng(4).uniform(size=500) ** 2
    assert benjamini_hochberg(p) == pytest.approx(false_discovery_control(p), rel=1e-12)
    holes = np.where(np.arange(500) % 3 == 0, np.nan, p)
    known = ~np.isnan(holes)
    assert benjamini_hochberg(holes)[known] == pytest.approx(false_discovery_control(p[known]), rel=1e-12)
    assert np.isnan(benjamini_hochberg(holes)[~known]).all()
    with pytest.raises(ValueError, match=r"0 \.\. 1"):
        benjamini_hochberg(np.array([0.5, 1.5]))
