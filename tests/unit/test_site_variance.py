"""The shortcut check from sums: an artefact of sites is seen, a concept that is alike everywhere is not."""

from __future__ import annotations

import numpy as np
import pytest

from cytosae_core.report.site_variance import Shares, SiteVariance

SITES, CLASSES, UNITS = 8, 2, 60


def shares(values: np.ndarray) -> Shares:
    """Of scores [sites, classes, units, n]."""
    found = SiteVariance()
    for site in values:
        found.add(site.mean(axis=1), site[:, : UNITS // 2].mean(axis=1), site.var(axis=1))
    return found.shares()


def test_two_groups_of_sites_that_auroc_75_tells_apart_have_the_share_of_the_module_s_text() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((SITES, CLASSES, UNITS, 400))
    values[::2] += 0.954
    share, _, null = shares(values)
    # 8 sites instead of many: the covariance divides by sites - 1, so B is 8 / 7 of the text's
    assert share.mean() == pytest.approx(0.2275 * 8 / 7 / (1 + 0.2275 * 8 / 7), abs=0.01)
    assert null.mean() < 0.02


def test_a_concept_that_is_alike_everywhere_has_nearly_nothing_between_sites() -> None:
    share, high, null = shares(np.random.default_rng(1).standard_normal((SITES, CLASSES, UNITS, 400)))
    assert share.mean() < 0.01 and null.mean() < 0.01 and np.quantile(share, 0.95) < 0.03
    assert (high >= share).all() and high.mean() < 0.05


@pytest.mark.parametrize("sites", [5, 8, 20])
def test_the_upper_limit_is_above_the_true_share_about_four_times_of_five(sites: int) -> None:
    """A site's level is drawn from a normal distribution whose variance is .1 of that within: the share is .0909."""
    rng = np.random.default_rng(7)
    values = rng.standard_normal((sites, 1, UNITS, 4000)) + rng.normal(0, 0.1**0.5, (sites, 1, 1, 4000))
    assert 0.77 < (shares(values).high > 0.0909).mean() < 0.84


def test_a_site_s_own_half_does_not_count() -> None:
    """A shift in one half only is noise of that half, not of the site."""
    values = np.random.default_rng(2).standard_normal((SITES, CLASSES, UNITS, 200))
    values[:, :, : UNITS // 2] += np.random.default_rng(3).standard_normal((SITES, 1, 1, 200))
    share = shares(values).share
    both = np.random.default_rng(2).standard_normal((SITES, CLASSES, UNITS, 200))
    both += np.random.default_rng(3).standard_normal((SITES, 1, 1, 200))
    assert share.mean() < 0.12 < 0.4 < shares(both).share.mean()


def test_unknown_sites_and_classes_do_not_count_and_two_sites_are_too_few() -> None:
    values = np.random.default_rng(4).standard_normal((SITES, CLASSES, UNITS, 5))
    known = shares(values)[0]
    values = np.concatenate([values, np.full_like(values[:1], np.nan)])
    assert np.allclose(shares(values)[0], known)
    values[2:, 0] = np.nan  # class 0 is left with 2 sites
    assert np.isfinite(shares(values)[0]).all()
    values[2:] = np.nan
    assert np.isnan(shares(values)[0]).all()


def test_a_concept_that_never_fires_is_no_shortcut() -> None:
    for part in shares(np.zeros((SITES, CLASSES, UNITS, 3))):
        assert (part == 0).all()


def test_no_site_gives_nothing() -> None:
    assert [len(part) for part in SiteVariance().shares()] == [0, 0, 0]


def test_a_class_that_three_scattered_sites_have_has_a_null_too() -> None:
    values = np.random.default_rng(5).standard_normal((5, 1, UNITS, 6))
    values[[1, 3]] = np.nan
    found = shares(values)
    assert all(np.isfinite(part).all() for part in found)
    assert np.allclose(shares(values[[0, 2, 4]]), found)
