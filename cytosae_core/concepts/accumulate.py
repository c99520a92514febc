"""The running sums of a streaming pass: fixed arrays that grow with concepts, classes and patients, not images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .active import Active
from .extracted import EDGES, STRATA

Array = NDArray[Any]
TOP = 10
# Tables per patient take 8 bytes x units x n; above this they are left out (no patient ids: every image is a unit).
UNIT_TABLE_BYTES = 1 << 30


@dataclass(frozen=True)
class Layout:
    """Sizes of a pass, and what is known of every stored image.

    Attributes:
        n, classes, units: number of concepts, classes, units.
        label, unit: [N] class (-1 unknown) and unit index of every stored image.
        tau: global threshold of a barcode.
        pairs: [m, 2] concepts whose co-firing is counted.
        seed: of the random choice per stratum.
    """

    n: int
    classes: int
    units: int
    label: NDArray[np.int64]
    unit: NDArray[np.int64]
    tau: float
    pairs: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    seed: int = 0

    @property
    def unit_rows(self) -> int:
        """Units for which barcodes are kept: all, or none when the table would be too large."""
        return self.units if 8 * self.units * self.n <= UNIT_TABLE_BYTES else 0


def check_pairs(pairs: Array, n: int) -> NDArray[np.int64]:
    """Pairs [m, 2] of different concepts below n; DataError otherwise."""
    values = np.asarray(pairs, np.int64).reshape(-1, 2)
    if len(values) and (values.min() < 0 or values.max() >= n or (values[:, 0] == values[:, 1]).any()):
        raise DataError(
            f"Expected pairs of two different concepts in 0 .. {n - 1}.", hint="For example 3:17."
        )
    return values


def empty_state(layout: Layout) -> dict[str, Array]:
    """All sums at zero: names and shapes of `Extracted`, plus `priority` [n, 10] of the random strata images."""
    n, c, u, levels = layout.n, layout.classes, layout.unit_rows, len(STRATA) - 1

    def zeros(*shape: int, kind: Any = np.float64) -> Array:
        return np.zeros(shape, kind)

    return {
        "images": zeros(1, kind=np.int64), "tokens": zeros(1, kind=np.int64),
        "image_count": zeros(n, kind=np.int64), "token_count": zeros(n, kind=np.int64),
        "total": zeros(n), "square": zeros(n), "image_total": zeros(n), "image_square": zeros(n),
        "histogram": zeros(n, len(EDGES) - 1, kind=np.int64),
        "class_images": zeros(c, kind=np.int64), "class_tokens": zeros(c, kind=np.int64),
        "class_image_count": zeros(c, n, kind=np.int64), "class_total": zeros(c, n), "class_square": zeros(c, n),
        "unit_images": zeros(layout.units, kind=np.int64), "unit_tokens": zeros(layout.units, kind=np.int64),
        "unit_counts": zeros(u, n, kind=np.int32), "unit_calibrated": zeros(u, n, kind=np.int32),
        "threshold": np.full(n, np.nan), "unit_held_out": zeros(layout.units, kind=np.int8),
        "top_image": np.full((n, TOP), -1, np.int64), "top_mean": zeros(n, TOP, kind=np.float32),
        "top_peak_image": np.full((n, TOP), -1, np.int64), "top_peak": zeros(n, TOP, kind=np.float32),
        "strata_image": np.full((n, levels), -1, np.int64), "strata_value": zeros(n, levels, kind=np.float32),
        "priority": np.full((n, levels), np.inf), "pair_tokens": zeros(len(layout.pairs), kind=np.int64),
        "pair_images": zeros(len(layout.pairs), kind=np.int64),
    }  # fmt: skip


class Accumulator:
    """Adds one image after the other to a state; `state` can be saved between images and taken up again."""

    def __init__(self, layout: Layout, state: dict[str, Array] | None = None) -> None:
        self.layout = layout
        self.state = empty_state(layout) if state is None else state
        self._pair_rows: dict[int, Array] = {}
        self._paired = set(layout.pairs.ravel().tolist())

    def begin(self, image: int, tokens: int) -> None:
        """Count an image of `tokens` tokens; its active codes follow with `add`."""
        state, label, unit = self.state, self.layout.label[image], self.layout.unit[image]
        state["images"][0] += 1
        state["tokens"][0] += tokens
        state["unit_images"][unit] += 1
        state["unit_tokens"][unit] += tokens
        if label >= 0:
            state["class_images"][label] += 1
            state["class_tokens"][label] += tokens

    def add(self, image: int, part: Active) -> None:
        """Add the active rows of stored image `image`; each concept comes once per image."""
        if not len(part.concepts):
            return
        rows, codes = part.concepts, part.codes
        fired = codes > 0
        mean = codes.mean(axis=1, dtype=np.float64)
        peak = codes.max(axis=1)
        self._sums(rows, codes, fired, mean)
        self._histogram(rows, codes, fired)
        self._class_and_unit(image, rows, codes, mean)
        _keep_top(self.state["top_mean"], self.state["top_image"], rows, mean.astype(np.float32), image)
        _keep_top(self.state["top_peak"], self.state["top_peak_image"], rows, peak, image)
        self._strata(image, rows, peak)
        for place in np.flatnonzero(np.isin(rows, self.layout.pairs)) if self._paired else ():
            self._pair_rows[int(rows[place])] = fired[place]

    def end(self) -> None:
        """Close an image: count the pairs that fired together."""
        for index, (one, other) in enumerate(self.layout.pairs.tolist()):
            if one in self._pair_rows and other in self._pair_rows:
                self.state["pair_images"][index] += 1
                self.state["pair_tokens"][index] += int((self._pair_rows[one] & self._pair_rows[other]).sum())
        self._pair_rows.clear()

    def _sums(self, rows: Array, codes: Array, fired: Array, mean: Array) -> None:
        state = self.state
        state["image_count"][rows] += 1
        state["token_count"][rows] += fired.sum(axis=1)
        state["total"][rows] += mean * codes.shape[1]
        state["square"][rows] += np.einsum("at,at->a", codes, codes, dtype=np.float64)
        state["image_total"][rows] += mean
        state["image_square"][rows] += mean**2

    def _histogram(self, rows: Array, codes: Array, fired: Array) -> None:
        bins = len(EDGES) - 1
        place, _ = np.nonzero(fired)
        level = bin_of(codes[fired])
        np.add.at(self.state["histogram"].reshape(-1), rows[place] * bins + level, 1)

    def _class_and_unit(self, image: int, rows: Array, codes: Array, mean: Array) -> None:
        state, label, unit = self.state, self.layout.label[image], self.layout.unit[image]
        if label >= 0:
            state["class_image_count"][label, rows] += 1
            state["class_total"][label, rows] += mean
            state["class_square"][label, rows] += mean**2
        if not self.layout.unit_rows:
            return
        state["unit_counts"][unit, rows] += (codes > np.float32(self.layout.tau)).sum(axis=1, dtype=np.int32)
        if state["unit_held_out"][unit]:
            above = codes > state["threshold"][rows, None].astype(np.float32)
            state["unit_calibrated"][unit, rows] += above.sum(axis=1, dtype=np.int32)

    def _strata(self, image: int, rows: Array, peak: Array) -> None:
        """One image per level of peak activation: the one with the smallest random number."""
        level = np.searchsorted(STRATA, peak, side="right") - 1
        inside = (level >= 0) & (level < len(STRATA) - 1)
        rows, level, peak = rows[inside], level[inside], peak[inside]
        draw = float(np.random.default_rng([self.layout.seed, image]).random())
        better = draw < self.state["priority"][rows, level]
        rows, level = rows[better], level[better]
        self.state["priority"][rows, level] = draw
        self.state["strata_image"][rows, level] = image
        self.state["strata_value"][rows, level] = peak[better]


def bin_of(values: Array) -> NDArray[np.int64]:
    """Bin of `EDGES` for positive codes; values outside go to the first and the last bin."""
    step = np.log10(EDGES[1]) - np.log10(EDGES[0])
    place = np.floor((np.log10(values) - np.log10(EDGES[0])) / step)
    return np.asarray(np.clip(place, 0, len(EDGES) - 2), dtype=np.int64)


def _keep_top(best: Array, owner: Array, rows: Array, values: Array, image: int) -> None:
    """Insert `values` of concepts `rows` into their descending lists `best` [n, 10]; an equal one stays behind."""
    chosen = values > best[rows, -1]
    rows, values = rows[chosen], values[chosen]
    if not len(rows):
        return
    place = (best[rows] >= values[:, None]).sum(axis=1)
    column = np.arange(best.shape[1])[None, :]
    source = np.where(column > place[:, None], column - 1, column)
    here = column == place[:, None]
    best[rows] = np.where(here, values[:, None], np.take_along_axis(best[rows], source, axis=1))
    owner[rows] = np.where(here, image, np.take_along_axis(owner[rows], source, axis=1))
