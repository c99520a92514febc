"""Reconstruction: tokens that a vector read from a release gives back, by what leaves the site."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cytosae_core.errors import EgressError
from cytosae_core.privacy.accountant import noise_for
from cytosae_core.privacy.moments import (
    own_centred,
    second_moment,
    subspace,
    symmetric,
    tensor_atoms,
    third_clip,
    third_moment,
)
from cytosae_core.privacy.noise import clipped, grid_for, release
from cytosae_core.sae.models import TopKModel, train_baseline
from cytosae_core.sae.pursuit import reconstruct, unit_rows
from cytosae_core.sae.train import dictionary_gradient

from .attack_world import (
    BATCH,
    DELTA,
    DRAWN,
    MATCH,
    PSEUDO,
    ROWS,
    Floats,
    K,
    Trial,
    World,
    codes_of,
    local_round,
    metrics_of,
    public_clip,
    sent,
    trials,
)

Readings = dict[str, tuple[Tensor, bool]]  # reader -> vectors [v, d], and whether signs are compared


def recovered(readings: Readings, own: Tensor, seen: Tensor) -> dict[str, Any]:
    """How many tokens of `own` and of `seen` [m, d] any vector of any reader gives back."""
    out: dict[str, Any] = {"tokens": len(own)}
    for place, tokens in (("recovered", own), ("chance", seen[: len(own)])):
        hit, each = torch.zeros(len(tokens), dtype=torch.bool), {}
        for name, (vectors, signs) in readings.items():
            rows = unit_rows(vectors.sign() if signs else vectors)
            targets = unit_rows(tokens.sign() if signs else tokens)
            close = [(part @ rows.T).abs().amax(dim=1) for part in torch.split(targets, 1024)]
            read = torch.cat(close) > MATCH if len(rows) else torch.zeros(len(tokens), dtype=torch.bool)
            hit |= read
            each[name] = int(read.sum())
        out[place], out[f"{place} by reader"] = int(hit.sum()), each
    return out


def read_rows(delta: Tensor, base: Tensor) -> Readings:
    """Vectors that a reader of row changes tries: see `privacy/selfattack.py`; `decoded` is below."""
    moved = (delta != 0).any(dim=1)
    change, rows = delta[moved], base[moved]
    near = (
        (rows @ rows.T).fill_diagonal_(-2).argmax(dim=1)
        if len(rows) > 1
        else torch.zeros(0, dtype=torch.int64)
    )
    return {
        "direction": (change, False),
        "signs": (change, True),
        "differences": (torch.cat([change[1:] - change[:-1], change - change[near]]), False),
        "decoded": (decoded(change, rows), False),
    }


def decoded(change: Tensor, rows: Tensor) -> Tensor:
    """Pursuit turned round: a row that one token moved shows its residual; the rows that moved along it, its codes.

    x ~ cos(t) sum_j a_j D_j / |sum| + sin(t) r, with r a row's change, a_j = <change of row j, r> (the k largest),
    and four guesses of the share sin(t)^2 that was left.
    """
    if not len(change):
        return change
    left = unit_rows(change)
    top = (left @ change.T).clamp_min(0).topk(min(K, len(rows)), dim=1)
    sums = unit_rows((top.values[:, :, None] * rows[top.indices]).sum(dim=1))
    return torch.cat([(1 - s) ** 0.5 * sums + s**0.5 * left for s in (0.05, 0.15, 0.3, 0.5)])


def topk_rows(world: World, used: Tensor, seen: Tensor) -> dict[str, Any]:
    """What peers send: an untied TopK autoencoder's update; one plain step, and 20 steps of Adam."""
    model = TopKModel(world.d, ROWS, k=K)
    train_baseline(model, world.public, steps=100, batch=512, seed=0)
    found = {}
    for count in (len(used), BATCH, 8):
        model.zero_grad()
        model.loss(used[:count]).backward()  # type: ignore[no-untyped-call]
        weights, bias = model.W_enc.grad, model.b_enc.grad
        if weights is None or bias is None:
            raise EgressError("Expected gradients of the encoder.")
        rows = weights.T[bias != 0]
        ratio = rows / bias[bias != 0, None] + model.b_dec.detach()
        readings: Readings = {"direction": (rows, False), "ratio": (ratio, False)}
        found[f"TopK, one step of {count} tokens"] = recovered(readings, used[:count], seen)
    before = model.W_enc.detach().clone()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for part in torch.split(used, BATCH):
        optimiser.zero_grad()
        model.loss(part).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        model.after_step()
    change = (model.W_enc.detach() - before).T
    moved = change[(change != 0).any(dim=1)]
    found["TopK, 20 Adam steps"] = recovered(
        {"direction": (moved, False), "signs": (moved, True)}, used, seen
    )
    return found


def pursuit_rows(world: World, trial: Trial, seen: Tensor) -> dict[str, Any]:
    """Our own update: one plain step and one round before the mask, and what is sent; tokens, and their residuals."""
    made = local_round(world, trial.members, 0)
    told = sent(world, made, trial.others)["delta"]
    found = {}
    for count in (len(made.used), BATCH, 8):
        name, used = f"one step of {count} tokens", made.used[:count]
        step = torch.zeros_like(world.base)
        gradient, active = dictionary_gradient(used, codes_of(used, world.base), world.base)
        step[active] = -gradient
        found[f"pursuit, unmasked, {name}"] = (step, used)
    found["pursuit, unmasked round"] = (made.result.dictionary - world.base, made.used)
    found["pursuit, masked round (sent)"] = (told, made.used)
    out: dict[str, Any] = {}
    for name, (delta, used) in found.items():
        out[name] = recovered(read_rows(delta, world.base), used, seen)
        rows = {"direction": (delta[(delta != 0).any(dim=1)], False)}
        rest, other = (part - reconstruct(codes_of(part, world.base), world.base) for part in (used, seen))
        out[name]["residuals"] = recovered(rows, rest, other)
        out[name]["rows"] = int((delta != 0).any(dim=1).sum())
    return out


