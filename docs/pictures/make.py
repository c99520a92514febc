"""The pictures of docs/concepts.md, one per scale, from generated cells only: python docs/pictures/make.py

A phantom hospital whose patients each have one class; tokens from the demo encoder; a small dictionary from k-means
of these cells; one pass. No hospital's images are read; the notice on top is the one that hospitals see.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.cluster.vq import kmeans2

from cytosae_core.cohort import read_cohort
from cytosae_core.concepts.barcode import barcodes, compare, typical
from cytosae_core.concepts.coder import Coder, load_coder
from cytosae_core.concepts.contrasts import contrast, likeness
from cytosae_core.concepts.extract import Cells, Settings, extract
from cytosae_core.concepts.extracted import Extracted
from cytosae_core.encoder import build_store, load_encoder
from cytosae_core.figures.barcode import Shown, barcode_figure
from cytosae_core.figures.canvas import write_figure
from cytosae_core.figures.classes import contrast_figure, likeness_figure
from cytosae_core.figures.patch import Cell, patch_figure
from cytosae_core.figures.sheet import Shot, references, sheet_figure
from cytosae_core.phantom import CLASSES, DEMO_SITES, phantom
from cytosae_core.sae.checkpoint import save_checkpoint
from cytosae_local.concept_source import Source
from cytosae_local.scales_io import code_images, pixels_of

PATIENTS, CELLS, ROWS = 32, 3, 96
MAX_BYTES = 150_000


def write_phantoms(folder: Path) -> None:
    """`PATIENTS` patients of one class each, `CELLS` cells of each."""
    (folder / "images").mkdir(parents=True)
    rows, camera = [], replace(DEMO_SITES[0], noise_sd=0.0)  # noise does not compress
    for patient in range(PATIENTS):
        label = CLASSES[patient % len(CLASSES)]
        for cell in range(CELLS):
            name = f"p{patient:02d}-{cell}.png"
            picture, _ = phantom(label, camera, (77, patient, cell))
            picture.save(folder / "images" / name)
            rows.append((name, label, f"{label[:3]}-{patient:02d}"))
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "label", "patient"), *rows])


def make_source(folder: Path) -> Source:
    """Cells, tokens and a dictionary of `ROWS` rows."""
    write_phantoms(folder / "cells")
    cohort = read_cohort(folder / "cells", name="phantom")
    encoder = load_encoder("dinov2-s-demo", None, "cpu", layer=6, steps=("cell-mask",))
    store = build_store(cohort, encoder, folder / "tokens")
    image, token = np.nonzero(store.mask())
    tokens = store.gather(image, token)
    mean = tokens.mean(axis=0)
    scale = float(np.sqrt(((tokens - mean) ** 2).sum(axis=1).mean()))
    points = (tokens - mean) / np.linalg.norm(tokens - mean, axis=1, keepdims=True)
    rows, _ = kmeans2(points, ROWS, iter=15, minit="++", rng=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    tensors = {"dictionary": rows.astype(np.float32), "mean": mean, "scale": np.array([scale], np.float32)}
    save_checkpoint(folder / "dictionary", tensors, {"model": "pursuit", "k": 8})
    coder: Coder = load_coder(folder / "dictionary")
    return Source(cohort, store, coder)


def make_record(source: Source) -> Extracted:
    """One pass over the stained-cell tokens."""
    cells = Cells(
        source.read, [image.label for image in source.images], [image.unit for image in source.images],
        source.cohort.unit, source.store.encoder_digest,
    )  # fmt: skip
    return extract(cells, source.coder, Settings(rule="cell"))


def best_concepts(found: Extracted) -> list[int]:
    """The concept with the largest class share in each of the first two classes that has one in many cells."""
    mean = found.class_total / found.class_images[:, None]
    share = mean / np.maximum(mean.sum(axis=0), 1e-9)
    share[:, found.image_count < 20] = 0
    return [int(share[c].argmax()) for c in (0, 3)]


def draw(source: Source, found: Extracted, out: Path) -> None:
    """Five pictures."""
    chosen = best_concepts(found)
    images = [int(found.top_image[concept, 0]) for concept in chosen][:1]
    codes = code_images(source, {image: chosen for image in images}, lambda done, total: None)
    cells = [
        Cell(pixels_of(source, image), f"image {image} · {source.images[image].label}") for image in images
    ]
    stacked = np.stack([np.stack([codes[image][concept] for concept in chosen]) for image in images])
    save(patch_figure(cells, chosen, stacked), out / "patch.png")
    some = references(found, chosen[0])
    wanted = {one.image: chosen[:1] for one in some}
    coded = code_images(source, wanted, lambda done, total: None, "cell")
    shots = {
        i: Shot(pixels_of(source, i), values[chosen[0]], source.images[i].label, i)
        for i, values in coded.items()
    }
    save(sheet_figure(chosen[0], some, shots, "generated cells"), out / "sheet.png")
    shares = barcodes(found)
    apart = typical(shares, found.unit_tokens, 0)
    two = compare(shares, found.unit_class, 0, 1)
    names = found.facts.unit_names
    shown = [Shown(f"{names[unit]}: codes above {found.facts.tau:g}", shares[unit]) for unit in (0, 1)]
    save(barcode_figure(shown, apart, two, f"patient {names[0]} against {names[1]}"), out / "patient.png")
    classes = found.facts.classes
    difference = contrast(shares, found.unit_class, 0, 1)
    save(contrast_figure(difference, classes[0], classes[1], "patient", 24), out / "contrast.png")
    save(likeness_figure(likeness(shares, found.unit_class), classes, names), out / "likeness.png")


def save(figure: Figure, path: Path) -> None:
    """Write, then make it small enough for a repository: fewer pixels first, then fewer colours."""
    write_figure(figure, path)
    whole = Image.open(path).convert("RGB")
    for width, colours in ((1000, 0), (860, 0), (1000, 256), (860, 256)):
        picture = whole.copy()
        picture.thumbnail((width, 1400), Image.Resampling.LANCZOS)
        if colours:
            picture = picture.quantize(
                colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.FLOYDSTEINBERG
            )
        picture.save(path, optimize=True)
        if path.stat().st_size < MAX_BYTES:
            return
    sys.exit(f"Expected {path.name} below {MAX_BYTES} bytes, got {path.stat().st_size}.")


def main() -> None:
    """Make all pictures beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        source = make_source(Path(folder))
        draw(source, make_record(source), Path(__file__).parent)


if __name__ == "__main__":
    main()
