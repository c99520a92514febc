"""From stored tokens and a dictionary to all statistics in one streaming pass.

Every image is coded once. Memory does not grow with the number of images, and tokens x concepts exist only for one
block of concepts. A pass that is stopped goes on where it was (`progress.safetensors`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..canonical import digest_of
from ..cohort import split_units
from ..errors import CytosaeError, DataError
from ..tensors import pack_tensors, unpack_tensors, write_atomic
from .accumulate import Accumulator, Layout, check_pairs, empty_state
from .active import ActiveCoder
from .coder import Coder
from .extracted import ARRAYS, EDGES, Extracted, Facts
from .scores import ReadImages

Array = NDArray[Any]
RULES = ("all", "patches", "cell")
CHUNK = 8  # images per product
SAVE_EVERY = 60.0  # seconds between two saved states
TAU = 0.2  # CytoSAE's threshold (compute_patient_wise_sae_activation.py)
CALIBRATED_SHARE = 0.01  # share of calibration tokens that may exceed a concept's threshold


@dataclass(frozen=True)
class Cells:
    """Stored images to go through: `read(start, stop)` gives tokens [b, 257, d] and masks [b, 257].

    `labels` and `units` have one entry per stored image; `unit` says what a unit is; `encoder` is the digest.
    """

    read: ReadImages
    labels: Sequence[str]
    units: Sequence[str]
    unit: str
    encoder: str


@dataclass(frozen=True)
class Settings:
    """How to count.

    Attributes:
        rule: tokens that count, one of `RULES`.
        tau: global barcode threshold.
        calibrate: share of the units whose tokens only set the per-concept thresholds (0: none).
        threshold: [n] thresholds from elsewhere (then every unit gets a calibrated barcode), and where from.
        pairs: [m, 2] concepts whose co-firing is counted.
        seed: of the calibration split and the strata.
    """

    rule: str = "all"
    tau: float = TAU
    calibrate: float = 0.0
    threshold: NDArray[np.float64] | None = None
    origin: str = ""
    pairs: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    seed: int = 0

    def check(self, n: int) -> None:
        """DataError when a value cannot be meant."""
        if self.rule not in RULES:
            raise DataError(f"Expected tokens in {RULES}, got {self.rule!r}.")
        if not self.tau >= 0:
            raise DataError(f"Expected tau >= 0, got tau={self.tau}.")
        if not 0 <= self.calibrate < 1:
            raise DataError(f"Expected 0 <= calibrate < 1, got calibrate={self.calibrate}.")
        if self.threshold is not None and (self.threshold.shape != (n,) or self.calibrate):
            raise DataError(f"Expected thresholds for n={n} concepts, and no calibration share beside them.")
        check_pairs(self.pairs, n)


def extract(
    cells: Cells,
    coder: Coder,
    settings: Settings,
    *,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Extracted:
    """Run the pass; with a `folder`, save its state now and then and go on from a saved one.

    Raises:
        DataError: no image, settings that cannot be meant.
    """
    if not len(cells.labels):
        raise DataError("Expected at least one stored image.", hint="Build the token store first.")
    settings.check(coder.n)
    return _Pass(cells, coder, settings, folder, progress or (lambda done, total: None)).run()


class _Pass:
    def __init__(
        self,
        cells: Cells,
        coder: Coder,
        settings: Settings,
        folder: Path | None,
        progress: Callable[[int, int], None],
    ) -> None:
        self.cells, self.settings, self.progress = cells, settings, progress
        self.file = folder / "progress.safetensors" if folder else None
        self.classes = tuple(sorted(set(cells.labels)))
        self.unit_names, unit = np.unique(np.asarray(cells.units), return_inverse=True)
        label = np.searchsorted(np.asarray(self.classes), np.asarray(cells.labels)).astype(np.int64)
        pairs = check_pairs(settings.pairs, coder.n)
        self.layout = Layout(
            coder.n, len(self.classes), len(self.unit_names), label, unit.astype(np.int64), settings.tau,
            pairs, settings.seed,
        )  # fmt: skip
        self.coder, self.active = coder, ActiveCoder(coder)
        self.key = self._key()
        self.order, self.calibration = self._order()

    def _key(self) -> str:
        """What a saved state must have been made from."""
        given = self.settings
        outside = [] if given.threshold is None else given.threshold.tolist()
        return digest_of(
            {
                "dictionary": self.coder.sha256, "encoder": self.cells.encoder, "rule": given.rule,
                "tau": given.tau, "calibrate": given.calibrate, "seed": given.seed, "outside": outside,
                "labels": list(self.cells.labels), "units": list(self.cells.units),
                "pairs": self.layout.pairs.tolist(),
            }
        )  # fmt: skip

    def _order(self) -> tuple[Array, int]:
        """Stored images, calibration units first, and how many images those have."""
        everything = np.arange(len(self.layout.label))
        if not self.settings.calibrate:
            return everything, 0
        share = self.settings.calibrate
        part = split_units(
            self.cells.units, self.cells.labels, (share, 1 - share), salt=f"calibrate|{self.settings.seed}"
        )
        if not (part == 0).any() or not (part == 1).any():
            raise DataError("Expected units on both sides of the calibration split.", hint="Add patients.")
        return np.concatenate([everything[part == 0], everything[part == 1]]), int((part == 0).sum())

    def run(self) -> Extracted:
        start, state = self._resume()
        sums = Accumulator(self.layout, state)
        done, saved = start, time.monotonic()
        if self.settings.threshold is not None:
            sums.state["threshold"][:] = self.settings.threshold
            sums.state["unit_held_out"][:] = 1
        try:
            for batch in self._batches(start):
                if done == self.calibration and self.calibration:
                    self._calibrate(sums)
                self._add(sums, batch)
                done += len(batch)
                self.progress(done, len(self.order))
                if time.monotonic() - saved > SAVE_EVERY:
                    self._save(sums, done)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            self._save(sums, done)
            raise
        self._forget()
        return self._result(sums.state)

    def _batches(self, start: int) -> list[Array]:
        """Images in order; no batch spans the end of the calibration part."""
        parts = [self.order[start : self.calibration], self.order[max(start, self.calibration) :]]
        return [part[i : i + CHUNK] for part in parts for i in range(0, len(part), CHUNK)]

    def _add(self, sums: Accumulator, batch: Array) -> None:
        tokens = []
        for image in batch.tolist():
            values, mask = self.cells.read(image, image + 1)
            tokens.append(np.ascontiguousarray(values[0][self._counted(mask[0])], dtype=np.float32))
        collected: list[list[Any]] = [[] for _ in batch]
        for part in self.active.active_codes(tokens):
            collected[part.image].append(part)
        for image, values, parts in zip(batch.tolist(), tokens, collected, strict=True):
            sums.begin(image, len(values))
            for part in parts:
                sums.add(image, part)
            sums.end()

    def _counted(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if self.settings.rule == "cell":
            return mask
        counted = np.ones(len(mask), bool)
        counted[0] = self.settings.rule == "all"
        return counted

    def _calibrate(self, sums: Accumulator) -> None:
        """Thresholds from the calibration units, which then stand outside the calibrated barcodes."""
        state = sums.state
        if np.isnan(state["threshold"]).all():
            state["threshold"][:] = thresholds(state["histogram"], int(state["tokens"][0]))
            state["unit_held_out"][:] = 1
            state["unit_held_out"][np.unique(self.layout.unit[self.order[: self.calibration]])] = 0

    def _resume(self) -> tuple[int, dict[str, Array] | None]:
        """Where a stopped pass was, and its sums; the start when there is none or it is of other cells."""
        if self.file is None or not self.file.is_file():
            return 0, None
        with suppress(OSError, CytosaeError, KeyError, ValueError):
            found = unpack_tensors(self.file.read_bytes())
            key, done = bytes(found.pop("key")).decode(), int(found.pop("done")[0])
            shapes = {name: values.shape for name, values in empty_state(self.layout).items()}
            if key == self.key and {name: values.shape for name, values in found.items()} == shapes:
                return done, {name: values.copy() for name, values in found.items()}
        return 0, None

    def _save(self, sums: Accumulator, done: int) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        key = np.frombuffer(self.key.encode(), np.uint8)
        write_atomic(self.file, pack_tensors({**sums.state, "key": key, "done": np.array([done])}))

    def _forget(self) -> None:
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _result(self, state: dict[str, Array]) -> Extracted:
        given, cells = self.settings, self.cells
        calibration = given.origin or (f"{given.calibrate:g} of the units" if given.calibrate else "")
        facts = Facts(
            model=self.coder.model.kind, n=self.coder.n, d=self.coder.d, dictionary=self.coder.sha256,
            encoder=cells.encoder, token_rule=given.rule, tau=given.tau, unit=cells.unit, classes=self.classes,
            unit_names=tuple(str(name) for name in self.unit_names), calibration=calibration,
        )  # fmt: skip
        state = {**state, "pairs": self.layout.pairs, "unit_class": self._unit_class()}
        return Extracted(facts, **{name: state[name] for name in ARRAYS})

    def _unit_class(self) -> Array:
        """Class of every unit [u]; -1 when its images have several."""
        found = np.full(self.layout.units, -2, np.int64)
        for unit, label in zip(self.layout.unit, self.layout.label, strict=True):
            found[unit] = label if found[unit] in (-2, label) else -1
        return found


def thresholds(histogram: NDArray[np.int64], tokens: int) -> NDArray[np.float64]:
    """Per concept the smallest bin edge that at most 1 % of `tokens` tokens exceed: [n] from [n, bins]."""
    above = histogram[:, ::-1].cumsum(axis=1)[:, ::-1]  # tokens in this bin or a higher one
    reach = np.concatenate([above, np.zeros((len(histogram), 1), np.int64)], axis=1)
    first = np.argmax(reach <= CALIBRATED_SHARE * tokens, axis=1)
    return np.asarray(EDGES[first], dtype=np.float64)
