"""One synthetic stained white cell among red cells: amounts of three dyes per pixel, from known concepts.

The picture is a cartoon with the parts that a haematologist names: a violet nucleus with lobes and chromatin, pale
cytoplasm with granules and clear vacuoles, red cells with central pallor. Lengths are pixels at magnification 1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Floats = NDArray[np.float64]
SIDE = 224

# The planted concepts, in the order of the table's columns.
PLANTED = (
    "nuclear_lobes",
    "granule_density",
    "granule_redness",
    "vacuoles",
    "nc_ratio",
    "chromatin_texture",
    "cell_size",
)
CLASSES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")

# Mean of each concept per class; spreads below make the classes overlap, so that a concept can be tested within
# a class. Lobes and vacuoles are counts, the rest runs from 0 to 1.
MEANS: dict[str, dict[str, float]] = {
    "eosinophil": dict(zip(PLANTED, (2.2, 0.70, 0.80, 1.2, 0.36, 0.55, 0.50), strict=True)),
    "lymphocyte": dict(zip(PLANTED, (1.2, 0.20, 0.40, 0.9, 0.66, 0.60, 0.25), strict=True)),
    "monocyte": dict(zip(PLANTED, (1.6, 0.30, 0.30, 2.2, 0.50, 0.35, 0.75), strict=True)),
    "neutrophil": dict(zip(PLANTED, (3.2, 0.50, 0.45, 1.2, 0.36, 0.60, 0.50), strict=True)),
}
SPREAD = dict(zip(PLANTED, (0.8, 0.22, 0.22, 1.5, 0.10, 0.25, 0.20), strict=True))
LOW = dict(zip(PLANTED, (1, 0, 0, 0, 0.2, 0, 0), strict=True))
HIGH = dict(zip(PLANTED, (5, 1, 1, 6, 0.85, 1, 1), strict=True))


@dataclass(frozen=True)
class Concepts:
    """The truth about one cell."""

    nuclear_lobes: int
    granule_density: float
    granule_redness: float
    vacuoles: int
    nc_ratio: float
    chromatin_texture: float
    cell_size: float

    def row(self) -> dict[str, str]:
        """Decimals for the table."""
        return {name: f"{value:.4g}" for name, value in asdict(self).items()}


def draw_concepts(label: str, patient: dict[str, float], rng: np.random.Generator) -> Concepts:
    """Concepts of one cell: class mean, a patient's own shift, and the cell's chance."""
    values = {}
    for name in PLANTED:
        value = MEANS[label][name] + SPREAD[name] * (0.4 * patient[name] + rng.standard_normal())
        values[name] = float(np.clip(value, LOW[name], HIGH[name]))
    lobes, vacuoles = round(values.pop("nuclear_lobes")), round(values.pop("vacuoles"))
    return Concepts(nuclear_lobes=lobes, vacuoles=vacuoles, **values)


def dye_amounts(concepts: Concepts, magnification: float, rng: np.random.Generator) -> Floats:
    """Optical density [224, 224, 3] of nuclear dye, eosin and azure, before the site's camera."""
    y, x = (np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2) / magnification
    radius = 44 + 24 * concepts.cell_size
    cell = _soft(_outline_distance(x, y, radius, rng))
    nucleus = _nucleus(x, y, radius, concepts, rng) * cell
    cytoplasm = cell * (1 - nucleus)
    nuclear = nucleus * (0.95 + concepts.chromatin_texture * 0.5 * _noise(2.6 * magnification, rng))
    nuclear = np.clip(nuclear, 0.25 * nucleus, 1.9)
    granules = _granules(cytoplasm, concepts.granule_density, 1.5 * magnification, rng)
    clear = 1 - 0.95 * _vacuoles(x, y, radius, concepts.vacuoles, cytoplasm, rng)
    eosin = granules * concepts.granule_redness + _red_cells(x, y, radius, rng) * (1 - cell)
    azure = 0.38 * cytoplasm * (1 + 0.15 * _noise(6 * magnification, rng))
    violet = 0.8 * granules * (1 - concepts.granule_redness)
    return np.stack([nuclear * clear + violet * clear, eosin * clear, azure * clear], axis=2)


def _soft(distance: Floats, width: float = 1.1) -> Floats:
    """1 inside, 0 outside, with an edge of about `width` pixels."""
    return np.asarray(1 / (1 + np.exp(np.clip(distance / width, -30, 30))))


