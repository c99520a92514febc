"""Random effects: metafor's published numbers, the verifier's own, and intervals that cover what they promise."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from cytosae_core.audit.recompute import meta as plain
from cytosae_core.report.meta import Fit, FitTable, probability_above, random_effects, random_effects_table
from cytosae_core.report.multiplicity import benjamini_hochberg

# BCG vaccine trials (Colditz et al. 1994; metafor's dat.bcg): tpos, tneg, cpos, cneg.
BCG = np.array(
    [
        (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
        (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232),
        (17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
    ],
    dtype=float,
)  # fmt: skip


def bcg() -> tuple[np.ndarray, np.ndarray]:
    """Log risk ratios and their variances, as metafor's escalc(measure="RR")."""
    a, b, c, d = BCG.T
    return np.log((a / (a + b)) / (c / (c + d))), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)


def test_bcg_equals_metafor() -> None:
    y, v = bcg()
    assert random_effects(y, v, "EE").mean == pytest.approx(-0.4303, abs=1e-4)
    assert random_effects(y, v, "EE").q == pytest.approx(152.2330, abs=1e-4)
    assert random_effects(y, v, "DL").mean == pytest.approx(-0.7141, abs=1e-4)
    fit = random_effects(y, v)
    assert (fit.tau2, fit.mean) == pytest.approx((0.3132, -0.7145), abs=1e-4)
    assert (100 * fit.i2, fit.h2) == pytest.approx((92.22, 12.86), abs=0.01)
    assert 100 * fit.i2_q == pytest.approx(92.12, abs=0.01)
    # rma(yi, vi, test="knha")
    assert (fit.variance**0.5, fit.low, fit.high) == pytest.approx((0.1808, -1.1084, -0.3206), abs=1e-4)
    p = random_effects_table(y[None], v[None]).p[0]
    assert (fit.mean / fit.variance**0.5, p) == pytest.approx((-3.9522, 0.0019), abs=1e-4)


def test_the_verifiers_own_reml_equals_metafor() -> None:
    y, v = (list(map(float, values)) for values in bcg())
    tau2 = plain.reml(y, v)
    assert tau2 == pytest.approx(0.3132, abs=1e-4)
    weight = [1 / (item + tau2) for item in v]
    assert sum(w * e for w, e in zip(weight, y, strict=True)) / sum(weight) == pytest.approx(
        -0.7145, abs=1e-4
    )


SAME = ("mean", "variance", "tau2", "i2", "h2", "q", "low", "high", "prediction_low", "prediction_high")


def made(rows: int, sites: int, seed: int, missing: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    v = rng.uniform(0.003, 0.4, (rows, sites))
    spread = rng.choice([0.0, 0.1, 1.5], (rows, 1))
    y = rng.normal(0.3, 1, (rows, 1)) + spread * rng.standard_normal((rows, sites))
    y += np.sqrt(v) * rng.standard_normal((rows, sites))
    y[rng.random((rows, sites)) < missing] = np.nan
    return y, v


def equal_to_plain(y: np.ndarray, v: np.ndarray, found: FitTable, row: int, near: float) -> None:
    """One row against the verifier's numbers from the sites that are known."""
    known = ~np.isnan(y[row])
    alone = plain.fit_of(y[row][known].tolist(), v[row][known].tolist())
    for name in (*SAME, "centre", "spread", "p"):
        assert getattr(found, name)[row] == pytest.approx(alone[name], rel=near, abs=near), name


@pytest.mark.parametrize(("sites", "missing"), [(3, 0.0), (5, 0.3), (8, 0.0), (30, 0.5)])
def test_every_row_is_what_the_verifier_finds_alone(sites: int, missing: float) -> None:
    y, v = made(300, sites, seed=sites, missing=missing)
    found = random_effects_table(y, v)
    assert (found.sites == (~np.isnan(y)).sum(axis=1)).all()
    for row in np.flatnonzero(found.sites >= 3):
        equal_to_plain(y, v, found, row, 1e-7)
    few = found.sites < 3
    assert np.isnan(found.mean[few]).all() and np.isnan(found.p[few]).all()


def test_rows_that_scoring_alone_does_not_end() -> None:
    """Wide spreads of variances make Fisher scoring creep: the bracket is halved instead."""
    rng = np.random.default_rng(5)
    v = 10 ** rng.uniform(-6, 0, (500, 6))
    y = rng.standard_normal((500, 6)) * 0.2
    found = random_effects_table(y, v)
    expected = [plain.reml(y[row].tolist(), v[row].tolist()) for row in range(len(y))]
    assert found.tau2 == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_numbers_that_only_a_hostile_site_sends_stop_nobody() -> None:
    rng = np.random.default_rng(1)
    y = rng.choice([-9.2, 0.0, 1.0, 9.2], size=(500, 4))
    v = rng.choice([1e-12, 1e-8, 1e-3, 1.0], size=(500, 4))
    found = random_effects_table(y, v)
    for row in range(len(y)):
        assert all(math.isfinite(getattr(found, name)[row]) for name in SAME)
        equal_to_plain(y, v, found, row, 1e-6)


def test_one_row_is_the_table_s() -> None:
    y, v = made(20, 6, seed=9)
    for method in ("REML", "DL", "EE"):
        found = random_effects_table(y, v, method)
        for row in range(len(y)):
            alone = random_effects(y[row], v[row], method)
            for item in fields(Fit):
                expected = getattr(found, item.name)[row]
                assert getattr(alone, item.name) == pytest.approx(expected, rel=1e-9), item.name


def test_same_effect_everywhere_has_no_spread() -> None:
    fit = random_effects(np.full(3, 1.4), np.full(3, 0.1))
    assert fit.mean == pytest.approx(1.4) and fit.tau2 == 0 and fit.i2 == 0
    assert fit.prediction_low < fit.low < 1.4 < fit.high < fit.prediction_high


def test_sites_that_differ_have_spread() -> None:
    fit = random_effects(np.array([0.2, 1.1, 2.9]), np.full(3, 0.02))
    assert fit.tau2 > 0.5 and fit.i2 > 0.9 and fit.h2 > 10


def test_numbers_that_are_no_effects_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        random_effects(np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="method"):
        random_effects(np.zeros(3), np.ones(3), "ML")


def test_t_quantiles() -> None:
    for df in (1, 2, 3, 4, 5, 7, 12, 29, 126):
        assert plain.t_quantile(df) == pytest.approx(float(student.ppf(0.975, df)), abs=1e-9)


def test_reml_is_where_the_restricted_likelihood_is_largest() -> None:
    y, v = bcg()

    def likelihood(tau2: float) -> float:
        w = 1 / (v + tau2)
        mean = w @ y / w.sum()
        return -0.5 * (np.log(v + tau2).sum() + math.log(w.sum()) + w @ (y - mean) ** 2)

    best = random_effects(y, v).tau2
    assert likelihood(best) > max(likelihood(best - 0.01), likelihood(best + 0.01))


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
