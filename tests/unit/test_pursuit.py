"""Matching pursuit, its training step and the public start, against plain slow versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cytosae_core.errors import StudyError
from cytosae_core.sae import pursuit
from cytosae_core.sae.init import public_centroids
from cytosae_core.sae.pursuit import gram_matrix, pursue, random_dictionary, reconstruct, unit_rows
from cytosae_core.sae.scale import TokenScale, rows_from_centroids
from cytosae_core.sae.train import RowAdam, dictionary_gradient, learning_rate_at, train_local


def slow_pursuit(token: Tensor, dictionary: Tensor, k: int) -> list[tuple[int, float]]:
    residual, picks = token.clone(), []
    for _ in range(k):
        products = dictionary @ residual
        best = int(products.argmax())
        value = max(0.0, float(products[best]))
        residual = residual - value * dictionary[best]
        picks.append((best, value))
    return picks


def test_picks_equal_the_plain_loop() -> None:
    dictionary, tokens = random_dictionary(40, 12, 0), torch.randn(30, 12)
    codes = pursue(tokens, dictionary, 5)
    for row in range(30):
        slow = slow_pursuit(tokens[row], dictionary, 5)
        assert codes.rows[row].tolist() == [index for index, _ in slow]
        assert torch.allclose(codes.values[row], torch.tensor([value for _, value in slow]), atol=1e-5)


def test_without_gram_matrix_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary, tokens = random_dictionary(40, 12, 0), torch.randn(30, 12)
    with_gram = pursue(tokens, dictionary, 5)
    monkeypatch.setattr(pursuit, "GRAM_MAX_ROWS", 10)
    without = pursue(tokens, dictionary, 5)
    assert gram_matrix(dictionary) is None
    assert torch.equal(with_gram.rows, without.rows) and torch.allclose(
        with_gram.values, without.values, atol=1e-5
    )


def test_codes_do_not_depend_on_the_batch() -> None:
    dictionary, tokens = random_dictionary(40, 12, 0), torch.randn(30, 12)
    alone = pursue(tokens[7:8], dictionary, 5)
    assert torch.equal(pursue(tokens, dictionary, 5).rows[7:8], alone.rows)


def test_codes_are_never_negative_and_error_never_grows() -> None:
    dictionary, tokens = random_dictionary(40, 12, 0), torch.randn(30, 12)
    errors = []
    for k in (1, 3, 6):
        codes = pursue(tokens, dictionary, k)
        assert (codes.values >= 0).all()
        errors.append((tokens - reconstruct(codes, dictionary)).pow(2).sum(dim=1))
    assert (errors[1] <= errors[0] + 1e-5).all() and (errors[2] <= errors[1] + 1e-5).all()


def test_dense_adds_up_rows_picked_twice() -> None:
    codes = pursuit.SparseCodes(torch.tensor([[1, 1, 0]]), torch.tensor([[2.0, 0.5, 0.0]]))
    assert codes.dense(3).tolist() == [[0.0, 2.5, 0.0]]


def test_gradient_equals_autograd_at_fixed_codes() -> None:
    dictionary, tokens = random_dictionary(20, 8, 0), torch.randn(16, 8)
    codes = pursue(tokens, dictionary, 3)
    gradient, active = dictionary_gradient(tokens, codes, dictionary)
    free = dictionary.clone().requires_grad_(True)
    loss = 0.5 * (tokens - codes.dense(20) @ free).pow(2).sum() / len(tokens)
    loss.backward()  # type: ignore[no-untyped-call]
    assert free.grad is not None
    plain = free.grad[active]
    tangent = plain - (plain * dictionary[active]).sum(dim=1, keepdim=True) * dictionary[active]
    assert torch.allclose(gradient, tangent, atol=1e-6)


def test_row_adam_is_adam_for_rows_that_always_fire() -> None:
    parameter = torch.zeros(3, 4, requires_grad=True)
    plain = torch.optim.Adam([parameter], lr=0.01)
    own, ours = RowAdam(3, 4), torch.zeros(3, 4)
    for step in range(5):
        gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        parameter.grad = gradient.clone()
        plain.step()
        ours = ours - own.change(gradient, torch.arange(3), 0.01)
    assert torch.allclose(ours, parameter.detach(), atol=1e-6)


def test_silent_rows_do_not_move_and_rows_stay_unit() -> None:
    dictionary = random_dictionary(50, 8, 0)
    tokens = dictionary[:3].repeat(20, 1) * 2.0 + 0.01 * torch.randn(60, 8)
    units = torch.arange(60) % 6
    result = train_local(
        dictionary, lambda step: (tokens, units), k=1, first=0, steps=3, total=30, peak=0.01, n_units=6
    )
    silent = result.fired == 0
    assert silent.any() and torch.equal(result.dictionary[silent], dictionary[silent])
    assert torch.allclose(result.dictionary.norm(dim=1), torch.ones(50), atol=1e-5)
    assert (result.units[~silent] <= 6).all() and (result.largest <= 1 + 1e-5).all()


def test_training_lowers_the_error() -> None:
    truth = random_dictionary(12, 16, 1)
    generator = torch.Generator().manual_seed(2)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        choice = torch.randint(12, (256, 2), generator=generator)
        return truth[choice].sum(dim=1), torch.zeros(256, dtype=torch.int64)

    start = random_dictionary(24, 16, 3)
    tokens, _ = batch(0)
    result = train_local(start, batch, k=3, first=0, steps=120, total=120, peak=0.02, n_units=1)

    def error(dictionary: Tensor) -> float:
        return float((tokens - reconstruct(pursue(tokens, dictionary, 3), dictionary)).pow(2).mean())

    assert error(result.dictionary) < 0.3 * error(start)


def test_same_input_same_bytes() -> None:
    tokens = torch.randn(64, 8, generator=torch.Generator().manual_seed(5))
    runs = [
        train_local(
            random_dictionary(30, 8, 0), lambda step: (tokens, torch.zeros(64, dtype=torch.int64)),
            k=3, first=0, steps=5, total=10, peak=0.01, n_units=1,
        ).dictionary
        for _ in range(2)
    ]  # fmt: skip
    assert torch.equal(runs[0], runs[1])


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate_at(step, 300, 1.0) for step in range(300)]
    assert rates[0] < 0.2 and max(rates) == 1.0 and rates[-1] < 0.02


def test_centroids_find_planted_directions_and_repeat() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((5, 10)) * 5
    tokens = (centres[rng.integers(5, size=600)] + 0.05 * rng.standard_normal((600, 10))).astype(np.float32)
    found = public_centroids(tokens, 20, seed=0)
    assert np.array_equal(found, public_centroids(tokens, 20, seed=0))
    distance = np.linalg.norm(found[:, None] - centres[None], axis=2)
    assert (distance.min(axis=0) < 0.2).all()
    with pytest.raises(StudyError):
        public_centroids(tokens[:10], 20, seed=0)


def test_rows_from_centroids_are_unit_and_centred() -> None:
    scale = TokenScale(np.ones(4, np.float32), 2.0)
    rows = rows_from_centroids(np.array([[3, 1, 1, 1], [1, 1, 1, -7]], np.float32), scale)
    assert np.allclose(rows, [[1, 0, 0, 0], [0, 0, 0, -1]])
    with pytest.raises(StudyError):
        rows_from_centroids(np.ones((1, 4), np.float32), scale)


def test_token_scale_from_sums_over_sites_equals_pooled() -> None:
    tokens = np.random.default_rng(0).standard_normal((100, 6)) * 3 + 1
    scale = TokenScale.from_sums(tokens.sum(axis=0), float((tokens**2).sum()), 100)
    scaled = scale.apply(tokens.astype(np.float32))
    assert np.allclose(scaled.mean(axis=0), 0, atol=1e-5) and np.isclose((scaled**2).mean(), 1, atol=1e-4)
    with pytest.raises(StudyError):
        TokenScale.from_sums(np.zeros(3), 0.0, 0)


def test_unit_rows_keeps_zero_rows() -> None:
    assert unit_rows(torch.zeros(2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
