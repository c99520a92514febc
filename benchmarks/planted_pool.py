"""Phantom cells with yes/no properties: the pool from which planted studies draw their hospitals.

Five properties are biology (they occur everywhere; the demo's encoder hardly sees two of them), two are artefacts of
stain or camera (a hospital has many of them or few), one occurs at one hospital only. In the pool every property is
drawn independent of class and camera: a study makes hospitals of it by choosing images (`planted.py`).
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from cytosae_core.canonical import canonical_json
from cytosae_core.phantom.cell import CLASSES, PLANTED, SIDE, draw_concepts, dye_amounts
from cytosae_core.phantom.sites import DEMO_SITES, PhantomSite, photograph
from cytosae_core.tensors import write_atomic

Floats = NDArray[np.float64]
TRUE = ("many_granules", "coarse_chromatin", "blue_bodies")
HARD = (
    "many_vacuoles",
    "many_lobes",
)  # true as well; no concept of the demo encoder reads them with AUROC .65
ARTEFACTS = ("precipitate", "stripes")
SINGLE = ("rods",)
PROPERTIES = TRUE + HARD + ARTEFACTS + SINGLE
SINGLE_RATE = 0.15
MORE_SITES = (
    PhantomSite("fir", (1.2, 1.0, 1.0), 0.0, (0.92, 0.90, 0.86), 0.6, 0.010, 1.0),
    PhantomSite("hazel", (0.85, 1.1, 1.2), -0.1, (0.90, 0.88, 0.92), 0.8, 0.012, 1.05),
    PhantomSite("larch", (1.0, 0.8, 0.9), 0.1, (0.96, 0.95, 0.95), 1.0, 0.008, 0.95),
)
CAMERAS = DEMO_SITES + MORE_SITES
VERSION = 2


def write_pool(folder: Path, camera: PhantomSite, images: int, seed: int) -> None:
    """One camera's part of the pool: `labels.csv` and `images/`, unless they are there already."""
    plan = canonical_json({"camera": camera.name, "images": images, "seed": seed, "version": VERSION})
    manifest = folder / "manifest.json"
    if manifest.exists() and manifest.read_bytes() == plan:
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(images):
        rng = np.random.default_rng((seed, CAMERAS.index(camera), number))
        label = CLASSES[number % len(CLASSES)]
        flags = toss(rng)
        dyes = draw(label, flags, camera.magnification * rng.normal(1, 0.03), rng)
        name = f"c{number:04d}.png"
        photograph(dyes, camera, rng).save(folder / "images" / name)
        shown = {key: int(value) for key, value in flags.items()}
        rows.append({"image": name, "label": label, "patient": f"{camera.name}-{number:04d}", **shown})
    write_atomic(folder / "labels.csv", _table(rows))
    write_atomic(manifest, plan)


def toss(rng: np.random.Generator) -> dict[str, bool]:
    """Properties of one cell: true ones with probability 1/2, at most one artefact, rods rarely."""
    flags = {name: bool(rng.random() < 0.5) for name in TRUE + HARD}
    artefact = rng.integers(len(ARTEFACTS) + 1)
    flags |= {name: bool(index == artefact) for index, name in enumerate(ARTEFACTS)}
    return flags | {name: bool(rng.random() < SINGLE_RATE) for name in SINGLE}


def draw(label: str, flags: dict[str, bool], magnification: float, rng: np.random.Generator) -> Floats:
    """Dye amounts [224, 224, 3] of one cell with these properties."""
    concepts = draw_concepts(label, {name: float(rng.standard_normal()) for name in PLANTED}, rng)
    concepts = replace(
        concepts,
        granule_density=0.95 if flags["many_granules"] else 0.03,
        vacuoles=6 if flags["many_vacuoles"] else 0,
        nuclear_lobes=4 if flags["many_lobes"] else 1,
        chromatin_texture=1.0 if flags["coarse_chromatin"] else 0.0,
    )
    dyes = dye_amounts(concepts, magnification, rng)
    for name, plant in EXTRAS.items():
        if flags[name]:
            dyes = plant(dyes, rng)
    return dyes


def _precipitate(dyes: Floats, rng: np.random.Generator) -> Floats:
    """Small dark specks of stain over the whole picture."""
    specks = _spots(260, 1.1, rng)
    return dyes + specks[:, :, None] * np.array([1.3, 0.0, 0.5])


def _stripes(dyes: Floats, rng: np.random.Generator) -> Floats:
    """Bands of a line camera."""
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * np.arange(SIDE) / 9 + rng.uniform(0, 6))
    return np.asarray(dyes + 0.22 * wave[:, None, None])


def _rods(dyes: Floats, rng: np.random.Generator) -> Floats:
    """Red rods in the cell, as Auer rods."""
    return dyes + _lines(4, rng)[:, :, None] * np.array([0.1, 2.2, 0.0])


def _blue_bodies(dyes: Floats, rng: np.random.Generator) -> Floats:
    """Large pale-blue bodies near the cell's centre."""
    places = rng.normal(SIDE / 2, 22, size=(4, 2))
    y, x = np.mgrid[:SIDE, :SIDE]
    body = np.zeros((SIDE, SIDE))
    for py, px in places:
        body = np.maximum(body, 1 / (1 + np.exp(np.hypot(y - py, x - px) - 9)))
    return np.asarray(dyes * (1 - 0.8 * body[:, :, None]) + body[:, :, None] * np.array([0.0, 0.0, 1.6]))


EXTRAS: dict[str, Any] = {
    "precipitate": _precipitate,
    "stripes": _stripes,
    "rods": _rods,
    "blue_bodies": _blue_bodies,
}


def _spots(count: int, sigma: float, rng: np.random.Generator) -> Floats:
    dots = np.zeros((SIDE, SIDE))
    np.add.at(dots, (rng.integers(SIDE, size=count), rng.integers(SIDE, size=count)), 1.0)
    return np.asarray(np.clip(gaussian_filter(dots, sigma) * (2 * np.pi * sigma**2), 0, 1.3))


def _lines(count: int, rng: np.random.Generator) -> Floats:
    y, x = np.mgrid[:SIDE, :SIDE]
    out = np.zeros((SIDE, SIDE))
    for _ in range(count):
        cy, cx = rng.normal(SIDE / 2, 18, size=2)
        angle = rng.uniform(0, np.pi)
        along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        across = -(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)
        inside = (np.abs(along) < 16) & (np.abs(across) < 2)
        out = np.maximum(out, gaussian_filter(inside.astype(float), 0.8))
    return out


def _table(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()
