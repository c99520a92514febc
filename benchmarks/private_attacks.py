"""What an attacker gets from what leaves a site, by egress profile, on real cells: membership and reconstruction.

    python -m benchmarks.private_attacks SITES_FOLDER STORES_FOLDER --json

Everything attacked has passed the code that a site runs: row mask, self-attack, disclosure control, noise. An image
is the patient throughout: the source names no patients. Public tokens, dictionary and clip norms come from another
source. Attackers:

    population   holds all tokens of the candidate, and other images of the same site that are not in the study
    all others   knows every other patient exactly, and everything else but the noise

Membership: AUC and true positives at 1 % false ones over candidates of all trials, half of them members. The best of
several scores is told, chosen by its AUC: too high rather than too low. Reconstruction: share of the tokens used of
which a vector read from the release has |cos| > .95, and the same for as many tokens of unused images (chance).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from cytosae_core.concepts.scores import ImageScores
from cytosae_core.concepts.tables import Labelled, concept_tables, probe_tables
from cytosae_core.egress import Release, inspect
from cytosae_core.encoder import load_encoder
from cytosae_core.errors import EgressError
from cytosae_core.policy import SitePolicy
from cytosae_core.privacy import metrics
from cytosae_core.privacy.accountant import noise_for, strength
from cytosae_core.privacy.disclosure import dominance
from cytosae_core.privacy.masking import mask_update
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
from cytosae_core.privacy.plan import PrivacyPlan
from cytosae_core.privacy.selfattack import Attacker, require_unreadable
from cytosae_core.privacy.terms import PrivacyTerms
from cytosae_core.sae.init import public_centroids
from cytosae_core.sae.models import TopKModel, train_baseline
from cytosae_core.sae.pursuit import SparseCodes, pursue, reconstruct, unit_rows
from cytosae_core.sae.scale import TokenScale, rows_from_centroids
from cytosae_core.sae.train import LocalResult, dictionary_gradient, train_local
from cytosae_local.sites import embed

Floats = NDArray[np.float64]
Scores = dict[str, tuple[list[float], list[float]]]  # attack -> scores of members, of others
PUBLIC, PRIVATE = "barcelona-acevedo-pbc", "bccd-shenggan"
IMAGES, MEMBERS, ROWS, K, PEAK, CLIP = 360, 120, 1024, 16, 6e-3, 1.0
STEPS, BATCH, ROUNDS, CONCEPTS, DRAWN = 20, 128, 15, 16, 64
EPSILONS, DELTA, FALSE, MATCH = (1.0, 4.0, 8.0), 1e-5, 0.01, 0.95
PSEUDO = 1000  # pseudo-patients of 4 images, for moments that have something to tell
WITHHELD = SitePolicy("masked", "masked")
METRICS = SitePolicy("evaluate_only", "evaluate_only")


@dataclass(frozen=True)
class World:
    """tokens [images, 257, d] scaled, public [m, d] scaled; labels [images]; codes and rests of all tokens."""

    tokens: Tensor
    public: Tensor
    labels: NDArray[np.int64]
    classes: int
    base: Tensor
    codes: SparseCodes
    rest: Tensor
    scores: ImageScores
    concepts: NDArray[np.int64]

    @property
    def d(self) -> int:
        return self.tokens.shape[2]


def world(sites: Path, stores: Path) -> World:
    """Embedded once; centred and scaled by the public source, k-means rows of it as dictionary."""
    encoder = load_encoder("dinov2-s-demo", layer=6)
    found = {
        name: embed(sites / name, name, encoder, stores, max_images=IMAGES) for name in (PUBLIC, PRIVATE)
    }
    plain = {name: one.store.tokens(0, one.store.n_images).astype(np.float32) for name, one in found.items()}
    flat = plain[PUBLIC].reshape(-1, plain[PUBLIC].shape[2])
    sums = flat.astype(np.float64)
    scale = TokenScale.from_sums(sums.sum(axis=0), float((sums**2).sum()), len(sums))
    chosen = np.random.default_rng(0).permutation(len(flat))[:20_000]
    base = torch.from_numpy(rows_from_centroids(public_centroids(flat[chosen], ROWS, seed=0), scale))
    public, tokens = torch.from_numpy(scale.apply(flat)), torch.from_numpy(scale.apply(plain[PRIVATE]))
    codes = _codes(tokens.reshape(-1, tokens.shape[2]), base)
    rest = tokens - reconstruct(codes, base).reshape(tokens.shape)
    scores = _scores(tokens, torch.from_numpy(found[PRIVATE].store.mask()), codes)
    names, labels = np.unique(found[PRIVATE].labels, return_inverse=True)
    fires = _codes(public[torch.from_numpy(chosen[:4096])], base).dense(ROWS) > 0
    concepts = fires.sum(dim=0).topk(CONCEPTS).indices.numpy()  # of public tokens: no choice on private ones
    return World(tokens, public, labels.astype(np.int64), len(names), base, codes, rest, scores, concepts)


def _codes(tokens: Tensor, base: Tensor) -> SparseCodes:
    parts = [pursue(part, base, K) for part in torch.split(tokens, 4096)]
    return SparseCodes(torch.cat([p.rows for p in parts]), torch.cat([p.values for p in parts]))


def _scores(tokens: Tensor, mask: Tensor, codes: SparseCodes) -> ImageScores:
    """As `concepts.scores.score_images`, from codes that are there already."""
    rows, values = (part.reshape(*tokens.shape[:2], K) for part in (codes.rows, codes.values))
    found = []
    for index, inside in enumerate(mask):
        dense = SparseCodes(rows[index][inside], values[index][inside]).dense(ROWS)
        fired = (dense > 0).float().mean(dim=0)
        found.append((dense.amax(dim=0), dense.mean(dim=0), fired, tokens[index][inside].mean(dim=0)))
    return ImageScores(*(torch.stack(column).numpy() for column in zip(*found, strict=True)))


@dataclass(frozen=True)
class Trial:
    """Which images are in the study, which are candidates that are not, and which the attacker has for comparison."""

    members: NDArray[np.int64]
    others: NDArray[np.int64]
    reference: NDArray[np.int64]

    @property
    def candidates(self) -> NDArray[np.int64]:
        return np.concatenate([self.members, self.others])


def trials(count: int, images: int) -> Iterator[Trial]:
    """Random thirds of the images."""
    for seed in range(count):
        order = np.random.default_rng(seed).permutation(images)
        yield Trial(*(np.sort(part) for part in np.array_split(order, 3)))


def record(found: Scores, name: str, values: NDArray[Any], trial: Trial) -> None:
    """Scores of a trial's candidates, members first."""
    cut = len(trial.members)
    found.setdefault(name, ([], []))
    found[name][0].extend(values[:cut].tolist())
    found[name][1].extend(values[cut:].tolist())


