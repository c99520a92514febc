"""Nested cross-validation: units stay together, metrics are scikit-learn's, chance is chance."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from cytosae_core.errors import DataError
from cytosae_core.worth.attention import make_bags
from cytosae_core.worth.crossval import (
    Logistic,
    Scores,
    check_units,
    macro_auroc,
    nested,
    unit_folds,
    weighted_auroc,
    weighted_f1,
)


def units_of_patients(patients: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and units: patients in turn of three classes, `each` images of every patient."""
    units = np.repeat(np.arange(patients), each)
    return units % 3, units


def test_units_are_on_one_side_of_every_split() -> None:
    labels, units = units_of_patients(24, 4)
    folds = unit_folds(labels, units, 5, seed=0)
    assert len(folds) == 5
    for train, test in folds:
        assert not set(units[train]) & set(units[test])
        assert set(labels[train]) == {0, 1, 2}
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(96))


def test_a_patients_fingerprint_does_not_pass_for_a_class() -> None:
    """Features that name the patient, and nothing else, give chance: no patient trains on itself."""
    labels, units = units_of_patients(24, 6)
    features = np.random.default_rng(0).normal(size=(24, 10))[units]
    found, _ = nested(Logistic(features), labels, units)
    f1, auroc = Scores(labels, units).of(found)
    assert auroc.low < 0.5 < auroc.high + 0.1 and f1.value < 0.6


def test_a_class_signal_is_found_with_an_interval_and_shuffled_labels_are_at_chance() -> None:
    labels, units = units_of_patients(30, 3)
    rng = np.random.default_rng(1)
    features = rng.normal(size=(90, 6)) + 2 * np.eye(3, 6)[labels]
    f1, auroc = Scores(labels, units).of(nested(Logistic(features), labels, units)[0])
    assert auroc.value > 0.95 and f1.low > 0.7
    mixed = rng.permutation(labels)
    assert Scores(mixed, units).of(nested(Logistic(features), mixed, units)[0])[1].value < 0.65


def test_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    labels, weight = rng.integers(3, size=80), rng.integers(0, 4, size=80).astype(float)
    scores = np.round(rng.dirichlet(np.ones(3), size=80), 1) + 0.3 * np.eye(3)[labels]  # with ties
    rows = np.vstack([np.ones(80), weight])
    for row, w in enumerate(rows):
        expected = f1_score(labels, scores.argmax(1), average="weighted", sample_weight=w)
        assert weighted_f1(scores.argmax(axis=1), labels, rows)[row] == pytest.approx(expected)
        each = [roc_auc_score(labels == c, scores[:, c], sample_weight=w) for c in range(3)]
        assert macro_auroc(scores, labels, rows)[row] == pytest.approx(np.mean(each))
    assert np.isnan(weighted_auroc(scores[:, 0], np.ones(80, bool), rows)).all()


def test_attention_finds_one_telling_token_among_many() -> None:
    """The class shows on one token of 20, marked by a large third coordinate; the mean drowns it."""
    rng = np.random.default_rng(3)
    labels = np.arange(120) % 2
    bags = [rng.normal(size=(20, 4)).astype(np.float32) for _ in labels]
    for bag, label in zip(bags, labels, strict=True):
        bag[0, 0], bag[0, 2] = (3.0 if label else -3.0), 8.0
    attention, _ = nested(make_bags(bags, 20), labels, np.arange(120))
    flat, _ = nested(Logistic(np.stack([bag.mean(axis=0) for bag in bags])), labels, np.arange(120))
    scored = [Scores(labels, np.arange(120)).of(found)[1].value for found in (attention, flat)]
    assert scored[0] > 0.95 and scored[0] > scored[1] + 0.05


def test_few_units_are_an_error_or_a_warning() -> None:
    labels, units = units_of_patients(15, 4)
    with pytest.raises(DataError, match=r"at least 6 units .*'b': 5"):
        check_units(labels, units, ("a", "b", "c"), "patient")
    with pytest.raises(DataError, match="2 classes"):
        check_units(np.zeros(9, int), np.arange(9), ("a",), "patient")
    labels, units = units_of_patients(24, 4)
    assert "few units: 8" in check_units(labels, units, ("a", "b", "c"), "patient")
    labels, units = units_of_patients(90, 1)
    assert check_units(labels, units, ("a", "b", "c"), "patient") == ""
