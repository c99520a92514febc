"""Tokens on which private releases are measured: real cells with a public and several private sources, and a made
world whose new concepts are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytosae_core.encoder import load_encoder
from cytosae_core.sae.init import public_centroids
from cytosae_core.sae.pursuit import unit_rows
from cytosae_core.sae.train import train_local
from cytosae_local.sites import embed

Floats = NDArray[np.float64]
PUBLIC = "barcelona-acevedo-pbc"
PRIVATE = ("chula-wbc-rpi", "bccd-shenggan", "draaslan-romanowsky", "chula-rbc12")
ROWS, STEPS, BATCH, PEAK = 1024, 300, 1024, 6e-3


@dataclass(frozen=True)
class World:
    """A frozen public dictionary, public tokens, and private patients.

    Attributes:
        dictionary: [n, d] unit rows, trained on `public` [P, T, d], tokens of public patients, scaled.
        patients: [N, T, d] private patients, scaled. test: site -> [m, d] held-out tokens.
        planted: [a, d] new concepts where they are known. k: picks of the dictionary; extra: of the residual stage.
    """

    dictionary: Tensor
    public: NDArray[np.float32]
    patients: NDArray[np.float32]
    test: dict[str, Tensor]
    planted: Floats
    k: int
    extra: int


def trained(tokens: NDArray[np.float32], rows: int, k: int, seed: int) -> Tensor:
    """A dictionary of scaled tokens [m, d]: k-means, then row-wise Adam."""
    start = unit_rows(torch.from_numpy(public_centroids(tokens, rows, seed=seed)))
    pool, rng = torch.from_numpy(tokens), np.random.default_rng(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(rng.integers(len(pool), size=BATCH))
        return pool[chosen], torch.zeros(BATCH, dtype=torch.int64)

    return train_local(start, batch, k=k, first=0, steps=STEPS, total=STEPS, peak=PEAK, n_units=1).dictionary


# Real cells. The sources name no patients: a pseudo-patient has 4 images and 16 tokens of each, with replacement.

IMAGES, TOKENS = 4, 16


def real(
    sites: Path, stores: Path, *, count: int, seed: int, private: Sequence[str] = PRIVATE, images: int = 350
) -> World:
    """`count` private pseudo-patients from the training halves of the private sources."""
    encoder = load_encoder("dinov2-s-demo", layer=6)
    tokens = {}
    for name in (PUBLIC, *private):
        embedded = embed(sites / name, name, encoder, stores, max_images=images)
        tokens[name] = _stained(embedded.store)
    public = np.concatenate(tokens[PUBLIC])
    mean, scale = public.mean(axis=0), float(np.sqrt(((public - public.mean(axis=0)) ** 2).mean()))
    scaled = {
        name: [((part - mean) / scale).astype(np.float32) for part in parts] for name, parts in tokens.items()
    }
    rng = np.random.default_rng(seed)
    train, test = [], {}
    for name in private:
        order = np.random.default_rng(0).permutation(len(scaled[name]))
        held = [scaled[name][index] for index in order[: len(order) // 4]]
        test[name] = torch.from_numpy(np.concatenate([part[:64] for part in held]))
        train += [scaled[name][index] for index in order[len(order) // 4 :]]
    dictionary = trained(np.concatenate(scaled[PUBLIC]), ROWS, 16, 0)
    draw = [_patients(cells, n, rng) for cells, n in ((scaled[PUBLIC], 1000), (train, count))]
    return World(dictionary, draw[0], draw[1], test, np.zeros((0, len(mean))), 16, 4)


def _stained(store: object) -> list[NDArray[np.float32]]:
    mask = store.mask()  # type: ignore[attr-defined]
    found = []
    for index in range(store.n_images):  # type: ignore[attr-defined]
        part = store.tokens(index, index + 1)[0].astype(np.float32)[mask[index]]  # type: ignore[attr-defined]
        if len(part) >= TOKENS:
            found.append(part)
    return found


def _patients(cells: list[NDArray[np.float32]], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    out = []
    for _ in range(count):
        chosen = [cells[index] for index in rng.integers(len(cells), size=IMAGES)]
        out.append(np.concatenate([part[rng.integers(len(part), size=TOKENS)] for part in chosen]))
    return np.stack(out)


# A made world: d = 128, 512 public concepts; 12 new ones make `share` of the private activations.


def made(count: int, seed: int, *, share: float = 0.2, d: int = 128, new: int = 12) -> World:
    """Tokens are 8 active concepts with gamma sizes, of which a patient has its own preferences, plus noise."""
    rng = np.random.default_rng(1000 + seed)
    atoms = rng.standard_normal((512 + new, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    shift = 0.8 * rng.standard_normal(d) / np.sqrt(d)
    public = _made_patients(rng, atoms[:512], np.ones(512), 1000)
    weights = np.concatenate([np.full(512, (1 - share) / 512), np.full(new, share / new)])
    private = _made_patients(rng, atoms, weights, count) + shift
    test = _made_patients(rng, atoms, weights, 200) + shift
    scale = float(np.sqrt((public**2).mean()))
    public, private, test = ((part / scale).astype(np.float32) for part in (public, private, test))
    dictionary = trained(public.reshape(-1, d), 512, 8, 0)
    held = {"made": torch.from_numpy(test.reshape(-1, d))}
    return World(dictionary, public, private, held, atoms[512:], 8, 2)


def _made_patients(rng: np.random.Generator, atoms: Floats, weights: Floats, count: int) -> Floats:
    tokens = 32
    out = np.zeros((count, tokens, atoms.shape[1]))
    for patient in range(count):
        liked = weights * rng.gamma(0.5, size=len(atoms))
        which = rng.choice(len(atoms), size=(tokens, 8), p=liked / liked.sum())
        sizes = rng.gamma(2.0, 0.5, size=(tokens, 8))
        out[patient] = np.einsum("tk,tkd->td", sizes, atoms[which])
    return np.asarray(out + 0.02 * rng.standard_normal(out.shape))