def rates(inside: list[float], outside: list[float]) -> tuple[float, float]:
    """AUC, and true positives at `FALSE` false ones (at most)."""
    own, other = np.array(inside), np.sort(np.array(outside))
    below = np.searchsorted(other, own, "left") + np.searchsorted(other, own, "right")
    threshold = other[-1 - int(FALSE * len(other))]
    return float(below.mean() / (2 * len(other))), float((own > threshold).mean())


def best(found: Scores) -> dict[str, Any]:
    """The attack with the largest AUC, and every attack's."""
    told = {name: rates(*values) for name, values in found.items()}
    name = max(told, key=lambda key: told[key][0])
    return {
        "attack": name, "auc": told[name][0], "tpr": told[name][1], "candidates": sum(map(len, found[name])),
        "all": {key: [round(value, 3) for value in pair] for key, pair in told.items()},
    }  # fmt: skip


# evaluate_only: the concept tables as they leave.


def metrics_of(world: World, chosen: NDArray[np.int64]) -> dict[str, Floats]:
    """What `describe` releases of these images, after the door."""
    names = ("largest", "mean", "fired", "embedding")
    part = ImageScores(*(getattr(world.scores, name)[chosen] for name in names))
    units = np.arange(len(chosen))
    known = Labelled(
        world.labels[chosen], units, np.zeros((len(chosen), 0), np.int64), units % 2, world.classes
    )
    rule = partial(dominance, policy=METRICS)
    table = {
        **concept_tables(part, known, seed=0, dominance=rule),
        **probe_tables(part, known, dominance=rule),
    }
    dims = {"n": ROWS, "d": world.d, "c": world.classes, "t": world.classes}
    releases = {name: Release(*pair) for name, pair in table.items()}
    outgoing = inspect({"kind": "describe"}, releases, {}, METRICS, dims)
    return {name: values.astype(np.float64) for name, values in outgoing.tensors.items()}


