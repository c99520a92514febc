"""Metrics under differential privacy: a patient's vector stays within the clip norm, and errors include the noise."""

from __future__ import annotations

import numpy as np
import pytest

from cytosae_core.concepts.auroc import unit_auroc
from cytosae_core.errors import StudyError
from cytosae_core.privacy.metrics import BINS, EDGES, Layout, Noised, Patient, auroc, of_class, split, vector
from cytosae_core.privacy.noise import clipped

LAYOUT = Layout(concepts=6, classes=3, classes_of_a_patient=1)


def _patient(rng: np.random.Generator, label: int, *, extreme: bool = False) -> Patient:
    scores = np.full((3, 6), np.nan)
    scores[label] = 9.0 if extreme else np.abs(rng.normal(0.1 + 0.1 * label, 0.08, 6))
    classes = np.arange(3) == label
    fired = np.full(6, 9.0) if extreme else rng.random(6)
    return Patient(np.full(4, 99.0) if extreme else rng.random(4), fired, classes, scores)


def test_no_patient_of_the_stated_kind_is_scaled_down_and_none_exceeds_the_clip_norm() -> None:
    rng = np.random.default_rng(0)
    for extreme in (False, True):
        row = vector(_patient(rng, 1, extreme=extreme), LAYOUT)
        assert row.shape == (LAYOUT.size,) and np.linalg.norm(row) <= LAYOUT.clip
    many = Patient(np.ones(4), np.ones(6), np.ones(3, bool), np.full((3, 6), 0.5))
    assert np.linalg.norm(vector(many, LAYOUT)) > LAYOUT.clip
    assert np.linalg.norm(clipped(vector(many, LAYOUT)[None], LAYOUT.clip)) <= LAYOUT.clip


def test_parts_come_back_from_a_sum() -> None:
    rng = np.random.default_rng(1)
    patients = [_patient(rng, index % 3) for index in range(30)]
    found = split(sum(vector(patient, LAYOUT) for patient in patients), LAYOUT, 0.0)
    assert found.patients == 30 and found.classes.tolist() == [10, 10, 10]
    assert np.allclose(found.fired, sum(patient.fired for patient in patients))
    assert found.histogram.shape == (3, 6, BINS) and (found.histogram.sum(axis=2) == 10).all()
    with pytest.raises(StudyError, match="size"):
        split(np.zeros(3), LAYOUT, 0.0)


def test_without_noise_the_auroc_is_that_of_the_units_up_to_the_bins() -> None:
    rng = np.random.default_rng(2)
    patients = [_patient(rng, index % 3) for index in range(600)]
    found = split(sum(vector(patient, LAYOUT) for patient in patients), LAYOUT, 0.0)
    scores = np.stack([p.scores[index % 3] for index, p in enumerate(patients)]).astype(np.float32)
    labels = np.arange(600) % 3
    for index in range(3):
        exact = unit_auroc(scores, labels == index, np.arange(600))
        told = of_class(found, index)
        assert np.abs(told.value - exact.value).max() < 0.03
        assert (told.se >= 0.9 * exact.se).all()


@pytest.mark.parametrize("noise", [2.0, 6.0])
def test_the_error_covers_patients_and_noise(noise: float) -> None:
    """Over repeated draws the true value lies within 1.96 standard errors in at least 93 % of cases."""
    rng = np.random.default_rng(3)
    truth_high, truth_low = rng.dirichlet(np.ones(BINS)), rng.dirichlet(np.ones(BINS))
    truth = float((truth_high * (np.cumsum(truth_low) - truth_low / 2)).sum())
    inside = told = 0
    for _ in range(400):
        high = rng.multinomial(300, truth_high)[None] + noise * rng.standard_normal((1, BINS))
        low = rng.multinomial(500, truth_low)[None] + noise * rng.standard_normal((1, BINS))
        found = auroc(high, low, noise, noise)
        told += int(np.isfinite(found.value[0]))
        inside += int(abs(found.value[0] - truth) <= 1.96 * found.se[0])
    assert told == 400 and inside / told >= 0.93


def test_counts_within_their_noise_are_not_told() -> None:
    noise = 5.0
    found = Noised(20.0, np.zeros(4), np.zeros(1), np.array([12.0, 40.0]), np.zeros((2, 1, BINS)), noise)
    found.histogram[0, 0, 3], found.histogram[1, 0, 5] = 12.0, 400.0
    assert np.isnan(of_class(found, 0).value[0])  # 12 patients, noise of 5 sqrt(11) = 17
    quiet = auroc(np.full((1, BINS), 0.5), np.full((1, BINS), 50.0), 0.01, 0.01)
    assert np.isnan(quiet.value[0])  # 5.5 patients: below the smallest group, whatever the noise
    assert sorted(EDGES) == list(EDGES)
