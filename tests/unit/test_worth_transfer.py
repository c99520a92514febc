"""Leave-one-site-out: the left-out site's labels are never used, and standardisation does what it says."""

from __future__ import annotations

import numpy as np
import pytest

from cytosae_core.concepts.probe import balanced_accuracy
from cytosae_core.errors import DataError
from cytosae_core.worth.comparison import Arm, Judge, Truth, Variant, selected_row, shuffled, variant_row
from cytosae_core.worth.intervals import UnitBootstrap
from cytosae_core.worth.pooling import Pools, SiteTable
from cytosae_core.worth.ridge import STRENGTHS, Scaler, balancing_weights, fit_path
from cytosae_core.worth.transfer import FORMS, leave_one_site_out, prepare

CLASSES = 3


def site(seed: int, *, shift: float = 0.0, noise: float = 1.0, images: int = 90) -> SiteTable:
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % CLASSES
    features = rng.normal(scale=noise, size=(images, 8)) + shift * np.sin(np.arange(8) + seed)
    features[:, :CLASSES] += 2.5 * np.eye(CLASSES)[labels]
    return SiteTable(features.astype(np.float32), labels, np.arange(images) // 2)


def sites(shift: float = 0.0) -> dict[str, SiteTable]:
    return {name: site(seed, shift=shift) for seed, name in enumerate("abc")}


def accuracy(tables: dict[str, SiteTable], form: str) -> float:
    found = leave_one_site_out(tables, form, CLASSES)
    return float(np.mean([(found[n].predicted == t.labels).mean() for n, t in tables.items()]))


def test_ridge_solves_the_weighted_normal_equations() -> None:
    for width in (5, 60):  # fewer and more features than images
        rng = np.random.default_rng(width)
        x, labels = rng.normal(size=(40, width)), np.arange(40) % CLASSES
        weights = balancing_weights(labels, np.arange(40) % 2)
        path, new = fit_path(x, labels, CLASSES, weights), rng.normal(size=(7, width))
        targets = np.where(labels[:, None] == np.arange(CLASSES), 1.0, -1.0)
        centre, offset = weights @ x, weights @ targets
        for index in (0, 6, 12):
            left = (x - centre).T * weights @ (x - centre) + STRENGTHS[index] * np.eye(width)
            solved = np.linalg.solve(left, (x - centre).T * weights @ (targets - offset))
            assert np.allclose(path.scores(new)[index], (new - centre) @ solved + offset, atol=1e-8)


def test_weights_give_every_site_and_class_the_same_total() -> None:
    labels, group = np.array([0, 0, 0, 1, 0, 1, 1]), np.array([0, 0, 0, 0, 1, 1, 1])
    weights = balancing_weights(labels, group)
    for g in (0, 1):
        for c in (0, 1):
            assert weights[(labels == c) & (group == g)].sum() == pytest.approx(0.25)


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_the_left_out_site_are_never_used(form: str) -> None:
    tables = sites()
    changed = dict(
        tables, c=SiteTable(tables["c"].features, np.roll(tables["c"].labels, 1), tables["c"].units)
    )
    before, after = (leave_one_site_out(t, form, CLASSES, only="c")["c"] for t in (tables, changed))
    assert np.array_equal(before.predicted, after.predicted)
    assert (before.strength, before.inner) == (after.strength, after.inner)


def test_standardising_removes_a_site_shift_that_breaks_the_plain_form() -> None:
    assert accuracy(sites(), "plain") > 0.85
    shifted = sites(shift=8.0)
    assert accuracy(shifted, "plain") < 0.6
    assert min(accuracy(shifted, form) for form in ("standardised", "inductive")) > 0.85


def test_inductive_moments_come_from_the_other_half() -> None:
    table = site(5)
    (rows, scaled), (others, _) = prepare(table, "inductive").halves
    assert not set(table.units[rows]) & set(table.units[others])
    assert len(rows) + len(others) == len(table.labels)
    values = table.features.astype(np.float64)
    assert np.allclose(scaled, Scaler.fit(values[others]).apply(values[rows]))


def test_flat_features_become_zero() -> None:
    x = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [100.0, 1.0]])
    scaled = Scaler.fit(x).apply(x)
    assert (scaled[:, 1] == 0).all() and scaled[:, 0].std() == pytest.approx(1)


def test_bootstrap_counts_units_like_the_house_metric_and_covers_it() -> None:
    rng = np.random.default_rng(3)
    labels, units = rng.integers(3, size=200), rng.integers(20, size=200)
    predicted = np.where(rng.random(200) < 0.7, labels, rng.integers(3, size=200))
    value, draws = UnitBootstrap(labels, units).balanced(predicted == labels)
    assert value == pytest.approx(balanced_accuracy(predicted, labels, units))
    narrow = UnitBootstrap(labels, np.arange(200)).balanced(predicted == labels)[1]
    assert draws.std() > 0 and abs(draws.mean() - value) < 0.02 and 0.02 < narrow.std() < 0.05


def pools(tables: dict[str, SiteTable], keep: int) -> dict[str, Pools]:
    """The first `keep` features; the classes are in the first three."""
    return {n: Pools(t.features[:, -keep:], t.features[:, -keep:]) for n, t in tables.items()}


def test_the_variant_is_selected_by_the_training_sites_and_controls_are_at_chance() -> None:
    tables = sites()
    truth = {n: Truth(t.labels, t.units) for n, t in tables.items()}
    arm = Arm({"blind": [pools(tables, 5)], "seeing": [pools(tables, 8)]}, ("mean",))
    arm.run(truth, CLASSES, lambda: None)
    judge = Judge(truth)
    row, chosen = selected_row(arm, "plain", judge)
    assert {v.source for v in chosen.values()} == {"seeing"}
    blind = variant_row(arm, "plain", Variant("blind", "mean"), judge)
    assert row.mean.low > blind.mean.high
    assert row.minus(blind).low > 0.3
    control = Arm(arm.pools, ("mean",))
    control.run(shuffled(truth), CLASSES, lambda: None)
    assert selected_row(control, "plain", judge)[0].value < 0.5
    assert set(row.to_dict()) == {"mean", "sites", "mean_by_image", "sites_by_image"}


def test_bad_input() -> None:
    tables = sites()
    with pytest.raises(DataError, match="at least 3 sites"):
        leave_one_site_out({n: tables[n] for n in "ab"}, "plain", CLASSES)
    with pytest.raises(DataError, match="form in"):
        leave_one_site_out(tables, "harmonised", CLASSES)
    with pytest.raises(DataError, match="pooling in"):
        Pools(tables["a"].features, tables["a"].features).features("median")
    with pytest.raises(DataError, match="2 classes"):
        fit_path(np.ones((4, 2)), np.zeros(4, int), 2, np.ones(4))
    with pytest.raises(DataError, match="finite"):
        fit_path(np.full((4, 2), np.nan), np.arange(4) % 2, 2, np.ones(4))
    one = SiteTable(tables["a"].features, tables["a"].labels, np.zeros(90, int))
    with pytest.raises(DataError, match="at least 2 units"):
        prepare(one, "inductive")
