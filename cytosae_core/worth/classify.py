"""Subtype classification from concepts, against everything that could do it without them: one table.

    barcode             share of the unit's cell tokens on which a concept fires
    codes               mean code of every concept
    raw, mean           mean token; raw, attention: learned pooling over tokens (images, per patient)
    colour histogram    RGB histogram of the image as it is: what needs no model at all
    random dictionary   codes of random rows; shuffled labels: labels exchanged between units

Rows are units (patients, slides) with one feature vector each, or single images where units are images or hold
several classes; the result says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cohort import Cohort, open_rgb
from ..concepts.coder import Coder
from ..concepts.scores import score_images
from ..errors import DataError
from .attention import make_bags
from .cells import Cells
from .crossval import OUTER, Logistic, Method, Scores, check_units, nested
from .dictionaries import random_coder

Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]
LEVELS = ("auto", "unit", "image")
BAG = 32  # tokens per image, or images per unit, that attention sees
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Rows:
    """What is classified: `bags` (image indices of each row), `labels`, `units` [rows], `level` in words."""

    bags: list[Ints]
    labels: Ints
    units: Ints
    level: str
    dropped: int

    def mean(self, values: Floats32) -> Floats32:
        """Mean over each row's images: [images, w] -> [rows, w]."""
        return np.stack([values[bag].mean(axis=0) for bag in self.bags])


def rows_of(cells: Cells, level: str = "auto") -> Rows:
    """Rows at the level of units (those with one class only; the others are counted) or of single images.

    `auto`: units when they are patients or slides and most have a single class, else images.

    Raises:
        DataError: an unknown level, or units asked for where each is one image.
    """
    if level not in LEVELS:
        raise DataError(f"Expected a level in {LEVELS}, got level={level!r}.")
    names = np.unique(cells.units)
    bags = [np.flatnonzero(cells.units == name) for name in names]
    pure = [bag for bag in bags if len(np.unique(cells.labels[bag])) == 1]
    if level == "unit" and len(names) == cells.images:
        raise DataError(
            f"Expected several images per {cells.unit}, every one has a single image.", hint="--level image"
        )
    by_unit = level == "unit" or (
        level == "auto" and cells.unit in ("patient", "slide") and 2 * len(pure) > len(bags)
    )
    if not by_unit:
        single = [np.array([i]) for i in range(cells.images)]
        return Rows(single, cells.labels, cells.units, f"image (folds and intervals by {cells.unit})", 0)
    labels = np.array([cells.labels[bag[0]] for bag in pure], np.int64)
    return Rows(pure, labels, np.arange(len(pure)), cells.unit, len(bags) - len(pure))


def classify(
    cells: Cells, cohort: Cohort, coder: Coder, classes: tuple[str, ...], *, level: str = "auto", seed: int = 0,
    report: Report = lambda name, done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """The table: method -> weighted F1, AUROC (with intervals), and their differences to `raw, mean`.

    Raises:
        DataError: too few units of a class, or of classes.
    """
    rows = rows_of(cells, level)
    warning = check_units(rows.labels, rows.units, classes, rows.level)
    methods = _methods(cells, cohort, coder, rows, seed)
    shuffled = _shuffled(rows, seed)
    scores, draws, out = Scores(rows.labels, rows.units, seed=seed), {}, {}
    for number, (name, method) in enumerate(methods.items()):
        found, chosen = nested(method, rows.labels, rows.units, seed=seed, tick=_tick(report, name))
        draws[name] = scores.draws(found)
        out[name] = _values(scores.of(found), chosen)
        report("methods", number + 1, len(methods) + 1)
    found, chosen = nested(methods["codes"], shuffled, rows.units, seed=seed)
    out["shuffled labels"] = _values(Scores(shuffled, rows.units, seed=seed).of(found), chosen)
    report("methods", len(methods) + 1, len(methods) + 1)
    counts = np.bincount(rows.labels, minlength=len(classes)).tolist()
    return {
        "level": rows.level, "rows": dict(zip(classes, counts, strict=True)), "warning": warning,
        "units": len(np.unique(rows.units)), "dropped_units": rows.dropped, "methods": out,
        "difference_to_raw_mean": _differences(draws),
    }  # fmt: skip


def colour_histogram(cohort: Cohort, index: Ints) -> Floats32:
    """Joint RGB histogram (4 x 4 x 4) of each image, at 64 x 64, colours as they are: [images, 64]."""
    out = np.zeros((len(index), 64), np.float32)
    for row, position in enumerate(index):
        pixels = np.asarray(open_rgb(cohort.images[position]).resize((64, 64))).reshape(-1, 3) // 64
        out[row] = np.bincount(pixels @ np.array([16, 4, 1]), minlength=64) / len(pixels)
    return out


def _methods(cells: Cells, cohort: Cohort, coder: Coder, rows: Rows, seed: int) -> Mapping[str, Method]:
    own = score_images(cells.read, cells.images, coder.model, coder.scale)
    control = random_coder(coder, seed=seed)
    random = score_images(cells.read, cells.images, control.model, control.scale)
    features = {
        "barcode": own.fired, "codes": own.mean, "raw, mean": own.embedding, "random dictionary": random.mean,
        "colour histogram": colour_histogram(cohort, cells.store.image_index),
    }  # fmt: skip
    methods: dict[str, Method] = {name: Logistic(rows.mean(values)) for name, values in features.items()}
    if rows.level.startswith("image"):
        bags = [_cell_tokens(cells, coder, i) for i in range(cells.images)]
    else:
        bags = [own.embedding[bag] for bag in rows.bags]
    return {**methods, "raw, attention": make_bags(bags, BAG, seed=seed)}


def _cell_tokens(cells: Cells, coder: Coder, index: int) -> Floats32:
    tokens, mask = cells.read(index, index + 1)
    found = coder.scale.apply(tokens[0][mask[0]])
    return found if len(found) <= BAG else found[np.linspace(0, len(found) - 1, BAG).astype(int)]


def _shuffled(rows: Rows, seed: int) -> Ints:
    """Labels exchanged between rows (between units where rows are units)."""
    return np.asarray(np.random.default_rng([seed, 7]).permutation(rows.labels))


def _values(scores: tuple[Any, Any], chosen: list[float]) -> dict[str, Any]:
    f1, auroc = scores
    return {"weighted_f1": f1.to_dict(), "auroc": auroc.to_dict(), "chosen": chosen}


def _differences(draws: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    from .intervals import estimate_of

    out: dict[str, Any] = {}
    for name, pair in draws.items():
        gaps = [own - raw for own, raw in zip(pair, draws["raw, mean"], strict=True)]
        f1, auroc = (estimate_of(float(gap[0]), gap[1:]) for gap in gaps)
        out[name] = {"weighted_f1": f1.to_dict(), "auroc": auroc.to_dict()}
    return out


def _tick(report: Report, name: str) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        report(f"folds: {name}", done, max(done, OUTER))

    return tick