def metrics_rows(world: World, trial: Trial, own: Tensor, seen: Tensor) -> dict[str, Any]:
    """Tables of `describe`: means of embeddings, of codes through the dictionary, and their differences."""
    told = {name: np.nan_to_num(values) for name, values in metrics_of(world, trial.members).items()}
    vectors = []
    for part in ("all", "class", "half", "half_class"):
        for view, rows in (("embedding", None), ("code", world.base.double().numpy())):
            for moment in ("mean", "var"):
                values = told[f"{view}_{part}_{moment}"].reshape(-1, ROWS if view == "code" else world.d)
                vectors.append(values if rows is None else values @ rows)
    vectors.append((told["firing_rate"] @ world.base.double().numpy())[None])
    vectors.append((np.nan_to_num(told["auroc"]) - 0.5).T @ world.base.double().numpy())
    plain = np.concatenate(vectors)
    pairs = (plain[:, None] - plain[None])[np.triu_indices(len(plain), 1)]
    readings = {"tables": (plain, False), "differences": (pairs, False)}
    readings = {name: (torch.from_numpy(v).float(), signs) for name, (v, signs) in readings.items()}
    means = [world.tokens[part, 1:].mean(dim=1) for part in (trial.members, trial.others)]
    means = [
        part - world.tokens[trial.reference, 1:].mean(dim=(0, 1)) for part in means
    ]  # what the site shares
    return {"evaluate_only": {**recovered(readings, own, seen), "image means": recovered(readings, *means)}}


def moment_rows(world: World, trial: Trial, epsilon: float | None) -> dict[str, Any]:
    """Residual moments of pseudo-patients: axes, atoms; and for who knows all others, one patient's moment itself."""
    rng = np.random.default_rng(5)
    images = trial.members[rng.integers(len(trial.members), size=(PSEUDO, 4))].repeat(DRAWN // 4, axis=1)
    places = rng.integers(world.tokens.shape[1], size=images.shape)
    rest, clip = world.rest[images, places].double().numpy(), public_clip(world)
    noise = noise_for(epsilon, DELTA, 2) if epsilon else 1e-3
    grid = grid_for(clip, PSEUDO, noise)
    packed = np.stack([second_moment(part) for part in rest])
    total = np.asarray(release(packed, clip, noise, grid) * grid, np.float64)
    space = subspace(total, world.d, noise * clip, PSEUDO)
    vectors = [np.linalg.eigh(symmetric(total, world.d))[1].T]
    atoms = np.zeros((0, world.d))
    if space.rank:
        third = third_clip(space.rank, DRAWN)
        width = grid_for(third, PSEUDO, noise)
        cubes = release(np.stack([third_moment(part, space) for part in rest]), third, noise, width)
        atoms = tensor_atoms(np.asarray(cubes * width, np.float64), space, noise, third, PSEUDO)
        vectors += [space.basis.T, atoms]
    own = torch.from_numpy(rest.reshape(-1, world.d)[: 40 * DRAWN]).float()
    seen = world.rest[trial.others].reshape(-1, world.d)
    seen = seen[torch.from_numpy(rng.permutation(len(seen))[: len(own)])]
    readings: Readings = {"axes and atoms": (torch.from_numpy(np.concatenate(vectors)).float(), False)}
    return {
        **recovered(readings, own, seen), "rank": space.rank, "atoms": len(atoms),
        "all others": _one_moment(packed, rest, total, clip),
    }  # fmt: skip


def _one_moment(packed: Floats, rest: Floats, total: Floats, clip: float) -> dict[str, Any]:
    """Everybody else taken off a sum: share of residual tokens of one patient inside the span of what is left.

    `chance`: the same span, and the tokens of the next patient."""
    d, cut = rest.shape[2], clipped(packed, clip)
    everybody = cut.sum(axis=0)
    inside: list[bool] = []
    outside: list[bool] = []
    for patient in range(20):
        alone = symmetric(total - everybody + cut[patient], d)
        span = np.linalg.eigh(alone)[1][:, -(DRAWN - 1) :]
        for found, which in ((inside, patient), (outside, patient + 20)):
            tokens = own_centred(rest[which])
            share = np.linalg.norm(tokens @ span, axis=1) / np.linalg.norm(tokens, axis=1)
            found.extend((share > MATCH).tolist())
    return {"tokens": len(inside), "recovered": int(sum(inside)), "chance": int(sum(outside))}


def reconstruction(world: World) -> dict[str, Any]:
    """Tokens given back, by what is released."""
    trial = next(trials(1, len(world.tokens)))
    used = local_round(world, trial.members, 0).used
    rng = np.random.default_rng(9)
    image, token = rng.integers(len(trial.others), size=len(used)), rng.integers(257, size=len(used))
    seen = world.tokens[trial.others[image], token]
    return {
        **topk_rows(world, used, seen),
        **pursuit_rows(world, trial, seen),
        **metrics_rows(world, trial, used, seen),
        "dp 4, residual moments": moment_rows(world, trial, 4.0),
        "residual moments without noise": moment_rows(world, trial, None),
    }
