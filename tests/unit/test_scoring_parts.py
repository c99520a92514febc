"""Bootstrap, calibration, ablation, shortcut and recurrence on made-up data where the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytosae_core.concepts.ablation import ablation, class_backing
from cytosae_core.concepts.bootstrap import balanced_draws, least_error, standard_error
from cytosae_core.concepts.calibration import binary_calibration, calibration, class_logits, ece, logistic
from cytosae_core.concepts.probe import AppliedProbe, Probe, apply_probe, balanced_accuracy
from cytosae_core.concepts.recurrence import LocalTraining, largest_cosine, recurrence
from cytosae_core.concepts.shortcut import concept_site, concept_site_null
from cytosae_core.concepts.tables import Labelled, nothing_dominates
from cytosae_core.config import CALIBRATION
from cytosae_core.worth.intervals import UnitBootstrap


def probe_of(means: np.ndarray, variance: np.ndarray | None = None) -> Probe:
    return Probe(means.astype(np.float64), np.ones(means.shape[1]) if variance is None else variance)


# The probe's evidence


def test_evidence_is_half_the_squared_distance_up_to_what_classes_share() -> None:
    rng = np.random.default_rng(0)
    mean, variance = rng.standard_normal((3, 7)), rng.uniform(0.5, 2, 7)
    features = rng.standard_normal((5, 7)).astype(np.float32)
    distance = ((features[:, None] - mean) ** 2 / variance).sum(axis=2)
    scores = Probe(mean, variance).scores(features)
    assert np.allclose(scores - scores[:, :1], -(distance - distance[:, :1]) / 2, atol=1e-6)
    assert (Probe(mean, variance).predict(features) == distance.argmin(axis=1)).all()


def test_a_class_that_one_side_lacks_is_not_tested() -> None:
    probe = probe_of(np.array([[0.0, 0.0], [4.0, 0.0], [np.nan, np.nan]]))
    features = np.array([[0, 0], [4, 0], [4, 0], [9, 9]], np.float32)
    found = apply_probe(probe, features, np.array([0, 1, 2, -1]))
    assert found is not None
    assert found.chosen.tolist() == [True, True, False, False]
    assert np.isneginf(found.scores[:, 2]).all() and np.isfinite(found.scores[:, :2]).all()
    assert apply_probe(probe, features, np.array([0, 0, 2, 2])) is None


# Bootstrap over units


def test_bootstrap_error_of_independent_units_is_the_textbook_one() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 200)
    right = rng.random(400) < np.where(labels == 0, 0.8, 0.6)
    draws = balanced_draws([(right, labels)], np.arange(400), draws=4000, seed=0)
    shares = [right[labels == index].mean() for index in (0, 1)]
    theory = np.sqrt(sum(share * (1 - share) / 200 for share in shares)) / 2
    assert standard_error(draws)[0] == pytest.approx(theory, rel=0.06)
    assert draws.mean() == pytest.approx(np.mean(shares), abs=0.003)


def test_bootstrap_error_grows_when_images_of_a_unit_are_alike() -> None:
    rng = np.random.default_rng(2)
    by_unit = np.repeat(rng.random(60) < 0.7, 5)  # a unit's five images are all right or all wrong
    labels = np.repeat(np.arange(60) % 2, 5)
    alike = balanced_draws([(by_unit, labels)], np.repeat(np.arange(60), 5), draws=1000, seed=0)
    as_if = balanced_draws([(by_unit, labels)], np.arange(300), draws=1000, seed=0)
    ratio = float(standard_error(alike)[0] / standard_error(as_if)[0])
    assert ratio == pytest.approx(np.sqrt(5), rel=0.15)  # the design effect of 5 equal images


def test_bootstrap_agrees_with_the_one_of_worth_and_does_not_care_about_order() -> None:
    rng = np.random.default_rng(3)
    units, labels = rng.integers(0, 25, 120), rng.integers(0, 3, 120)
    right = rng.random(120) < 0.6
    ours = balanced_draws([(right, labels)], units, draws=300, seed=7)[:, 0]
    value, theirs = UnitBootstrap(labels, units, draws=300, seed=7).balanced(right)
    assert np.allclose(ours, theirs)
    assert value == pytest.approx(balanced_accuracy(np.where(right, labels, -1), labels, units))
    order = rng.permutation(120)
    assert np.allclose(
        ours, balanced_draws([(right[order], labels[order])], units[order], draws=300, seed=7)[:, 0]
    )


def test_columns_of_the_bootstrap_are_paired_and_images_without_a_class_do_not_count() -> None:
    rng = np.random.default_rng(4)
    units, labels = np.repeat(np.arange(40), 3), np.tile([0, 1, -1], 40)
    right = rng.random(120) < 0.6
    nonsense = np.where(labels == -1, ~right, right)
    draws = balanced_draws([(right, labels), (nonsense, labels)], units, draws=200, seed=0)
    assert (draws[:, 0] == draws[:, 1]).all()
    assert standard_error(draws)[0] > 0 and standard_error(draws[:, :1] - draws[:, 1:])[0] == 0


def test_a_perfect_accuracy_has_the_error_of_half_a_wrong_unit() -> None:
    labels, units = np.repeat([0, 1, -1], 40), np.arange(120) // 2
    p = 0.5 / 21
    assert least_error(labels, units) == pytest.approx(np.sqrt(2 * p * (1 - p) / 20) / 2)
    assert least_error(labels, np.arange(120)) < least_error(labels, units)
    assert np.isnan(least_error(np.full(5, -1), np.arange(5)))
    perfect = balanced_draws([(np.ones(120), labels)], units, draws=100, seed=0)
    assert standard_error(perfect)[0] == 0  # what would be told without


def test_an_error_needs_two_draws() -> None:
    assert np.isnan(standard_error(np.array([[0.5]]))[0])
    assert np.isnan(standard_error(np.full((10, 1), np.nan))[0])


# Calibration

SLOPE, SLOPE_SE, CITL, OBSERVED, EXPECTED, BRIER, ECE = range(len(CALIBRATION))


def events(logit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(rng.random(len(logit)) < 1 / (1 + np.exp(-logit)))


def test_true_probabilities_have_slope_one_and_expect_what_is_observed() -> None:
    rng = np.random.default_rng(5)
    logit = rng.normal(-0.5, 1.5, 20_000)
    found = binary_calibration(logit, events(logit, rng), np.arange(20_000))
    p = 1 / (1 + np.exp(-logit))
    assert found[SLOPE] == pytest.approx(1, abs=4 * found[SLOPE_SE]) and found[SLOPE_SE] < 0.03
    assert found[CITL] == pytest.approx(0, abs=0.07)
    assert found[OBSERVED] == pytest.approx(found[EXPECTED], abs=0.01)
    assert found[BRIER] == pytest.approx((p * (1 - p)).mean(), abs=0.005)
    assert found[ECE] < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_overconfident_and_shifted_probabilities_are_named_by_slope_and_citl(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 1, 20_000)
    happened = events(logit, rng)
    certain = binary_calibration(4 * logit, happened, np.arange(20_000))
    assert certain[SLOPE] == pytest.approx(0.25, abs=0.02) and certain[ECE] > 0.15
    shifted = binary_calibration(logit - 1, happened, np.arange(20_000))
    assert shifted[SLOPE] == pytest.approx(1, abs=0.08) and shifted[CITL] == pytest.approx(1, abs=0.06)
    assert shifted[OBSERVED] > shifted[EXPECTED] + 0.1


def test_the_slopes_error_is_what_repetition_shows_also_for_clusters() -> None:
    slopes, errors, naive = [], [], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        units = np.repeat(np.arange(60), 4)
        logit = np.repeat(rng.normal(0, 1.5, 60), 4)  # the same cell four times: 60 answers, not 240
        happened = np.repeat(events(logit[::4], rng), 4)
        found = binary_calibration(logit, happened, units)
        slopes.append(found[SLOPE])
        errors.append(found[SLOPE_SE])
        naive.append(binary_calibration(logit, happened, np.arange(240))[SLOPE_SE])
    assert np.median(errors) == pytest.approx(np.std(slopes), rel=0.25)
    assert np.median(naive) < 0.6 * np.median(errors)


def test_every_unit_weighs_the_same_in_calibration() -> None:
    rng = np.random.default_rng(8)
    logit = rng.normal(0, 1, 400)
    happened, units = events(logit, rng), np.arange(400)
    copies = np.where(units < 50, 6, 1)  # 50 units sent six copies of their image
    one = binary_calibration(logit, happened, units)
    many = binary_calibration(*(np.repeat(part, copies) for part in (logit, happened, units)))
    assert np.allclose(one[[SLOPE, SLOPE_SE, CITL, OBSERVED, EXPECTED, BRIER]], many[:6], rtol=1e-6)


def test_a_perfect_separation_has_no_slope_but_keeps_the_rest() -> None:
    logit = np.concatenate([np.linspace(-3, -1, 40), np.linspace(1, 3, 40)])
    found = binary_calibration(logit, logit > 0, np.arange(80))
    assert np.isnan(found[[SLOPE, SLOPE_SE]]).all()
    assert np.isfinite(found[[CITL, OBSERVED, EXPECTED, BRIER, ECE]]).all()


def test_logits_of_thousands_are_clipped() -> None:
    rng = np.random.default_rng(9)
    logit = rng.normal(0, 2000, 500)
    happened = rng.random(500) < np.where(logit > 0, 0.9, 0.1)
    found = binary_calibration(logit, happened, np.arange(500))
    assert np.isfinite(found).all() and 0 < found[SLOPE] < 0.3
    assert found[BRIER] == pytest.approx(0.1, abs=0.04)


def test_ece_needs_eleven_units_in_each_bin() -> None:
    rng = np.random.default_rng(10)
    logit = rng.normal(0, 1, 55)
    p = 1 / (1 + np.exp(-logit))
    happened = events(logit, rng).astype(float)
    assert np.isfinite(ece(logit, p, happened, np.arange(55)))
    assert np.isnan(ece(logit[:54], p[:54], happened[:54], np.arange(54)))
    assert np.isnan(ece(logit, p, happened, np.arange(55) // 2))  # as many images, half the units


def test_ece_of_bins_by_hand() -> None:
    logit = np.repeat([-2.0, -1.0, 0.0, 1.0, 2.0], 20)
    happened = np.tile([1.0, 0.0], 50)
    stated = np.repeat([0.1, 0.3, 0.5, 0.7, 0.9], 20)
    assert ece(logit, stated, happened, np.arange(100)) == pytest.approx((0.4 + 0.2 + 0 + 0.2 + 0.4) / 5)


def test_classes_of_a_gaussian_world_are_calibrated_and_few_units_are_counted() -> None:
    """Where the probe's model is true (independent features, equal classes), its probabilities are."""
    rng = np.random.default_rng(11)
    mean = rng.normal(0, 0.5, (3, 6))
    labels = np.arange(9000) % 3
    features = (mean[labels] + rng.standard_normal((9000, 6))).astype(np.float32)
    found = apply_probe(probe_of(mean), features, labels)
    assert found is not None
    values, behind = calibration(class_logits(found.scores), labels, np.arange(9000))
    assert values.shape == (3, len(CALIBRATION)) and behind.tolist() == [3000, 3000, 3000]
    assert np.allclose(values[:, SLOPE], 1, atol=0.12) and np.abs(values[:, CITL]).max() < 0.12
    doubled = apply_probe(probe_of(np.repeat(mean, 2, axis=1)), np.repeat(features, 2, axis=1), labels)
    assert doubled is not None  # every feature twice: the same evidence counted twice
    again, _ = calibration(class_logits(doubled.scores), labels, np.arange(9000))
    # Not exactly half: the rest is two classes, whose evidence adds up before its logarithm.
    assert np.allclose(again[:, SLOPE], values[:, SLOPE] / 2, rtol=0.05)


