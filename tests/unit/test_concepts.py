"""AUROC over units, probes from moments, scores and tables, against plain slow versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytosae_core.concepts.auroc import unit_auroc
from cytosae_core.concepts.probe import (
    Probe,
    ProbeSums,
    apply_probe,
    balanced_accuracy,
    class_moments,
    site_recall,
    unit_weights,
)
from cytosae_core.concepts.scores import ImageScores, quality, score_images
from cytosae_core.concepts.tables import Labelled, concept_tables, own_probe, probe_tables, same_site_null
from cytosae_core.config import VIEWS
from cytosae_core.report.inputs import quality_dict
from cytosae_core.sae.models import PursuitModel
from cytosae_core.sae.pursuit import random_dictionary
from cytosae_core.sae.scale import TokenScale

RNG = np.random.default_rng(7)


def test_auroc_equals_counting_pairs_of_units() -> None:
    scores = RNG.integers(0, 4, size=(40, 3)).astype(np.float32)  # many ties
    units = np.repeat(np.arange(20), 2)
    positive = RNG.random(40) < 0.4
    table = unit_auroc(scores, positive, units)
    for column in range(3):
        high = [scores[positive & (units == u), column].mean() for u in np.unique(units[positive])]
        low = [scores[~positive & (units == u), column].mean() for u in np.unique(units[~positive])]
        pairs = [(h > b) + 0.5 * (h == b) for h in high for b in low]
        assert np.isclose(table.value[column], np.mean(pairs))
    assert table.units == min(len(np.unique(units[positive])), len(np.unique(units[~positive])))


def test_standard_error_agrees_with_a_bootstrap_over_units() -> None:
    units = np.repeat(np.arange(60), 2)
    positive = np.tile([True, False], 60)  # every unit stands on both sides
    effect = RNG.normal(size=60)
    scores = (effect[units] + positive * 0.6 + RNG.normal(0, 0.7, 120)).astype(np.float32)[:, None]
    se = unit_auroc(scores, positive, units).se[0]
    draws = []
    for _ in range(400):
        chosen = RNG.integers(60, size=60)
        rows = np.concatenate([np.flatnonzero(units == u) for u in chosen])
        draws.append(unit_auroc(scores[rows], positive[rows], np.repeat(np.arange(60), 2)).value[0])
    assert abs(se / np.std(draws) - 1) < 0.2


def test_auroc_of_one_sided_labels_is_unknown() -> None:
    table = unit_auroc(np.ones((4, 2), np.float32), np.ones(4, bool), np.arange(4))
    assert np.isnan(table.value).all() and table.units == 0


def test_cells_of_one_patient_count_once() -> None:
    scores = np.array([[0.0], [1.0]] + [[2.0]] * 50, np.float32)
    units = np.array([0, 1] + [2] * 50)
    positive = np.array([False, False] + [True] * 50)
    assert unit_auroc(scores, positive, units).units == 1


def test_unit_weights_are_equal_per_unit() -> None:
    weight, count = unit_weights(np.array([0, 0, 0, 5]))
    assert count == 2 and np.allclose(weight, [1 / 6, 1 / 6, 1 / 6, 1 / 2])


def _two_sites(shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, units = np.tile([0, 1, 2], 40), np.arange(120)
    centres = np.eye(3, 8)[labels] * 2
    return (centres + RNG.normal(0, 0.5, (120, 8)) + shift).astype(np.float32), labels, units


def test_probe_from_moments_classifies_another_site() -> None:
    sums = ProbeSums()
    for _ in range(2):
        sums.add(*class_moments(*_two_sites(), 3)[:2])
    probe = sums.probe()
    features, labels, units = _two_sites()
    assert balanced_accuracy(probe.predict(features), labels, units) > 0.95


def test_probe_ignores_withheld_features_and_unknown_classes() -> None:
    features, labels, units = _two_sites()
    mean, variance, _ = class_moments(features, labels, units, 4)  # class 3 does not exist
    mean[:3, 7] = np.nan
    sums = ProbeSums()
    sums.add(mean, variance)
    probe = sums.probe()
    assert np.isinf(probe.variance[7]) and np.isnan(probe.mean[3]).all()
    assert set(probe.predict(features)) <= {0, 1, 2}


def test_a_site_taken_out_leaves_the_probe_of_the_others() -> None:
    parts = [class_moments(*_two_sites(shift), 3)[:2] for shift in (0.0, 0.3, 2.0)]
    all_sites, two_sites = ProbeSums(), ProbeSums()
    for part in parts:
        all_sites.add(*part)
    for part in parts[:2]:
        two_sites.add(*part)
    left, right = all_sites.without(*parts[2]), two_sites.probe()
    assert np.allclose(left.mean, right.mean) and np.allclose(left.variance, right.variance)


def test_site_recall_is_half_without_and_one_with_a_shift() -> None:
    first, labels, units = _two_sites()
    other = _two_sites()[0]
    moved = _two_sites(shift=3.0)[0]
    own = class_moments(first, labels, units, 3)[:2]
    test = _two_sites()[0]
    assert 0.3 < site_recall(test, labels, units, own, class_moments(other, labels, units, 3)[:2]) < 0.7
    assert site_recall(test, labels, units, own, class_moments(moved, labels, units, 3)[:2]) > 0.99
    nowhere = (np.full((3, 8), np.nan), np.full((3, 8), np.nan))
    assert np.isnan(site_recall(test, labels, units, own, nowhere))


def _scores() -> tuple[ImageScores, np.ndarray, PursuitModel]:
    tokens = RNG.normal(size=(4, 257, 6)).astype(np.float32)
    mask = np.zeros((4, 257), dtype=bool)
    mask[:, 3:40] = True
    model = PursuitModel(random_dictionary(20, 6, 0), 2)
    scale = TokenScale(np.zeros(6, np.float32), 1.0)
    return score_images(lambda a, b: (tokens[a:b], mask[a:b]), 4, model, scale), tokens[:, 3:40], model


def test_scores_pool_cell_tokens_only() -> None:
    scores, cell, model = _scores()
    for image in range(4):
        codes = model.codes(torch.from_numpy(cell[image])).numpy()
        assert np.allclose(scores.largest[image], codes.max(axis=0), atol=1e-6)
        assert np.allclose(scores.mean[image], codes.mean(axis=0), atol=1e-6)
        assert np.allclose(scores.fired[image], (codes > 0).mean(axis=0), atol=1e-6)
        assert np.allclose(scores.embedding[image], cell[image].mean(axis=0), atol=1e-5)


def test_fvu_is_centred_per_dimension() -> None:
    tokens = (RNG.normal(size=(500, 6)) + 5).astype(np.float32)
    model = PursuitModel(random_dictionary(20, 6, 0), 2)
    named = quality_dict(quality(tokens, model))
    codes = model.codes(torch.from_numpy(tokens))
    error = ((tokens - model.reconstruct(codes).numpy()) ** 2).sum()
    assert named["fvu_own_mean"] == pytest.approx(
        error / ((tokens - tokens.mean(axis=0)) ** 2).sum(), rel=1e-4
    )
    assert named["fvu"] == pytest.approx(error / (tokens**2).sum(), rel=1e-4)


def _labelled(units: int = 40) -> tuple[ImageScores, Labelled]:
    labels = np.tile([0, 1], units)
    of_unit = np.repeat(np.arange(units), 2)
    signal = np.zeros((2 * units, 5), np.float32)
    signal[:, 0] = labels + RNG.normal(0, 0.1, 2 * units)
    signal[:, 1:] = np.abs(RNG.normal(size=(2 * units, 4)))
    granules = (RNG.random(2 * units) < 0.5).astype(np.int64)
    signal[:, 1] += 2 * granules + 3 * labels
    scores = ImageScores(signal, signal, (signal > 0).astype(np.float32), signal)
    return scores, Labelled(labels, of_unit, granules[:, None], of_unit % 2, 2)


def test_tables_find_class_and_attribute_and_the_shuffled_control_does_not() -> None:
    scores, known = _labelled()
    table = concept_tables(scores, known, seed=0)
    values, units = table["auroc"]
    assert values.shape == (5, 3) and values[0, 1] > 0.95 and values[0, 0] < 0.05
    assert values[1, 2] > 0.85  # within class, although the class moves this concept more
    assert np.abs(table["auroc_shuffled"][0][0, :2] - 0.5).max() < 0.2
    assert units.max() <= 40 and (table["firing_rate"][1] == 40).all()


def test_a_concept_fired_by_few_units_says_so() -> None:
    scores, known = _labelled()
    scores.fired[:, 3] = 0
    scores.fired[:6, 3] = 1
    table = concept_tables(scores, known, seed=0)
    assert table["firing_rate"][1][3] == 3 and (table["auroc"][1][3] <= 3).all()
    assert (probe_tables(scores, known)["code_class_mean"][1][:, 3] <= 3).all()


def test_a_site_s_own_probe_learns_on_one_half_and_is_asked_on_the_other() -> None:
    rng = np.random.default_rng(3)
    labels, units = np.repeat([0, 1, 2, -1], 40), np.arange(160) // 2
    known = Labelled(labels, units, np.zeros((160, 0), np.int64), units % 2, 3)
    centre = np.eye(3, 6)[labels] * 4 * (labels >= 0)[:, None]
    features = (centre + rng.standard_normal((160, 6))).astype(np.float32)
    others = apply_probe(Probe(np.eye(3, 6) * [[4], [4], [np.nan]], np.ones(6)), features, labels)
    assert others is not None
    own = own_probe(features, known, others)
    assert own is not None
    # The third class is unknown to the other sites, so this site is not asked about it either.
    assert (own.chosen == (np.isin(labels, [0, 1]) & (units % 2 == 1))).all()
    assert np.isnan(own.probe.mean[2]).all()
    right = own.scores.argmax(axis=1) == labels[own.chosen]
    assert right.mean() > 0.9
    # What the tested half is like changes nothing of the probe.
    changed = np.where((units % 2 == 1)[:, None], features + 1, features)
    again = own_probe(changed, known, others)
    assert again is not None and np.array_equal(again.probe.mean, own.probe.mean, equal_nan=True)
    one_half = Labelled(labels, units, known.attributes, np.zeros(160, np.int64), 3)
    assert own_probe(features, one_half, others) is None


def test_same_site_null_of_raw_views_is_near_chance() -> None:
    scores, known = _labelled(120)
    null = same_site_null(scores, known, VIEWS, seed=0)
    assert abs(null[0] - 0.5) < 0.12 and abs(null[2] - 0.5) < 0.12