def metrics_membership(world: World, trial: Trial, found: Scores) -> None:
    """Homer et al. 2008: does the candidate lean where the release leans, away from other images of the site?"""
    told = metrics_of(world, trial.members)
    views = {
        "firing_rate": world.scores.fired, "code_all_mean": world.scores.mean,
        "embedding_all_mean": world.scores.embedding,
    }  # fmt: skip
    total = np.zeros(len(trial.candidates))
    for name, values in views.items():
        one, other = values[trial.candidates].astype(np.float64), values[trial.reference].astype(np.float64)
        usable = np.isfinite(told[name]) & (other.std(axis=0) > 0)
        one, other, shown = one[:, usable], other[:, usable], told[name][usable]
        centre, spread = other.mean(axis=0), other.std(axis=0)
        score = ((one - centre) / spread) @ ((shown - centre) / spread)
        record(found, name, score, trial)
        total += score / score.std()
        scatter = np.cov(other.T) / np.outer(spread, spread)
        whitened = np.linalg.solve(scatter + 0.3 * np.eye(len(scatter)), (shown - centre) / spread)
        record(found, f"{name}, whitened", ((one - centre) / spread) @ whitened, trial)
    record(found, "all three", total, trial)


def metrics_all_others(world: World, trial: Trial, count: int) -> float:
    """Share of candidates whose presence changes any released number: who knows all others compares the bytes."""
    without = metrics_of(world, trial.members)
    changed = 0
    for candidate in trial.others[:count]:
        told = metrics_of(world, np.sort(np.append(trial.members, candidate)))
        changed += any(not np.array_equal(told[name], without[name], equal_nan=True) for name in told)
    return changed / count


# masked: row changes of one round as they leave.


@dataclass(frozen=True)
class Round:
    """A site's training in one round, and the tokens and their images that it used."""

    result: LocalResult
    used: Tensor
    units: Tensor


def local_round(world: World, members: NDArray[np.int64], seed: int) -> Round:
    """As client/steps.py does: 20 steps of 128 tokens of random images."""
    rng = np.random.default_rng(seed)
    used, units = [], []

    def batch(step: int) -> tuple[Tensor, Tensor]:
        unit, token = rng.integers(len(members), size=BATCH), rng.integers(world.tokens.shape[1], size=BATCH)
        used.append(world.tokens[members[unit], token])
        units.append(torch.from_numpy(unit))
        return used[-1], units[-1]

    result = train_local(
        world.base, batch, k=K, first=0, steps=STEPS, total=ROUNDS * STEPS, peak=PEAK, n_units=len(members)
    )
    return Round(result, torch.cat(used), torch.cat(units))


def sent(world: World, made: Round, background: NDArray[np.int64]) -> dict[str, Tensor]:
    """delta [n, d] and fired [n] after row mask, self-attack and the door; EgressError when it would be blocked."""
    other = world.tokens[background[np.arange(512) % len(background)], np.arange(512) % 257]
    attacker = Attacker(world.base, made.used, made.units, other, torch.arange(512) % len(background))
    result = made.result
    update = mask_update(
        world.base, result.dictionary, result.units, result.largest, torch.ones(ROWS, dtype=torch.bool), made.used,
        CLIP, min_units=WITHHELD.min_units, max_share=float(WITHHELD.dsnr_max), attacker=attacker,
    )  # fmt: skip
    behind = update.units.numpy()
    releases = {
        "delta": Release(update.delta.numpy(), behind[:, None]),
        "fired": Release(result.fired.numpy().astype(np.float32), behind),
    }
    outgoing = inspect({"kind": "round"}, releases, {}, WITHHELD, {"n": ROWS, "d": world.d})
    require_unreadable(attacker(torch.from_numpy(outgoing.tensors["delta"])))
    return {name: torch.from_numpy(values).float() for name, values in outgoing.tensors.items()}


def masked_membership(world: World, trial: Trial, seed: int, found: Scores) -> None:
    """Scores of candidates on a round's row changes; `calibrated`: less the same on the attacker's own training."""
    told = sent(world, local_round(world, trial.members, seed), trial.others)
    own = local_round(world, trial.reference, 1000 + seed)
    shadow = own.result.dictionary - world.base
    shadow = shadow * (told["delta"] != 0).any(dim=1, keepdim=True)
    plain = {}
    for place, delta in (("", told["delta"]), ("shadow", shadow)):
        plain["cosine" + place] = _nearest(world, delta, trial.candidates)
        plain["gradient" + place] = _agreement(world, delta, trial.candidates)
        plain["direction" + place] = _agreement(world, unit_rows(delta), trial.candidates)
    for name in ("cosine", "gradient", "direction"):
        record(found, name, plain[name], trial)
        record(found, f"{name}, calibrated", plain[name] - plain[name + "shadow"], trial)
    counts = told["fired"].numpy()
    shown = np.isfinite(counts)
    fired = world.scores.fired[:, shown].astype(np.float64)
    centre, spread = fired[trial.reference].mean(axis=0), fired[trial.reference].std(axis=0) + 1e-9
    lean = (counts[shown] / (STEPS * BATCH) - centre) / spread
    record(found, "row counts", ((fired[trial.candidates] - centre) / spread) @ lean, trial)


