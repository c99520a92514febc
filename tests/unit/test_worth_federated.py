"""The federated fit is the pooled fit, from sums only."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from cytosae_core.errors import DataError, StudyError
from cytosae_core.worth import federated
from cytosae_core.worth.pooling import SiteTable

CLASSES, WIDTH = 3, 5


def table(images: int, seed: int, *, separable: bool = False, first: int = 0) -> SiteTable:
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % CLASSES
    features = rng.normal(size=(images, WIDTH)) * (0.01 if separable else 1.0)
    features[:, :CLASSES] += 4.0 * np.eye(CLASSES)[labels] if separable else 0.7 * np.eye(CLASSES)[labels]
    return SiteTable(features, labels, first + rng.integers(images // 2, size=images))


def pooled(tables: list[SiteTable]) -> SiteTable:
    return SiteTable(
        *(np.concatenate([getattr(t, name) for t in tables]) for name in ("features", "labels", "units"))
    )


def test_sites_together_give_the_pooled_fit() -> None:
    sites = [table(90, 1), table(150, 2, first=1000), table(60, 3, first=2000)]
    together = federated.fit(sites, CLASSES, minimum=3)
    assert np.abs(together - federated.fit([pooled(sites)], CLASSES, minimum=3)).max() < 1e-6
    assert np.abs(together - federated.fit(sites[:2], CLASSES, minimum=3)).max() > 1e-2


def test_the_minimum_is_the_minimum_of_the_stated_loss() -> None:
    """An independent optimiser on the formula of the module's docstring ends at the same weights."""
    data = table(120, 4)
    found = federated.fit([data], CLASSES, penalty=0.05, minimum=3)
    for c in range(CLASSES):
        share = np.zeros(120)
        for label in range(CLASSES):
            rows = data.labels == label
            units = data.units[rows]
            per_unit = np.array([1 / (np.sum(units == u) * len(np.unique(units))) for u in units])
            share[rows] = per_unit * (0.5 if label == c else 0.5 / (CLASSES - 1))
        sign = np.where(data.labels == c, 1.0, -1.0)

        def loss(w: np.ndarray, share: np.ndarray = share, sign: np.ndarray = sign) -> float:
            margin = sign * (data.features @ w[:-1] + w[-1])
            return float(share @ np.logaddexp(0, -margin) + 0.025 * w[:-1] @ w[:-1])

        best = minimize(loss, np.zeros(WIDTH + 1), method="BFGS", options={"gtol": 1e-8})
        assert np.abs(best.x - found[c]).max() < 1e-4


def test_separable_data_converge_and_are_classified() -> None:
    data = table(90, 5, separable=True)
    weights = federated.fit([data], CLASSES, penalty=1e-6, minimum=3)
    assert np.isfinite(weights).all()
    assert (federated.scores(data.features, weights).argmax(axis=1) == data.labels).all()


def test_wild_start_is_damped() -> None:
    """From far away the full Newton step overshoots; halving brings the loss down to the same minimum."""
    data = table(90, 6)
    totals = federated.unit_counts(data.labels, data.units, CLASSES, minimum=3)
    state = federated.start(CLASSES, WIDTH, 1e-3)
    wild = np.full((CLASSES, WIDTH + 1), 30.0)
    state = federated.Newton(
        wild, wild, *(getattr(state, n) for n in ("objective", "direction", "slope", "step")), 1e-3
    )
    halved = False
    for _ in range(200):
        sums = federated.site_sums(data.features, data.labels, data.units, state.trial, totals, minimum=3)
        before = state.objective
        state = federated.newton_step(state, sums)
        assert (state.objective <= before + 1e-12).all()
        halved |= bool((state.step < 1).any())
    assert halved
    assert np.abs(state.accepted - federated.fit([data], CLASSES, penalty=1e-3, minimum=3)).max() < 1e-5


def test_a_class_with_few_units_takes_no_part_at_that_site() -> None:
    big, small = table(150, 7), table(60, 8, first=1000)
    keep = (small.labels != 2) | (np.arange(60) < 6)  # two images of class 2
    few = SiteTable(small.features[keep], small.labels[keep], small.units[keep])
    without = SiteTable(*(getattr(few, n)[few.labels != 2] for n in ("features", "labels", "units")))
    a = federated.fit([big, few], CLASSES, minimum=5)
    assert np.array_equal(a, federated.fit([big, without], CLASSES, minimum=5))
    assert federated.unit_counts(few.labels, few.units, CLASSES, minimum=5)[2] == 0


def test_bad_input() -> None:
    data = table(60, 9)
    with pytest.raises(DataError, match="at least 1000 units"):
        federated.fit([data], CLASSES, minimum=1000)
    with pytest.raises(StudyError, match="penalty > 0"):
        federated.start(CLASSES, WIDTH, 0.0)
    totals = federated.unit_counts(data.labels, data.units, CLASSES, minimum=3)
    with pytest.raises(StudyError, match=r"weights\[3, 6\]"):
        federated.site_sums(data.features, data.labels, data.units, np.zeros((3, 5)), totals)
    with pytest.raises(StudyError, match="finite"):
        federated.site_sums(
            np.full_like(data.features, np.nan), data.labels, data.units, np.zeros((3, 6)), totals
        )
    with pytest.raises(StudyError, match="convergence"):
        federated.fit([data], CLASSES, minimum=3, steps=1)
