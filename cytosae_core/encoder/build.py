"""The token store, write side: encodes what is missing, shard by shard; kill -9 costs at most one shard.

A shard's record is written after its arrays, each file atomically, so what has a record is complete. A folder that
changes owner is emptied before the new key is written, so a record under a key was made under that key.

Several builders may work on one folder: each shard has a lock of its own (`files.py`), and a builder passes over
shards that another one is at. `Lane(i, n)` restricts a builder to every n-th shard, for job arrays and file systems
without locks. Whoever finds every record present writes the index; the bytes are those of a single builder.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..canonical import canonical_json, parse_json
from ..cohort import CellImage, Cohort, open_rgb
from ..errors import DataError, MessageError, SetupError
from .files import LEFTOVERS, claim, remove, turn, write_array, write_bytes
from .image_facts import WIDTH, facts_of
from .preprocess import to_input
from .store import (
    TOKENS,
    URN,
    EncodesImages,
    Pixels,
    TokenStore,
    open_store,
    refuse_old,
    shard_files,
    store_key,
)

SHARD = 64  # images; 257 tokens x 384 x 2 bytes: 12.6 MB a shard at d = 384
FLOAT16_MAX = 65504.0
Progress = Callable[[int, int], None]
Record = dict[str, list[int]]
# Pixels, mask and facts of the picture; none when the image cannot be read.
Decoded = tuple[Pixels, NDArray[np.bool_], NDArray[np.float32]] | None


@dataclass(frozen=True)
class Lane:
    """Which shards a builder makes: those whose number is `index` modulo `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise SetupError(
                f"Expected a shard i/N with 0 <= i < N, got {self.index}/{self.count}.",
                hint="The first is 0/N.",
            )


def build_store(
    cohort: Cohort,
    encoder: EncodesImages,
    folder: Path,
    *,
    batch: int = 8,
    workers: int = 1,
    progress: Progress | None = None,
    rebuild: bool = False,
) -> TokenStore:
    """Encode what is missing and open the store. Resumable: finished shards are kept after kill -9.

    A complete store is opened without loading the transformer. Several builders of one folder share the work.

    Args:
        batch: images per forward pass.
        workers: threads that decode images while the transformer runs; the order of images does not depend on it.
        progress: told (done, total) after every batch.
        rebuild: empty a store of another key instead of refusing.

    Raises:
        DataError: no image can be read.
        SetupError: another key or version in the folder, a damaged store, disk full or not writable, tokens beyond
            float16.
    """
    plan = BuildPlan(batch=batch, workers=workers, progress=progress, rebuild=rebuild)
    key = store_key(cohort, encoder)  # reads every image: once
    _build(cohort, encoder, folder, key, plan)
    return open_store(folder, key=key)


@dataclass(frozen=True)
class BuildPlan:
    """How to build: see `build_store`. With a `lane`, only that part of the shards."""

    batch: int = 8
    workers: int = 1
    lane: Lane = field(default_factory=Lane)
    progress: Progress | None = None
    rebuild: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1 or self.workers < 1:
            raise SetupError(
                f"Expected batch >= 1 and workers >= 1, got batch={self.batch} workers={self.workers}."
            )


def build_shards(cohort: Cohort, encoder: EncodesImages, folder: Path, plan: BuildPlan) -> bool:
    """Encode the missing shards of a lane; true when the whole store is complete now. Raises as `build_store`."""
    return _build(cohort, encoder, folder, store_key(cohort, encoder), plan)


def _build(cohort: Cohort, encoder: EncodesImages, folder: Path, key: str, plan: BuildPlan) -> bool:
    with _disk_errors():
        folder.mkdir(parents=True, exist_ok=True)
        if not plan.rebuild:
            refuse_old(folder)
        with turn(folder):
            claim(folder, key, plan.rebuild)
        builder = _Builder(cohort, encoder, folder, key, plan)
        if not (folder / "index.json").exists():
            builder.run()
        elif plan.progress:
            plan.progress(builder.total, builder.total)
        return (folder / "index.json").exists()


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SetupError(
                "Expected free disk space for the token store.", hint="Free space, run again: it goes on."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise SetupError(
                "Expected a folder for the token store that can be written.", hint="Check its owner."
            ) from error
        raise


class _Builder:
    def __init__(
        self, cohort: Cohort, encoder: EncodesImages, folder: Path, key: str, plan: BuildPlan
    ) -> None:
        self.encoder, self.folder, self.key, self.plan = encoder, folder, key, plan
        images = cohort.images
        self.shards = [images[start : start + SHARD] for start in range(0, len(images), SHARD)]
        self.mine = range(plan.lane.index, len(self.shards), plan.lane.count)
        self.total = sum(len(self.shards[number]) for number in self.mine)
        self.done = 0
        self._decoding: dict[int, list[Future[Decoded]]] = {}

    def run(self) -> None:
        """The lane's shards, first those that nobody is at, then the rest; then the index if all are there."""
        ready: set[int] = set()
        with ThreadPoolExecutor(max_workers=self.plan.workers) as decoder:
            try:
                for wait in (False, True):
                    for number in self.mine:
                        if number not in ready and self._make(number, decoder, wait):
                            ready.add(number)
            finally:
                decoder.shutdown(cancel_futures=True)
        self._finish()

    def _make(self, number: int, decoder: ThreadPoolExecutor, wait: bool) -> bool:
        """Make one shard unless it is finished; false when another builder is at it and we do not wait."""
        if self._record(number) is None:
            with turn(self.folder, f"shard-{number:05d}", wait=wait) as free:
                if not free:
                    return False
                if self._record(number) is None:  # another builder may have finished it meanwhile
                    self._encode_shard(number, decoder)
                    return True
        self._advance(len(self.shards[number]))
        return True

    def _encode_shard(self, number: int, decoder: ThreadPoolExecutor) -> None:
        remove(self.folder, (f".*-{number:05d}.*.tmp",))  # what a killed builder left half-written
        record: Record = {"stored": [], "failed": []}
        tokens = [np.zeros((0, TOKENS, self.encoder.d), np.float16)]
        masks = [np.zeros((0, TOKENS), bool)]
        facts = [np.zeros((0, WIDTH), np.float32)]
        for group, decoded in self._groups(number, decoder):
            good = [item for item in decoded if item is not None]
            for image, item in zip(group, decoded, strict=True):
                record["failed" if item is None else "stored"].append(image.index)
            if good:
                tokens.append(self._encode([pixels for pixels, _, _ in good]))
                masks.append(np.stack([mask for _, mask, _ in good]))
                facts.append(np.stack([fact for _, _, fact in good]))
            self._advance(len(group))
        arrays: list[NDArray[Any]] = [np.concatenate(tokens), np.concatenate(masks), np.concatenate(facts)]
        for path, values in zip(shard_files(self.folder, number), arrays, strict=True):
            write_array(path, values)
        write_bytes(self._record_file(number), canonical_json(record))

    def _groups(
        self, number: int, decoder: ThreadPoolExecutor
    ) -> Iterator[tuple[tuple[CellImage, ...], list[Decoded]]]:
        """Batches of a shard's images with their pixels; this shard and the lane's next decode meanwhile."""
        waiting = self._submit(number, decoder)
        del self._decoding[number]
        following = number + self.plan.lane.count
        if following < len(self.shards) and self._record(following) is None:
            self._submit(following, decoder)
        images, batch = self.shards[number], self.plan.batch
        for start in range(0, len(images), batch):
            yield images[start : start + batch], [item.result() for item in waiting[start : start + batch]]

    def _submit(self, number: int, decoder: ThreadPoolExecutor) -> list[Future[Decoded]]:
        if number not in self._decoding:
            for item in (item for items in self._decoding.values() for item in items):
                item.cancel()  # a shard that another builder made
            self._decoding = {number: [decoder.submit(self._decode, image) for image in self.shards[number]]}
        return self._decoding[number]

    def _decode(self, image: CellImage) -> Decoded:
        try:
            picture = open_rgb(image)
            pixels = self.encoder.pixels(picture)
        except DataError:
            return None  # counted as failed; `cytosae site check` names the file
        return (
            pixels,
            self.encoder.mask_of(pixels),
            facts_of(picture),
        )  # facts: colours as the camera saw them

    def _encode(self, pixels: list[Pixels]) -> NDArray[np.float16]:
        tokens = self.encoder.encode(torch.stack([to_input(values) for values in pixels])).numpy()
        if not np.isfinite(tokens).all() or np.abs(tokens).max() > FLOAT16_MAX:
            raise SetupError(
                "Expected finite tokens within float16.", hint="Are these the encoder's weights?"
            )
        return tokens.astype(np.float16)

    def _record_file(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.json"

    def _record(self, number: int) -> Record | None:
        """The record of a finished shard of these images; none when missing, unreadable or without its arrays."""
        try:
            found = parse_json(self._record_file(number).read_bytes())
            record = {name: [int(item) for item in found[name]] for name in ("stored", "failed")}
        except (FileNotFoundError, MessageError, KeyError, ValueError, TypeError):
            return None
        expected = [image.index for image in self.shards[number]]
        whole = sorted(record["stored"] + record["failed"]) == expected
        return record if whole and all(path.is_file() for path in shard_files(self.folder, number)) else None

    def _finish(self) -> None:
        """Write the index if every shard of every lane is there."""
        records = [self._record(number) for number in range(len(self.shards))]
        found = [record for record in records if record is not None]
        if len(found) < len(records):
            return
        stored = [index for record in found for index in record["stored"]]
        if not stored:
            raise DataError(
                "Expected at least one readable image.", hint="cytosae site check names the files."
            )
        index = {
            "urn": URN, "key": self.key, "encoder": self.encoder.digest, "d": self.encoder.d, "stored": stored,
            "failed": [index for record in found for index in record["failed"]],
            "shards": [len(record["stored"]) for record in found],
        }  # fmt: skip
        with turn(self.folder):
            remove(self.folder, LEFTOVERS)
            if not (self.folder / "golden.npy").exists():
                write_array(self.folder / "golden.npy", self.encoder.canary())
            write_bytes(self.folder / "index.json", canonical_json(index))

    def _advance(self, images: int) -> None:
        self.done += images
        if self.plan.progress:
            self.plan.progress(self.done, self.total)