def _nearest(world: World, delta: Tensor, images: NDArray[np.int64]) -> Floats:
    """Mean over an image's tokens of the best |cos| with a row's change (the self-attack's membership score)."""
    rows = unit_rows(delta[(delta != 0).any(dim=1)])
    values = [(unit_rows(world.tokens[image]) @ rows.T).abs().amax(dim=1).mean() for image in images]
    return torch.stack(values).double().numpy()


def _agreement(world: World, delta: Tensor, images: NDArray[np.int64]) -> Floats:
    """Mean over an image's tokens of <what the token alone would change, what changed>."""
    across = delta - (delta * world.base).sum(dim=1, keepdim=True) * world.base
    size = world.tokens.shape[1]
    values = []
    for image in images:
        part = slice(image * size, (image + 1) * size)
        codes = SparseCodes(world.codes.rows[part], world.codes.values[part])
        values.append((reconstruct(codes, across) * world.rest[image]).sum(dim=1).mean())
    return torch.stack(values).double().numpy()


def masked_all_others(world: World, trial: Trial, count: int) -> float:
    """Share of candidates found by doing the round again with and without them: draws follow from public seeds."""
    right = 0
    for number, candidate in enumerate(trial.others[:count]):
        grown = np.sort(np.append(trial.members, candidate))
        told = sent(world, local_round(world, grown, number), trial.reference)["delta"]
        with_it, without = (
            sent(world, local_round(world, images, number), trial.reference)["delta"]
            for images in (grown, trial.members)
        )
        right += torch.equal(told, with_it) and not torch.equal(told, without)
    return right / count


# dp: noised sums.


def statistics(world: World) -> tuple[Floats, metrics.Layout]:
    """Every image's vector for `describe` [images, size]."""
    layout = metrics.Layout(CONCEPTS, world.classes)
    rows, root = [], np.sqrt(world.d)
    values = world.codes.values.reshape(len(world.tokens), -1, K)
    for index, label in enumerate(world.labels):
        error, size = float(world.rest[index].square().mean()), float(world.tokens[index].square().mean())
        squares = np.array([error, size, error, float((values[index] > 0).float().mean())])
        classes = np.arange(world.classes) == label
        scores = np.full((world.classes, CONCEPTS), np.nan)
        scores[label] = world.scores.largest[index, world.concepts] / root
        fired = world.scores.fired[index, world.concepts].astype(np.float64)
        rows.append(metrics.vector(metrics.Patient(squares, fired, classes, scores), layout))
    return np.stack(rows), layout


def drawn(world: World, image: int) -> Floats:
    """What the public rows leave of 64 random tokens of an image."""
    chosen = np.random.default_rng(image).permutation(world.tokens.shape[1])[:DRAWN]
    return world.rest[image, chosen].double().numpy()


def public_clip(world: World) -> float:
    """Median norm of second moments of public images."""
    images = world.public.reshape(-1, world.tokens.shape[1], world.d)[::8, :DRAWN]
    norms = []
    for tokens in images:
        rest = tokens - reconstruct(pursue(tokens, world.base, K), world.base)
        norms.append(np.linalg.norm(second_moment(rest.double().numpy())))
    return float(np.median(norms))


