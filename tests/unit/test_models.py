"""Baselines and checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cytosae_core.errors import StudyError
from cytosae_core.sae.checkpoint import load_checkpoint, save_checkpoint
from cytosae_core.sae.models import (
    PursuitModel,
    ReluModel,
    TopKModel,
    model_from_tensors,
    tensors_of,
    train_baseline,
)
from cytosae_core.sae.pursuit import random_dictionary


def tokens(count: int = 400) -> torch.Tensor:
    truth = random_dictionary(10, 12, 4)
    return truth[torch.randint(10, (count, 2), generator=torch.Generator().manual_seed(1))].sum(dim=1)


def test_relu_is_the_published_definition() -> None:
    model = ReluModel(12, 30, seed=1)
    x = tokens(5)
    expected = torch.relu((x - model.b_dec) @ model.W_enc + model.b_enc)
    assert torch.equal(model.codes(x), expected)
    assert torch.allclose(model.reconstruct(expected), expected @ model.W_dec + model.b_dec)


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_baselines_learn_and_keep_unit_rows(kind: str) -> None:
    model = ReluModel(12, 30) if kind == "relu" else TopKModel(12, 30, k=3, dead_after=5)
    data = tokens()

    @torch.no_grad()
    def error() -> float:
        return float((model.reconstruct(model.codes(data)) - data).pow(2).mean())

    before = error()
    train_baseline(model, data, steps=150, batch=64, seed=0)
    assert error() < 0.6 * before
    assert torch.allclose(model.dictionary.norm(dim=1), torch.ones(30), atol=1e-5)


def test_topk_keeps_at_most_k() -> None:
    assert (TopKModel(12, 30, k=3).codes(tokens(50)) > 0).sum(dim=1).max() <= 3


def test_auxk_loss_reaches_dead_latents() -> None:
    model = TopKModel(12, 30, k=2, dead_after=0)
    with torch.no_grad():
        model.b_enc[20:] = -0.05
    model.idle[20:] = 10
    loss = model.loss(tokens(50))
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.W_dec.grad is not None and model.W_dec.grad[20:].abs().sum() > 0


@pytest.mark.parametrize("kind", ["pursuit", "relu", "topk"])
def test_tensors_round_trip_gives_identical_codes(kind: str) -> None:
    model = {
        "pursuit": PursuitModel(random_dictionary(30, 12, 0), 3),
        "relu": ReluModel(12, 30),
        "topk": TopKModel(12, 30, k=3),
    }[kind]
    again = model_from_tensors(kind, tensors_of(model), 3)
    assert torch.equal(again.codes(tokens(20)), model.codes(tokens(20)))


@pytest.mark.parametrize("kind", ["pursuit", "relu", "topk"])
def test_unfitting_tensors_are_refused(kind: str) -> None:
    with pytest.raises(StudyError):
        model_from_tensors(kind, {"W_dec": torch.ones(3, 4)}, 2)
    if kind != "pursuit":
        good = tensors_of(ReluModel(12, 30))
        with pytest.raises(StudyError):
            model_from_tensors(kind, {**good, "b_enc": torch.ones(7)}, 2)


def test_checkpoint_round_trip_and_every_kind_of_damage(tmp_path: Path) -> None:
    values = {"dictionary": np.eye(3, dtype=np.float32)}
    digest = save_checkpoint(tmp_path / "d", values, {"model": "pursuit"})
    loaded = load_checkpoint(tmp_path / "d", sha256=digest)
    assert (
        np.array_equal(loaded.tensors["dictionary"], values["dictionary"])
        and loaded.facts["model"] == "pursuit"
    )
    with pytest.raises(StudyError):
        load_checkpoint(tmp_path / "d", sha256="0" * 64)
    with pytest.raises(StudyError):
        load_checkpoint(tmp_path / "missing")
    blob = bytearray((tmp_path / "d.safetensors").read_bytes())
    blob[-1] ^= 1
    (tmp_path / "d.safetensors").write_bytes(bytes(blob))
    with pytest.raises(StudyError):
        load_checkpoint(tmp_path / "d")


def test_checkpoint_with_nan_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "d", {"dictionary": np.full((2, 2), np.nan, np.float32)}, {})
    with pytest.raises(StudyError):
        load_checkpoint(tmp_path / "d")
