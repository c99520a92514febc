"""Noise of private releases: exact sensitivity, right size, never from a seed (guarantees N1 to N3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from cytosae_core.errors import StudyError
from cytosae_core.privacy.noise import (
    SAFE,
    SecureBytes,
    clipped,
    discrete_gaussian,
    grid_for,
    integers,
    quick_normal,
    release,
)

CLIP = 0.37


def _patients(count: int, size: int, scale: float) -> np.ndarray:
    return scale * np.random.default_rng(count).standard_normal((count, size))


@pytest.mark.parametrize("scale", [1e-9, 0.01, 1.0, 1e6])
def test_n1_one_patient_changes_the_sum_by_at_most_the_clip_norm(scale: float) -> None:
    grid = grid_for(CLIP, 5000, 5.3)
    rows = integers(clipped(_patients(40, 2000, scale), CLIP), grid)
    # Integers: the norm of one patient's part is exact, and a sum over the others is the same with and without it.
    norms = np.sqrt((rows.astype(object) ** 2).sum(axis=1).astype(float))
    assert (norms <= CLIP / grid).all()
    assert ((rows.sum(axis=0) - rows[1:].sum(axis=0)) == rows[0]).all()


def test_n1_norms_are_accumulated_in_double_precision() -> None:
    row = np.full((1, 4_000_000), 1.0)
    assert np.linalg.norm(clipped(row, CLIP)) <= CLIP
    assert np.linalg.norm(clipped(row, CLIP)) > CLIP * SAFE * (1 - 1e-9)


def test_n2_noise_has_the_promised_size() -> None:
    grid = grid_for(CLIP, 100, 2.0)
    noise = release(np.zeros((3, 20_000)), CLIP, 2.0, grid) * grid
    assert abs(noise.std() / (2.0 * CLIP) - 1) < 0.02 and abs(noise.mean()) < 0.02 * 2 * CLIP
    assert kstest(noise / (2.0 * CLIP), norm.cdf).pvalue > 1e-4
    shares = sum(release(np.zeros((1, 20_000)), CLIP, 2.0, grid, shares=4) for _ in range(4)) * grid
    assert abs(shares.std() / (2.0 * CLIP) - 1) < 0.02


def test_n2_no_seed_makes_noise_come_again() -> None:
    def draw() -> tuple[list[int], list[float]]:
        np.random.seed(1)
        torch.manual_seed(1)
        return discrete_gaussian(8, 1e6).tolist(), quick_normal(8).tolist()

    first, second = draw(), draw()
    assert first[0] != second[0] and first[1] != second[1]


def test_n3_a_site_without_patients_releases_noise_alone() -> None:
    grid = grid_for(CLIP, 100, 1.0)
    noise = release(np.zeros((0, 5000)), CLIP, 1.0, grid) * grid
    assert abs(noise.std() / CLIP - 1) < 0.05


def test_a_sum_of_all_patients_and_its_noise_fits_32_bits() -> None:
    for patients, noise in ((1, 1.0), (5000, 5.276), (100_000, 20.0)):
        grid = grid_for(CLIP, patients, noise)
        assert patients * CLIP / grid + 12 * noise * CLIP / grid < 2**31
    with pytest.raises(StudyError, match="fits 32 bits"):
        grid_for(CLIP, 10**8, 1.0)


@pytest.mark.parametrize("rows", [np.array([[np.nan, 0.0]]), np.array([[np.inf, 0.0]])])
def test_contributions_that_are_not_finite_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(StudyError, match="finite"):
        clipped(rows, CLIP)
    with pytest.raises(StudyError, match="clip norm"):
        clipped(np.zeros((1, 2)), 0.0)
    with pytest.raises(StudyError, match="scale"):
        discrete_gaussian(3, 0.0)


def test_quick_noise_is_normal_and_follows_its_key() -> None:
    drawn = quick_normal(200_001)
    assert len(drawn) == 200_001 and kstest(drawn, norm.cdf).pvalue > 1e-4
    key = bytes(range(32))
    assert (quick_normal(9, SecureBytes(key)) == quick_normal(9, SecureBytes(key))).all()


def test_the_stream_is_chacha20_of_rfc_8439() -> None:
    # RFC 8439, appendix A.1, test vector 1: key 0, nonce 0, block counter 0.
    words = SecureBytes(bytes(32)).words(4, np.uint32)
    assert words.tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"