def private_membership(
    rows: Floats, plan: PrivacyPlan, trial: Trial, population: Scores, others: Scores, whole: bool
) -> None:
    """Both attackers on one noised sum of the members' rows [images, size].

    whole: also try the best test of one candidate. Where all rows are alike and releases are few, its noise is one
    number per release that all candidates share, and candidates of one release must not be compared by it.
    """
    clip = plan.clip_norm
    grid = grid_for(clip, 1000, plan.noise_multiplier)
    total = release(rows[trial.members], clip, plan.noise_multiplier, grid) * grid
    cut = clipped(rows, clip)
    candidates, centre = cut[trial.candidates], cut[trial.reference].mean(axis=0)
    left = total - cut[trial.members].sum(axis=0)  # the noise, and each member beside it
    member = np.arange(len(candidates)) < len(trial.members)
    directions = {"projection": candidates, "projection beside the mean": candidates - centre}
    for name in directions if whole else list(directions)[1:]:
        unit = directions[name] / np.linalg.norm(directions[name], axis=1, keepdims=True)
        record(others, name, unit @ left + member * (unit * candidates).sum(axis=1), trial)
    lean = total - len(trial.members) * centre
    record(population, "projection", (candidates - centre) @ lean, trial)


def private_rows(world: World, count: int) -> dict[str, Any]:
    """Membership under `dp`: statistics with the whole epsilon; second moments with .3 of mu^2 (added concepts)."""
    found = {}
    rows, layout = statistics(world)
    moments = np.stack([second_moment(drawn(world, image)) for image in range(len(world.tokens))])
    clip = public_clip(world)
    for epsilon in EPSILONS:
        plain = PrivacyTerms(epsilon=epsilon, delta=DELTA, patients=MEMBERS, patients_in_all=1000)
        atoms = PrivacyTerms(
            epsilon=epsilon, delta=DELTA, patients=MEMBERS, patients_in_all=1000, atoms=24, second_clip=clip
        )
        for name, values, plan, repeats in (
            ("statistics", rows, plain.plan("describe", layout), 4 * count),
            ("second moments", moments, atoms.plan("second", layout), count),
        ):
            population: Scores = {}
            others: Scores = {}
            for trial in trials(repeats, len(values)):
                private_membership(values, plan, trial, population, others, name == "statistics")
            auc, tpr = _most(1 / plan.noise_multiplier)
            found[f"dp {epsilon:g}, {name}"] = {
                "population": best(population), "all others": best(others), "noise allows": {"auc": auc, "tpr": tpr},
                "clipped": float((np.linalg.norm(values, axis=1) > plan.clip_norm).mean()),
            }  # fmt: skip
        auc, tpr = _most(strength(epsilon, DELTA))
        found[f"dp {epsilon:g}, all together"] = {"noise allows": {"auc": auc, "tpr": tpr}}
    return found


def _most(mu: float) -> tuple[float, float]:
    """AUC and true positives at `FALSE` of the best test of N(mu, 1) against N(0, 1)."""
    return float(norm.cdf(mu / np.sqrt(2))), float(norm.sf(norm.isf(FALSE) - mu))


def membership(world: World, count: int) -> dict[str, Any]:
    """AUC and true positives at 1 % false ones, by profile and attacker."""
    frozen: Scores = {}
    masked: Scores = {}
    blocked = 0
    for seed, trial in enumerate(trials(count, len(world.tokens))):
        metrics_membership(world, trial, frozen)
        try:
            masked_membership(world, trial, seed, masked)
        except EgressError:
            blocked += 1
    one = next(trials(1, len(world.tokens)))
    return {
        "evaluate_only": {"population": best(frozen), "all others": metrics_all_others(world, one, 20)},
        "masked": {
            "population": best(masked), "all others": masked_all_others(world, one, 2), "rounds blocked": blocked,
        },
        **private_rows(world, count),
    }  # fmt: skip


# Reconstruction.

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
        gradient, active = dictionary_gradient(used, _codes(used, world.base), world.base)
        step[active] = -gradient
        found[f"pursuit, unmasked, {name}"] = (step, used)
    found["pursuit, unmasked round"] = (made.result.dictionary - world.base, made.used)
    found["pursuit, masked round (sent)"] = (told, made.used)
    out: dict[str, Any] = {}
    for name, (delta, used) in found.items():
        out[name] = recovered(read_rows(delta, world.base), used, seen)
        rows = {"direction": (delta[(delta != 0).any(dim=1)], False)}
        rest, other = (part - reconstruct(_codes(part, world.base), world.base) for part in (used, seen))
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


def main() -> int:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sites", type=Path)
    parser.add_argument("stores", type=Path)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    made, out, started = world(given.sites, given.stores), {}, time.process_time()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "reconstruction": lambda: reconstruction(made), "membership": lambda: membership(made, given.trials),
    }  # fmt: skip
    for name, work in parts.items():
        out[name] = work()
        print(json.dumps({name: out[name]}), file=sys.stderr, flush=True)
    print(json.dumps({**out, "cpu_seconds": round(time.process_time() - started)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
