"""Phantom hospitals: known stain, camera and magnification per site; folders of images with their truth."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from ..canonical import canonical_json, digest_of
from ..errors import DataError
from ..tensors import write_atomic
from .cell import CLASSES, PLANTED, Concepts, draw_concepts, dye_amounts

Floats = NDArray[np.float64]
VERSION = 1

# Optical density of one unit of nuclear dye, eosin and azure in red, green and blue (Romanowsky-like).
DYES = np.array([[0.55, 0.72, 0.22], [0.14, 0.62, 0.50], [0.34, 0.24, 0.10]])


@dataclass(frozen=True)
class PhantomSite:
    """How one hospital's stain and camera change a cell.

    Attributes:
        name: folder and site name.
        stain: strength of nuclear dye, eosin and azure (1 is neutral).
        hue: how far the dyes' colours turn towards blue (+) or red (-), -0.3 to 0.3.
        white: white balance, red, green, blue (background brightness, 0 to 1).
        blur_px: standard deviation of the optics' blur, pixels.
        noise_sd: camera noise, standard deviation in units of full brightness.
        magnification: relative size of everything.
    """

    name: str
    stain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    hue: float = 0.0
    white: tuple[float, float, float] = (0.94, 0.93, 0.94)
    blur_px: float = 0.6
    noise_sd: float = 0.008
    magnification: float = 1.0


DEMO_SITES: tuple[PhantomSite, ...] = (
    PhantomSite("alder", (1.0, 0.9, 1.1), 0.05, (0.95, 0.93, 0.92), 0.5, 0.006, 1.0),
    PhantomSite("birch", (1.3, 1.1, 0.8), -0.15, (0.88, 0.82, 0.78), 1.1, 0.012, 0.9),
    PhantomSite("cedar", (0.75, 1.2, 0.9), 0.2, (0.90, 0.93, 0.97), 0.7, 0.020, 1.1),
    PhantomSite("dogwood", (1.1, 0.7, 1.4), -0.05, (0.97, 0.95, 0.85), 1.5, 0.008, 1.0),
    PhantomSite("elm", (0.9, 1.3, 1.2), 0.12, (0.80, 0.80, 0.84), 0.9, 0.015, 0.95),
)
PUBLIC_SITE = PhantomSite("public")


def photograph(dyes: Floats, site: PhantomSite, rng: np.random.Generator) -> Image.Image:
    """What the site's camera sees of dye amounts [h, w, 3]: Beer-Lambert, white balance, blur, noise."""
    turn = np.array([1 + site.hue, 1.0, 1 - site.hue])
    density = (dyes * np.array(site.stain)) @ (DYES * turn)
    light = np.array(site.white) * 10**-density
    light = gaussian_filter(light, (site.blur_px, site.blur_px, 0))
    light = light + rng.normal(0, site.noise_sd, light.shape)
    return Image.fromarray(np.round(np.clip(light, 0, 1) * 255).astype(np.uint8))


def phantom(label: str, site: PhantomSite, seed: tuple[int, ...]) -> tuple[Image.Image, Concepts]:
    """One cell and its truth; the same seed gives the same bytes."""
    patient_rng = np.random.default_rng((*seed[:2], 1))
    patient = {name: float(patient_rng.standard_normal()) for name in PLANTED}
    rng = np.random.default_rng((*seed, 2))
    concepts = draw_concepts(label, patient, rng)
    dyes = dye_amounts(concepts, site.magnification * rng.normal(1, 0.03), rng)
    return photograph(dyes, site, rng), concepts


def generate_site(
    folder: Path, site: PhantomSite, *, patients: int = 48, cells_per_patient: int = 2, seed: int = 0
) -> None:
    """Write `labels.csv` and `images/`, unless the folder already holds exactly this phantom.

    Every class has patients x cells_per_patient / 4 cells in as many patients.

    Raises:
        DataError: not a multiple of the classes, or the folder holds something else.
    """
    if patients < 1 or cells_per_patient < 1 or (patients * cells_per_patient) % len(CLASSES):
        raise DataError(f"Expected patients x cells_per_patient to be a multiple of {len(CLASSES)}.")
    plan = {
        "site": asdict(site),
        "patients": patients,
        "cells": cells_per_patient,
        "seed": seed,
        "version": VERSION,
    }
    manifest = folder / "manifest.json"
    if manifest.exists():
        if manifest.read_bytes() == canonical_json(digest_of(plan)):
            return
        raise DataError(
            "Expected an empty folder or this phantom site.", hint="Delete the folder, or use another."
        )
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for patient in range(patients):
        for cell in range(cells_per_patient):
            label = CLASSES[(patient * cells_per_patient + cell) % len(CLASSES)]
            picture, concepts = phantom(label, site, (seed, patient, cell))
            name = f"p{patient:03d}-{cell}.png"
            picture.save(folder / "images" / name, optimize=False)
            rows.append(
                {"image": name, "label": label, "patient": f"{site.name}-{patient:03d}", **concepts.row()}
            )
    write_atomic(folder / "labels.csv", _table(rows))
    write_atomic(manifest, canonical_json(digest_of(plan)))


def _table(rows: list[dict[str, str]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()
