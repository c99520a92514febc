"""The check that lab staff run before anything else: counts, unreadable files, duplicates, sizes, colours."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import DataError
from .cells import CellImage, Cohort, image_digest
from .reading import open_rgb
from .sandbox import protection
from .words import shown

MIN_UNITS = 11
MAX_UNREADABLE_SHARE = 0.05


@dataclass
class CohortCheck:
    """What was found. `unreadable_files` and `duplicates` name files and stay at the site.

    `reasons` counts unreadable files by reason; `decoder` says how this machine guards against hostile ones;
    `acquisition` and `label_map` are what studies will be told of microscope, stain and labels.
    """

    unit: str
    images: int
    units: int
    images_per_unit: tuple[int, int, int]
    classes: dict[str, int]
    units_per_class: dict[str, int]
    unreadable: int = 0
    unreadable_files: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    mean_rgb: tuple[float, float, float] | None = None
    problems: list[str] = field(default_factory=list)
    decoder: str = ""
    acquisition: dict[str, str] = field(default_factory=dict)
    label_map: str = ""

    @property
    def usable(self) -> bool:
        """At most 5 % unreadable, and something readable."""
        return self.unreadable <= MAX_UNREADABLE_SHARE * self.images and self.unreadable < self.images

    def to_dict(self) -> dict[str, Any]:
        """JSON values for local display."""
        return {
            "unit": self.unit,
            "images": self.images,
            "units": self.units,
            "images_per_unit_min_median_max": list(self.images_per_unit),
            "classes": self.classes,
            "units_per_class": self.units_per_class,
            "unreadable": self.unreadable,
            "unreadable_files": self.unreadable_files,
            "reasons": self.reasons,
            "duplicates": [list(pair) for pair in self.duplicates],
            "sizes": self.sizes,
            "mean_rgb": None if self.mean_rgb is None else [round(value, 1) for value in self.mean_rgb],
            "problems": self.problems,
            "usable": self.usable,
            "decoder": self.decoder,
            "acquisition": self.acquisition,
            "label_map": self.label_map,
        }


def check_cohort(cohort: Cohort, *, progress: Callable[[int, int], None] | None = None) -> CohortCheck:
    """Decode every image once and report; a run goes on past unreadable files and counts them."""
    per_unit = sorted(Counter(image.unit for image in cohort.images).values())
    of_class: dict[str, set[str]] = defaultdict(set)
    for image in cohort.images:
        of_class[image.label].add(image.unit)
    found = CohortCheck(
        cohort.unit,
        len(cohort.images),
        len(per_unit),
        (per_unit[0], per_unit[len(per_unit) // 2], per_unit[-1]),
        cohort.counts(),
        {label: len(units) for label, units in sorted(of_class.items())},
        problems=list(cohort.notes),
        acquisition=dict(cohort.acquisition),
        label_map=cohort.label_map,
    )
    _decode(cohort, found, progress)
    found.decoder = str(protection())
    _find_splits(cohort, found)
    _find_problems(found)
    return found


def _decode(cohort: Cohort, found: CohortCheck, progress: Callable[[int, int], None] | None) -> None:
    first: dict[str, CellImage] = {}
    colours, sizes = [], Counter[str]()
    for done, image in enumerate(cohort.images, 1):
        try:
            pixels = open_rgb(image)
        except DataError as error:
            found.unreadable += 1
            found.unreadable_files.append(shown(image.name))
            found.reasons[error.reason] = found.reasons.get(error.reason, 0) + 1
            continue
        sizes[f"{pixels.width}x{pixels.height}"] += 1
        colours.append(np.asarray(pixels.resize((16, 16))).reshape(-1, 3).mean(axis=0))
        twin = first.setdefault(image_digest(image), image)
        if twin is not image:
            found.duplicates.append((shown(twin.name), shown(image.name)))
            if (twin.unit, twin.label) != (image.unit, image.label):
                found.problems.append(
                    f"{shown(image.name)} is a copy of {shown(twin.name)} under another unit or label."
                )
        if progress:
            progress(done, len(cohort.images))
    found.sizes = dict(sizes.most_common(5))
    if colours:
        red, green, blue = (float(value) for value in np.mean(colours, axis=0))
        found.mean_rgb = (red, green, blue)


def _find_splits(cohort: Cohort, found: CohortCheck) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for image in cohort.images:
        splits[image.unit].add(image.split)
    torn = sum(len(names - {""}) > 1 for names in splits.values())
    if torn:
        found.problems.append(f"{torn} units are in more than one split: column split is not used.")


def _find_problems(found: CohortCheck) -> None:
    if found.unreadable:
        found.problems.append(f"{found.unreadable} of {found.images} files cannot be read.")
    if found.unit != "patient":
        found.problems.append(
            f"No patient column: numbers are counted per {found.unit}, and no epsilon applies."
        )
    for label, units in found.units_per_class.items():
        if units < MIN_UNITS:
            found.problems.append(f"Class {label} has {units} units: numbers about it will be suppressed.")
