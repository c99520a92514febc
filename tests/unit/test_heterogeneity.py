"""What explains the spread between sites."""

from __future__ import annotations

import numpy as np
import pytest

from cytosae_core.report.heterogeneity import disattenuated, explained, psi, spearman_brown
from tests.unit.test_meta import bcg


def test_a_covariate_that_makes_the_spread_explains_it_and_an_unrelated_one_little() -> None:
    rng = np.random.default_rng(0)
    sites, rows = 12, 60
    covariate, other = rng.standard_normal(sites), rng.standard_normal(sites)
    v = np.full((rows, sites), 0.01)
    y = 0.5 * covariate + 0.1 * rng.standard_normal((rows, sites))
    assert np.nanmedian(explained(y, v, covariate)) > 0.95
    assert np.nanmedian(explained(y, v, other)) < 0.4


def test_metafor_s_bcg_example() -> None:
    """Absolute latitude explains 75.62 % of the spread of the BCG trials (metafor, rma(yi, vi, mods=~ablat))."""
    latitude = np.array([44, 55, 42, 52, 13, 44, 19, 13, 27, 42, 18, 33, 33], float)
    y, v = bcg()
    assert 100 * explained(y[None], v[None], latitude)[0] == pytest.approx(75.62, abs=0.01)


def test_nothing_to_explain_or_too_few_sites_is_no_number() -> None:
    v = np.full((1, 5), 0.1)
    covariate = np.arange(5.0)
    assert np.isnan(explained(np.full((1, 5), 0.3), v, covariate)[0])
    assert np.isnan(explained(np.random.default_rng(0).normal(0, 3, (1, 5)), v, np.ones(5))[0])
    few = np.array([[1.0, -2.0, 3.0, np.nan, np.nan]])
    assert np.isnan(explained(few, v, covariate)[0])


def test_agreement_without_noise() -> None:
    rng = np.random.default_rng(1)
    truth = rng.standard_normal(20_000)
    a, b = (truth + rng.standard_normal(20_000) for _ in range(2))
    assert disattenuated(float(np.corrcoef(a, b)[0, 1]), 0.5, 0.5) == pytest.approx(1.0, abs=0.03)
    assert disattenuated(0.3, 0.0, 0.5) is None
    assert spearman_brown(0.5) == pytest.approx(2 / 3)


def test_psi_is_nothing_for_equal_distributions_and_grows() -> None:
    p = np.array([0.1, 0.2, 0.3, 0.4])
    assert psi(p, p) == 0
    assert psi(p, p[::-1]) > 0.25
    by_hand = (0.6 - 0.4) * np.log(0.6 / 0.4) + (0.4 - 0.6) * np.log(0.4 / 0.6)
    assert psi(np.array([0.6, 0.4]), np.array([0.4, 0.6])) == pytest.approx(by_hand)
    assert psi(np.array([0.5, 0.5]), np.array([1.0, 0.0])) < np.inf