def test_a_class_that_is_not_there_has_no_calibration() -> None:
    logits = class_logits(np.array([[0.0, 1.0, -np.inf]] * 40))
    values, behind = calibration(logits, np.arange(40) % 2, np.arange(40) // 4)
    assert np.isnan(values[2]).all() and behind.tolist() == [10, 10, 0]
    only, none = calibration(logits, np.zeros(40, int), np.arange(40))
    assert np.isnan(only).all() and not none.any()


def test_logistic_matches_a_known_solution() -> None:
    """Two groups: the slope is the log odds ratio, its error sqrt of the sum of 1 / counts."""
    group = np.repeat([0.0, 1.0], 100)
    happened = np.concatenate([np.repeat([1.0, 0.0], [20, 80]), np.repeat([1.0, 0.0], [60, 40])])
    beta, error = logistic(np.stack([np.ones(200), group], axis=1), happened, np.arange(200))
    assert beta[1] == pytest.approx(np.log((60 / 40) / (20 / 80)), abs=1e-6)
    assert error[1] == pytest.approx(np.sqrt(1 / 20 + 1 / 80 + 1 / 60 + 1 / 40), rel=0.01)


# Ablation


def world(seed: int = 0, width: int = 6) -> tuple[AppliedProbe, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mean = rng.normal(0, 1, (3, width))
    labels = np.arange(90) % 3
    features = (mean[labels] + rng.standard_normal((90, width))).astype(np.float32)
    found = apply_probe(probe_of(mean, rng.uniform(0.5, 2, width)), features, labels)
    assert found is not None
    return found, features, labels, np.arange(90) // 2


def test_the_only_informative_concept_takes_the_whole_margin() -> None:
    rng = np.random.default_rng(0)
    mean = np.zeros((2, 5))
    mean[:, 3] = (-1, 1)
    labels = np.arange(60) % 2
    features = (2 * mean[labels] + 0.1 * rng.standard_normal((60, 5))).astype(np.float32)
    found = apply_probe(probe_of(mean), features, labels)
    assert found is not None
    falls = ablation(found, features, labels, np.arange(60))
    assert np.allclose(falls[3], 1) and np.allclose(np.delete(falls, 3, axis=0), 0)


def test_ablation_is_what_setting_the_code_to_zero_does() -> None:
    found, features, labels, units = world()
    falls = ablation(found, features, labels, units)
    for concept in range(features.shape[1]):
        without = features.copy()
        without[:, concept] = 0
        after = found.probe.scores(without)
        for own in range(3):
            mine = labels == own
            weight = 1 / np.array([np.sum(units[mine] == unit) for unit in units[mine]])
            weight /= weight.sum()
            margins = [
                weight @ (scores[mine, own] - np.delete(scores[mine], own, axis=1).max(axis=1))
                for scores in (found.scores, after)
            ]
            size = weight @ np.abs(
                found.scores[mine, own] - np.delete(found.scores[mine], own, axis=1).max(axis=1)
            )
            assert falls[concept, own] == pytest.approx((margins[0] - margins[1]) / size, abs=1e-6)


def test_ablation_follows_the_order_of_concepts_not_of_images() -> None:
    found, features, labels, units = world(1)
    falls = ablation(found, features, labels, units)
    concepts, images = np.random.default_rng(0).permutation(6), np.random.default_rng(1).permutation(90)
    turned = Probe(found.probe.mean[:, concepts], found.probe.variance[concepts])
    again = AppliedProbe(turned, found.chosen[images], found.scores[images])
    other = ablation(again, features[images][:, concepts], labels[images], units[images])
    assert np.allclose(other, falls[concepts], atol=1e-6)


def test_blocks_of_concepts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, features, labels, units = world(2, width=50)
    whole = ablation(found, features, labels, units)
    monkeypatch.setattr("cytosae_core.concepts.ablation.CHUNK_BYTES", 8 * 30 * 7)
    assert np.allclose(ablation(found, features, labels, units), whole)


def test_a_concept_that_the_probe_does_not_use_has_no_ablation() -> None:
    found, features, labels, units = world(3)
    found.probe.variance[2] = 1e30
    assert np.isnan(ablation(found, features, labels, units)[2]).all()


def test_units_behind_an_ablation() -> None:
    codes = np.ones((40, 3), np.float32)
    codes[:, 1] = 0
    labels, units = np.repeat([0, 1], 20), np.arange(40) // 2
    behind = class_backing(codes, labels, units, np.array([20, 0, 6]), 3, nothing_dominates)
    assert behind.tolist() == [[10, 10, 0], [0, 0, 0], [6, 6, 0]]

    def first_is_dominated(means: np.ndarray) -> np.ndarray:
        assert means.shape == (10, 3)
        return np.array([True, True, False])

    hidden = class_backing(codes, labels, units, np.array([20, 20, 6]), 3, first_is_dominated)
    assert hidden.tolist() == [[0, 0, 0], [10, 10, 0], [6, 6, 0]]  # nobody makes up a silent concept


# One concept and the site


def site_values(shift: np.ndarray, seed: int, patients: int = 100) -> tuple[np.ndarray, Labelled]:
    rng = np.random.default_rng(seed)
    units = np.repeat(np.arange(patients), 2)
    labels = np.arange(2 * patients) % 2
    values = rng.standard_normal((2 * patients, len(shift))) + labels[:, None] + shift
    known = Labelled(labels, units, np.zeros((2 * patients, 0), np.int64), units // 2 % 2, 2)
    return values.astype(np.float32), known


def first_half_means(values: np.ndarray, known: Labelled) -> np.ndarray:
    return np.stack([values[(known.labels == k) & (known.halves == 0)].mean(axis=0) for k in (0, 1)])


def test_a_concept_that_is_the_site_is_found_and_an_honest_one_is_not() -> None:
    shift = np.concatenate([np.full(50, 4.0), np.zeros(50)])
    here, known = site_values(shift, 1)
    there, other = site_values(np.zeros(100), 2)
    test = known.halves == 1
    share, behind = concept_site(
        here[test], known.labels[test], known.units[test],
        first_half_means(here, known), [first_half_means(there, other)],
    )  # fmt: skip
    assert share[:50].min() > 0.9 and abs(share[50:].mean() - 0.5) < 0.03 and share[50:].max() < 0.75
    assert (behind == 50).all()
    null = concept_site_null(here, known, seed=0)
    assert abs(null.mean() - 0.5) < 0.01 and np.abs(null - 0.5).max() < 0.1


def test_both_sides_of_a_rare_concept_average_to_chance() -> None:
    """Where most images lack the concept they all fall to one side: one site alone says nothing, both do."""
    rng = np.random.default_rng(3)
    shares = []
    worlds = [site_values(np.zeros(200), seed) for seed in (5, 6)]
    rare = [
        (np.where(rng.random(values.shape) < 0.1, np.abs(values), 0).astype(np.float32), known)
        for values, known in worlds
    ]
    means = [first_half_means(*part) for part in rare]
    for index, (values, known) in enumerate(rare):
        test = known.halves == 1
        shares.append(
            concept_site(
                values[test],
                known.labels[test],
                known.units[test],
                means[index],
                [means[1 - index]],
            )[0]
        )
    assert np.abs(np.array(shares) - 0.5).mean() > 0.2
    assert abs(np.mean(shares) - 0.5) < 0.03
    assert np.abs(np.mean(shares, axis=0) - 0.5).mean() < 0.1


def test_unknown_means_and_ties() -> None:
    values = np.array([[0.0, 5.0, 1.0], [0.0, 5.0, 1.0]], np.float32)
    own = np.array([[1.0, 5.0, np.nan], [1.0, 5.0, 1.0]])
    peers = [np.array([[1.0, 0.0, 0.0], [1.0, np.nan, np.nan]]), np.full((2, 3), np.nan)]
    share, behind = concept_site(values, np.array([0, 1]), np.array([3, 9]), own, peers)
    assert share[0] == 0.5 and share[1] == 1.0 and np.isnan(share[2])
    assert behind.tolist() == [2, 1, 0]


def test_peers_and_classes_weigh_the_same_and_order_does_not_matter() -> None:
    here, known = site_values(np.full(8, 1.0), 1)
    peers = [first_half_means(*site_values(np.zeros(8), seed)) for seed in (2, 3, 4)]
    test = known.halves == 1
    parts = here[test], known.labels[test], known.units[test]
    own = first_half_means(here, known)
    alone = [concept_site(*parts, own, [peer])[0] for peer in peers]
    together, _ = concept_site(*parts, own, peers)
    assert np.allclose(together, np.mean(alone, axis=0))
    order, turn = np.random.default_rng(0).permutation(len(parts[0])), np.arange(8)[::-1]
    shuffled = concept_site(
        parts[0][order][:, turn],
        parts[1][order],
        parts[2][order],
        own[:, turn],
        [peer[:, turn] for peer in peers[::-1]],
    )[0]
    assert np.allclose(shuffled, together[turn])


def test_a_site_too_small_for_pretended_sites_has_no_null() -> None:
    values, known = site_values(np.zeros(4), 0, patients=4)
    lonely = Labelled(known.labels, known.units * 0, known.attributes, known.halves, 2)
    assert np.isnan(concept_site_null(values, lonely, seed=0)).all()


# Recurrence


def planted_tokens(truth: np.ndarray, seed: int, count: int = 256) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(truth), (count, 2))
    size = rng.gamma(4.0, 1.0, (count, 2, 1))
    tokens = (truth[chosen] * size).sum(axis=1) + 0.05 * rng.standard_normal((count, truth.shape[1]))
    return torch.from_numpy(tokens.astype(np.float32))


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def test_planted_directions_come_back_and_random_ones_do_not() -> None:
    truth = unit_rows(12, 32, 0)
    rows = np.concatenate([truth, unit_rows(36, 32, 1)])

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return planted_tokens(truth, 100 + step), torch.arange(256) % 20

    local = LocalTraining(batch, steps=200, peak=0.02, k=3, n_units=20, seed=5)
    found = recurrence(rows, local)
    assert found.trained[:12].min() > 0.7 and found.trained[:12].min() > found.null
    assert found.start.max() < 0.7 and (found.trained[:12] > found.start[:12] + 0.1).all()
    assert np.median(found.trained[12:]) < found.null + 0.1
    assert recurrence(rows, local).trained.tobytes() == found.trained.tobytes()


def test_cosines_keep_their_sign_and_need_no_unit_length() -> None:
    rows = np.array([[2.0, 0], [-3.0, 0], [0, 0]], np.float32)
    others = np.array([[0.5, 0], [0, 1.0]], np.float32)
    assert largest_cosine(rows, others).tolist() == [1.0, 0.0, 0.0]


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, others = unit_rows(40, 8, 0), unit_rows(30, 8, 1)
    whole = largest_cosine(rows, others)
    monkeypatch.setattr("cytosae_core.concepts.recurrence.CHUNK_BYTES", 4 * 30 * 7)
    assert np.allclose(largest_cosine(rows, others), whole, atol=1e-6)
    assert np.allclose(whole, (rows @ others.T).max(axis=1), atol=1e-6)
