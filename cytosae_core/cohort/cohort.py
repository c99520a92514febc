"""A folder of images and its table -> a checked cohort. The only reader of images in the product.

Three forms: `labels.csv` (columns `image`, `label`; optional `patient`, `slide`, `patient_or_slide`, `source_file`,
`split`; every other column is kept as an attribute), one folder per class, or a
public data set as published (`presets.py`). Beside them there may be `acquisition.yaml` and `label-map.yaml`
(`acquisition.py`), and `review.csv` (`ratings.py`). Nothing outside the folder is read: absolute paths, `..` and
links of both kinds are refused.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import defaultdict
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import DataError
from .acquisition import read_card, read_label_map
from .cells import SUFFIXES, CellImage, Cohort, refuse_links
from .presets import read_preset
from .ratings import read_ratings
from .table import Row, check_path, read_table
from .words import refusal, shown

# The unit of counting, best first: (name, columns that hold it).
UNITS = (
    ("patient", ("patient",)),
    ("slide", ("slide", "patient_or_slide")),
    ("source_file", ("source_file",)),
)
RESERVED = frozenset({"image", "label", "split", *(column for _, columns in UNITS for column in columns)})


def read_cohort(
    folder: Path,
    *,
    name: str | None = None,
    max_images: int | None = None,
    seed: int = 0,
    preset: str | None = None,
) -> Cohort:
    """Read a cohort's table (images are not decoded here). A label map, where there is one, is applied.

    Args:
        folder: holds `labels.csv`, or one sub-folder per class.
        name: the site's name (default: the folder's).
        max_images: keep at most this many, the same number per class as far as there are, spread over units.
        seed: of that choice.
        preset: the folder holds a public data set as published (`presets.NAMES`); then no labels.csv is read.

    Raises:
        DataError: no such folder, no images, missing column, empty label, duplicate row, a file that is missing,
            outside the folder, a link or of another type, two names that differ in case or accents' encoding only,
            a patient in two splits, an acquisition card, label map or review that is not of its closed form.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise DataError(f"Expected a folder of images at {folder}.", hint="A real folder, not a link.")
    unit, images = _read(folder, preset)
    if not images:
        raise DataError(f"Expected at least one image in {folder}.", hint=f"Types: {sorted(SUFFIXES)}.")
    _refuse_twins(folder, images)
    if unit == "patient":
        _refuse_leakage(images)
    card, mapping = read_card(folder), read_label_map(folder)
    notes = tuple(mapping.idle(images)) if mapping else ()
    images = mapping.apply(images) if mapping else images
    if max_images is not None and max_images < len(images):
        images = _subsample(images, max_images, seed)
    numbered = tuple(replace(image, index=index, root=folder) for index, image in enumerate(images))
    return Cohort(
        name or folder.name, unit, numbered, card, mapping.fact if mapping else "", notes, read_ratings(folder),
    )  # fmt: skip


def _read(folder: Path, preset: str | None) -> tuple[str, list[CellImage]]:
    if preset is not None:
        return read_preset(folder, preset)
    table = folder / "labels.csv"
    return _from_table(folder, table) if table.exists() else _from_folders(folder)


def _from_folders(folder: Path) -> tuple[str, list[CellImage]]:
    images = []
    for group in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(group.iterdir()):
            if path.suffix.lower() in SUFFIXES:
                relative = f"{group.name}/{path.name}"
                images.append(CellImage(0, _inside(folder, relative, (folder,)), group.name, relative))
    return "source_file", images


def _from_table(folder: Path, table: Path) -> tuple[str, list[CellImage]]:
    rows = read_table(table)
    unit, column = _unit_column(rows)
    seen: set[Path] = set()
    images = []
    for line, row in enumerate(rows, 2):
        label, relative = row["label"].strip(), row["image"].strip()
        path = _inside(folder, relative, (folder, folder / "images"), line)
        if path in seen:
            raise DataError(f"Expected every image once, labels.csv line {line} repeats one.", reason="DUP")
        seen.add(path)
        attributes = {key: value for key, value in row.items() if key not in RESERVED}
        own = row[column].strip() if column else relative
        images.append(CellImage(0, path, label, own, row.get("split", "").strip(), attributes))
    return unit, images


def _unit_column(rows: list[Row]) -> tuple[str, str]:
    for unit, columns in UNITS:
        for column in columns:
            if rows and all(row.get(column, "").strip() for row in rows):
                return unit, column
    return "source_file", ""


def _inside(folder: Path, relative: str, bases: tuple[Path, ...], line: int = 0) -> Path:
    """The file that a table cell names, if it is a plain image file inside the folder."""
    where = f" (labels.csv line {line})" if line else ""
    check_path(relative, line)
    if PurePosixPath(relative).suffix.lower() not in SUFFIXES:
        raise DataError(
            f"Expected an image of type {sorted(SUFFIXES)}, got '{shown(relative)}'{where}.", reason="FORMAT"
        )
    for base in bases:
        path = base / relative
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:  # a name too long, a folder that may not be entered
            raise refusal("IO", where=where) from None
        refuse_links(folder, path, where)
        if not stat.S_ISREG(found.st_mode):
            raise refusal("NOT_REG", where=where)
        return path
    raise DataError(
        f"Expected an image file, '{shown(relative)}' is missing{where}.",
        hint="Copy it, or drop the row.",
        reason="IO",
    )


def _refuse_twins(folder: Path, images: list[CellImage]) -> None:
    """Names that are one name on another file system: `a.png` and `A.png`, two encodings of the same letter."""
    seen: set[str] = set()
    for image in images:
        if image.member:
            continue
        name = unicodedata.normalize("NFC", str(image.path.relative_to(folder))).casefold()
        if name in seen:
            raise DataError(
                f"Expected names that differ in more than case or encoding, '{shown(image.name)}' does not.",
                hint="Rename one, or delete the copy.",
                reason="DUP",
            )
        seen.add(name)


def _refuse_leakage(images: list[CellImage]) -> None:
    split_of: dict[str, str] = {}
    for image in images:
        if image.split and split_of.setdefault(image.unit, image.split) != image.split:
            raise DataError(
                "Expected every patient in one split of labels.csv.",
                hint="Images of one patient belong together: correct column split.",
                reason="LEAKAGE",
            )


def _subsample(images: list[CellImage], limit: int, seed: int) -> list[CellImage]:
    """The same number per class as far as there are; within a class, units in turn."""
    queues: dict[str, list[int]] = {}
    for label in sorted({image.label for image in images}):
        members = [index for index, image in enumerate(images) if image.label == label]
        queues[label] = _spread(images, members, np.random.default_rng([seed, len(queues)]))
    chosen: list[int] = []
    while len(chosen) < limit and any(queues.values()):
        for queue in queues.values():
            if queue and len(chosen) < limit:
                chosen.append(queue.pop(0))
    return [images[index] for index in sorted(chosen)]


def _spread(images: list[CellImage], members: list[int], rng: np.random.Generator) -> list[int]:
    by_unit: dict[str, list[int]] = defaultdict(list)
    for index in rng.permutation(members):
        by_unit[images[index].unit].append(int(index))
    order: list[int] = []
    while by_unit:
        for unit in list(by_unit):
            order.append(by_unit[unit].pop(0))
            if not by_unit[unit]:
                del by_unit[unit]
    return order
