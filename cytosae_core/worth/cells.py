"""A site's stored cells as every analysis here sees them: tokens, masks, class and unit of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..cohort import Cohort
from ..encoder import TokenStore
from ..errors import DataError
from .pooling import indices_of

Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]
TOKENS = 257


@dataclass(frozen=True)
class Cells:
    """Stored images of one site. `labels` and `units` are indices [images]; `unit` says what a unit is."""

    store: TokenStore
    labels: Ints
    units: Ints
    unit: str

    @property
    def images(self) -> int:
        """Number of stored images."""
        return self.store.n_images

    def read(self, start: int, stop: int) -> tuple[Floats32, NDArray[np.bool_]]:
        """Tokens [b, 257, d] float32 and cell masks [b, 257] of stored images."""
        return self.store.tokens(start, stop).astype(np.float32), self.store.mask()[start:stop]

    def draw(self, count: int, rng: np.random.Generator) -> Floats32:
        """Random tokens [count, d] of random images, CLS and background included."""
        image = rng.integers(self.images, size=count)
        return self.store.gather(image, rng.integers(TOKENS, size=count))


def cells_of(cohort: Cohort, store: TokenStore, classes: Sequence[str]) -> Cells:
    """The stored images of a cohort whose labels are all in `classes`."""
    images = [cohort.images[index] for index in store.image_index]
    labels = indices_of([image.label for image in images], classes)
    return Cells(store, labels, indices_of([image.unit for image in images]), cohort.unit)


def of_classes(
    cohort: Cohort, classes: Sequence[str], *, per_class: int | None = None, seed: int = 0
) -> Cohort:
    """The images of some classes, at most `per_class` of each at random.

    Raises:
        DataError: a class without images.
    """
    counts = cohort.counts()
    missing = [label for label in classes if not counts.get(label)]
    if missing:
        raise DataError(f"Expected images of {missing}, {cohort.name} has {sorted(counts)}.")
    chosen: list[int] = []
    for number, label in enumerate(classes):
        members = [i for i, image in enumerate(cohort.images) if image.label == label]
        order = np.random.default_rng([seed, number]).permutation(members)
        chosen += [int(i) for i in order[:per_class]]
    images = tuple(replace(cohort.images[i], index=new) for new, i in enumerate(sorted(chosen)))
    return Cohort(cohort.name, cohort.unit, images)