def _outline_distance(x: Floats, y: Floats, radius: float, rng: np.random.Generator) -> Floats:
    angle, edge = np.arctan2(y, x), np.full(x.shape, radius)
    for order in (2, 3, 5):
        edge = edge + radius * rng.normal(0, 0.025) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return np.asarray(np.hypot(x, y) - edge)


def _nucleus(x: Floats, y: Floats, radius: float, concepts: Concepts, rng: np.random.Generator) -> Floats:
    """Lobes on an arc, joined by thin bridges; their area is nc_ratio of the cell."""
    lobes = concepts.nuclear_lobes
    size = radius * np.sqrt(concepts.nc_ratio / lobes) * (1.0 if lobes == 1 else 1.04)
    arc = 0.0 if lobes == 1 else max(radius * 0.42, size * 0.9)
    turn, step = rng.uniform(0, 2 * np.pi), 2 * np.pi / max(lobes, 3) * 0.95
    centres = [
        (arc * np.cos(turn + step * i) + rng.normal(0, 2), arc * np.sin(turn + step * i) + rng.normal(0, 2))
        for i in range(lobes)
    ]
    distance = np.full(x.shape, np.inf)
    for cx, cy in centres:
        squeeze, tilt = rng.uniform(0.86, 1.14), rng.uniform(0, np.pi)
        u = (x - cx) * np.cos(tilt) + (y - cy) * np.sin(tilt)
        v = -(x - cx) * np.sin(tilt) + (y - cy) * np.cos(tilt)
        distance = np.minimum(distance, np.hypot(u * squeeze, v / squeeze) - size)
    for (ax, ay), (bx, by) in pairwise(centres):
        distance = np.minimum(distance, _segment(x, y, ax, ay, bx, by) - 0.22 * size)
    return _soft(distance, 1.4)


def _segment(x: Floats, y: Floats, ax: float, ay: float, bx: float, by: float) -> Floats:
    length = (bx - ax) ** 2 + (by - ay) ** 2 + 1e-9
    along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length, 0, 1)
    return np.asarray(np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)))


def _noise(sigma: float, rng: np.random.Generator) -> Floats:
    field = gaussian_filter(rng.standard_normal((SIDE, SIDE)), sigma, mode="wrap")
    return np.asarray(field / field.std())


def _granules(cytoplasm: Floats, density: float, sigma: float, rng: np.random.Generator) -> Floats:
    weight = np.clip(cytoplasm.ravel() - 0.5, 0, None)
    count = int(density * weight.sum() / 22)
    dots = np.zeros(SIDE * SIDE)
    if count and weight.sum() > 0:
        chosen = rng.choice(SIDE * SIDE, size=count, p=weight / weight.sum())
        np.add.at(dots, chosen, rng.uniform(0.6, 1.2, count))
    spots = gaussian_filter(dots.reshape(SIDE, SIDE), sigma) * (2 * np.pi * sigma**2)
    return np.asarray(np.clip(spots, 0, 1.3) * cytoplasm)


def _vacuoles(
    x: Floats, y: Floats, radius: float, count: int, cytoplasm: Floats, rng: np.random.Generator
) -> Floats:
    holes = np.zeros(x.shape)
    weight = np.clip(gaussian_filter(cytoplasm, 3).ravel() - 0.6, 0, None)
    if count and weight.sum() > 0:
        for place in rng.choice(SIDE * SIDE, size=count, p=weight / weight.sum()):
            size = rng.uniform(0.07, 0.13) * radius
            holes = np.maximum(holes, _soft(np.hypot(x - x.flat[place], y - y.flat[place]) - size, 0.9))
    return holes


def _red_cells(x: Floats, y: Floats, radius: float, rng: np.random.Generator) -> Floats:
    amount = np.zeros(x.shape)
    for index in range(rng.integers(4, 8)):
        angle = 2 * np.pi * index / 7 + rng.normal(0, 0.2)
        away = radius + rng.uniform(34, 60)
        distance = np.hypot(x - away * np.cos(angle), y - away * np.sin(angle))
        size = rng.uniform(31, 36)
        disc = _soft(distance - size) * (0.55 - 0.33 * np.exp(-((distance / (0.5 * size)) ** 2)))
        amount = np.maximum(amount, disc)
    return amount
