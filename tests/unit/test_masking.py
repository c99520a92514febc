"""The masked profile's row rules, with the leak they must stop as positive control."""

from __future__ import annotations

import torch

from cytosae_core.privacy.masking import mask_update, readable_rows
from cytosae_core.sae.models import TopKModel, train_baseline
from cytosae_core.sae.pursuit import random_dictionary
from cytosae_core.sae.train import train_local

N, D = 48, 16


def setting() -> dict[str, torch.Tensor]:
    base = random_dictionary(N, D, 0)
    trained = base + 0.05 * torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    return {
        "base": base,
        "trained": trained,
        "units": torch.full((N,), 20),
        "largest": torch.full((N,), 0.2),
        "allowed": torch.ones(N, dtype=torch.bool),
        "tokens": torch.randn(100, D, generator=torch.Generator().manual_seed(2)),
    }


def released(changes: dict[str, torch.Tensor], min_units: int = 11) -> torch.Tensor:
    update = mask_update(**{**setting(), **changes}, row_clip=1.0, min_units=min_units)  # type: ignore[arg-type]
    assert ((update.units > 0) == (update.delta != 0).any(dim=1)).all()
    return update.units > 0


def test_rows_outside_the_fixed_set_never_leave() -> None:
    allowed = torch.arange(N) % 2 == 0
    assert torch.equal(released({"allowed": allowed}), allowed)


def test_rows_of_too_few_units_or_dominated_never_leave() -> None:
    few = torch.where(torch.arange(N) < 5, 10, 11)
    assert released({"units": few}).sum() == N - 5
    dominated = torch.where(torch.arange(N) < 7, 0.51, 0.5)
    assert released({"largest": dominated}).sum() == N - 7
    assert released({"largest": dominated}, min_units=1).all()


def test_rows_that_point_at_a_token_are_withheld_plainly_and_by_signs() -> None:
    parts = setting()
    plain = parts["trained"].clone()
    plain[3] = parts["base"][3] + 0.1 * parts["tokens"][17]
    signs = parts["trained"].clone()
    signs[4] = parts["base"][4] + 0.01 * parts["tokens"][21].sign()
    assert not released({"trained": plain})[3]
    assert not released({"trained": signs})[4]


def test_clip_bounds_every_row() -> None:
    far = setting()["base"] * -3
    update = mask_update(**{**setting(), "trained": far}, row_clip=0.5, min_units=11)  # type: ignore[arg-type]
    assert update.delta.float().norm(dim=1).max() <= 0.501


def test_positive_control_an_honest_encoder_update_gives_tokens_back() -> None:
    """The reader finds single tokens in an encoder's change after Adam, and none in a pursuit dictionary's."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(60, 64, generator=generator)
    model = TopKModel(64, 512, k=2)
    before = model.W_enc.detach().clone()
    train_baseline(model, tokens, steps=1, batch=60, seed=0)
    change = (model.W_enc.detach() - before).T
    fired = change.abs().sum(dim=1) > 0
    assert readable_rows(change[fired], tokens).float().mean() > 0.3
    base = random_dictionary(512, 64, 0)
    units = torch.arange(60)
    result = train_local(
        base, lambda step: (tokens, units), k=2, first=0, steps=1, total=10, peak=1e-3, n_units=60
    )
    moved = result.fired > 1
    assert moved.any()
    assert not readable_rows((result.dictionary - base)[moved], tokens).any()
