"""Residual moments: sensitivity, packing, the known noise edge, and planted directions that are found."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cytosae_core.errors import StudyError
from cytosae_core.privacy.moments import (
    EDGE,
    Subspace,
    cube,
    residual_atoms,
    second_moment,
    second_size,
    subspace,
    symmetric,
    tensor_atoms,
    third_clip,
    third_moment,
    third_size,
    whitened,
)
from cytosae_core.privacy.noise import clipped

D, TOKENS = 24, 32


def _planted(patients: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Residuals with four sparse non-negative directions."""
    rng = np.random.default_rng(seed)
    atoms = np.linalg.qr(rng.standard_normal((D, 4)))[0].T
    use = (rng.random((patients, TOKENS, 4)) < 0.1) * rng.gamma(4, 0.5, (patients, TOKENS, 4))
    return use @ atoms + 0.05 * rng.standard_normal((patients, TOKENS, D)), atoms


def test_packed_moments_keep_the_norm_and_come_back() -> None:
    part = _planted(1)[0][0]
    centred = part - part.mean(axis=0)
    matrix = centred.T @ centred / TOKENS
    packed = second_moment(part)
    assert packed.shape == (second_size(D),)
    assert np.isclose(np.linalg.norm(packed), np.linalg.norm(matrix))
    assert np.allclose(symmetric(packed, D), matrix)
    space = Subspace(np.eye(D)[:, :3], np.ones(3))
    y = whitened(part, space)
    tensor = np.einsum("ti,tj,tk->ijk", y, y, y) / TOKENS
    third = third_moment(part, space)
    assert third.shape == (third_size(3),)
    assert np.isclose(np.linalg.norm(third), np.linalg.norm(tensor)) and np.allclose(cube(third, 3), tensor)


def test_a_patient_depends_on_nobody_else() -> None:
    """Own-record centring: what a patient adds is the same whoever else takes part."""
    rest = _planted(6)[0]
    alone = second_moment(rest[2])
    together = [second_moment(part) for part in rest]
    assert (together[2] == alone).all()


def test_tokens_are_clipped_in_the_subspace() -> None:
    part = _planted(1)[0][0] * 1e3
    y = whitened(part, Subspace(np.eye(D)[:, :4], np.full(4, 1e-6)))
    assert np.linalg.norm(y, axis=1).max() <= 4 + 1e-9


def test_pure_noise_has_rank_zero_and_ships_nothing() -> None:
    rng = np.random.default_rng(3)
    ranks = []
    for _ in range(20):
        packed = rng.standard_normal(second_size(D))
        ranks.append(subspace(packed, D, 1.0, 100.0).rank)
    assert ranks.count(0) >= 19  # the edge is 5 % above the largest eigenvalue of noise
    empty = Subspace(np.zeros((D, 0)), np.zeros(0))
    assert tensor_atoms(np.zeros(0), empty, 1.0, 1.0, 1.0).shape == (0, D)
    assert residual_atoms(empty, np.zeros((0, D)), np.zeros((0, D))).shape == (0, D)


def test_the_edge_is_that_of_the_noise() -> None:
    rng = np.random.default_rng(4)
    d = 200
    largest = np.linalg.eigvalsh(symmetric(rng.standard_normal(second_size(d)), d)).max()
    assert 0.95 < largest / math.sqrt(2 * d) < EDGE


def test_planted_directions_are_found_under_noise() -> None:
    rest, atoms = _planted(800)
    rng = np.random.default_rng(5)
    clip = 1.0
    rows = clipped(np.stack([second_moment(part) for part in rest]), clip)
    space = subspace(rows.sum(axis=0) + clip * rng.standard_normal(rows.shape[1]), D, clip, 800.0)
    assert space.rank == 4
    third = third_clip(4, TOKENS)
    cubes = clipped(np.stack([third_moment(part, space) for part in rest]), third)
    packed = cubes.sum(axis=0) + third * rng.standard_normal(cubes.shape[1])
    found = tensor_atoms(packed, space, 1.0, third, 800.0)
    assert (np.abs(atoms @ found.T).max(axis=1) > 0.9).all()
    assert np.allclose(np.linalg.norm(found, axis=1), 1)


def test_gaussian_residuals_have_no_tensor_atoms() -> None:
    """The negative control: directions, but nothing skewed in them."""
    rng = np.random.default_rng(6)
    rest = rng.standard_normal((400, TOKENS, 3)) @ np.linalg.qr(rng.standard_normal((D, 3)))[0].T
    rows = clipped(np.stack([second_moment(part) for part in rest]), 1.0)
    space = subspace(rows.sum(axis=0) + 2 * rng.standard_normal(rows.shape[1]), D, 2.0, 400.0)
    third = third_clip(space.rank, TOKENS)
    cubes = clipped(np.stack([third_moment(part, space) for part in rest]), third)
    packed = cubes.sum(axis=0) + 3 * third * rng.standard_normal(cubes.shape[1])
    assert space.rank == 3 and len(tensor_atoms(packed, space, 3.0, third, 400.0)) == 0


def test_moments_of_another_size_are_refused() -> None:
    with pytest.raises(StudyError, match="second moments"):
        symmetric(np.zeros(5), D)
    with pytest.raises(StudyError, match="third moments"):
        cube(np.zeros(5), 3)
