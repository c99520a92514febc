"""The cells on which attacks are measured, who is a member in a trial, and what leaves a site in every profile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytosae_core.concepts.scores import ImageScores
from cytosae_core.concepts.tables import Labelled, concept_tables, probe_tables
from cytosae_core.egress import Release, inspect
from cytosae_core.encoder import load_encoder
from cytosae_core.policy import SitePolicy
from cytosae_core.privacy import metrics
from cytosae_core.privacy.disclosure import dominance
from cytosae_core.privacy.masking import mask_update
from cytosae_core.privacy.moments import (
    second_moment,
)
from cytosae_core.privacy.selfattack import Attacker, require_unreadable
from cytosae_core.sae.init import public_centroids
from cytosae_core.sae.public import CLIP_FACTOR
from cytosae_core.sae.pursuit import SparseCodes, pursue, reconstruct
from cytosae_core.sae.scale import TokenScale, rows_from_centroids
from cytosae_core.sae.train import LocalResult, train_local
from cytosae_local.sites import embed

Floats = NDArray[np.float64]
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
    codes = codes_of(tokens.reshape(-1, tokens.shape[2]), base)
    rest = tokens - reconstruct(codes, base).reshape(tokens.shape)
    scores = scores_of(tokens, torch.from_numpy(found[PRIVATE].store.mask()), codes)
    names, labels = np.unique(found[PRIVATE].labels, return_inverse=True)
    fires = codes_of(public[torch.from_numpy(chosen[:4096])], base).dense(ROWS) > 0
    concepts = fires.sum(dim=0).topk(CONCEPTS).indices.numpy()  # of public tokens: no choice on private ones
    return World(tokens, public, labels.astype(np.int64), len(names), base, codes, rest, scores, concepts)


def codes_of(tokens: Tensor, base: Tensor) -> SparseCodes:
    parts = [pursue(part, base, K) for part in torch.split(tokens, 4096)]
    return SparseCodes(torch.cat([p.rows for p in parts]), torch.cat([p.values for p in parts]))


def scores_of(tokens: Tensor, mask: Tensor, codes: SparseCodes) -> ImageScores:
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
    """Twice the median norm of second moments of public images, as a study's."""
    images = world.public.reshape(-1, world.tokens.shape[1], world.d)[::8, :DRAWN]
    norms = []
    for tokens in images:
        rest = tokens - reconstruct(pursue(tokens, world.base, K), world.base)
        norms.append(np.linalg.norm(second_moment(rest.double().numpy())))
    return CLIP_FACTOR * float(np.median(norms))
