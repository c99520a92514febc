"""The token store, write side: encodes what is missing, shard by shard; kill -9 costs at most one shard.

A shard's record is written after its arrays, each file atomically, so what has a record is complete. A folder that
changes owner is emptied before the new key is written, so a record under a key was made under that key.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..canonical import canonical_json, parse_json
from ..cohort import CellImage, Cohort, open_rgb
from ..errors import DataError, MessageError, SetupError
from ..tensors import write_atomic
from .preprocess import to_input
from .store import TOKENS, URN, EncodesImages, Pixels, TokenStore, open_store, shard_files, store_key

SHARD = 64  # images; 257 tokens x 384 x 2 bytes: 12.6 MB a shard at d = 384
FLOAT16_MAX = 65504.0
OWN_FILES = ("tokens-*.npy", "masks-*.npy", "shard-*.json", "index.json", "golden.npy")
Progress = Callable[[int, int], None]


def build_store(
    cohort: Cohort,
    encoder: EncodesImages,
    folder: Path,
    *,
    batch: int = 8,
    progress: Progress | None = None,
    rebuild: bool = False,
) -> TokenStore:
    """Encode what is missing and open the store. Resumable: finished shards are kept after kill -9.

    A complete store is opened without loading the transformer. Two builders of one folder take turns.

    Args:
        batch: images per forward pass.
        progress: told (done, total) after every batch.
        rebuild: empty a store of another key instead of refusing.

    Raises:
        DataError: no image can be read.
        SetupError: another key in the folder, a damaged store, disk full or not writable, tokens beyond float16.
    """
    if batch < 1:
        raise SetupError(f"Expected batch >= 1, got batch={batch}.")
    key = store_key(cohort, encoder)
    with _disk_errors():
        folder.mkdir(parents=True, exist_ok=True)
        with _turn(folder):
            _claim(folder, key, rebuild)
            if not (folder / "index.json").exists():
                _Builder(cohort, encoder, folder, key, batch, progress).run()
            elif progress:
                progress(len(cohort.images), len(cohort.images))
    return open_store(folder, key=key)


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


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One builder at a time: a second one waits, then finds the store complete. The kernel ends it with us."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks: then nobody waits
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _claim(folder: Path, key: str, rebuild: bool) -> None:
    """Make the folder this key's; what a killed builder left half-written goes."""
    owner = folder / "key"
    found = owner.read_text() if owner.exists() else ""
    if found not in ("", key) and not rebuild:
        raise SetupError(
            "Expected a folder for this token store, found one of other images or another encoder.",
            hint="Delete it, or use another folder.",
        )
    if found != key:
        _remove(folder, OWN_FILES)
        write_atomic(owner, key.encode())
    _remove(folder, (".key.*.tmp", *(f".{pattern}.*.tmp" for pattern in OWN_FILES)))


def _remove(folder: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()


class _Builder:
    def __init__(
        self,
        cohort: Cohort,
        encoder: EncodesImages,
        folder: Path,
        key: str,
        batch: int,
        progress: Progress | None,
    ) -> None:
        self.cohort, self.encoder, self.folder, self.key = cohort, encoder, folder, key
        self.batch, self.progress, self.done = batch, progress or (lambda done, total: None), 0

    def run(self) -> None:
        if not (self.folder / "golden.npy").exists():
            write_atomic(self.folder / "golden.npy", _npy(self.encoder.canary()))
        stored: list[int] = []
        failed: list[int] = []
        shards: list[int] = []
        images = self.cohort.images
        with ThreadPoolExecutor(max_workers=1) as decoder:
            for start in range(0, len(images), SHARD):
                record = self._shard(start // SHARD, images[start : start + SHARD], decoder)
                stored += record["stored"]
                failed += record["failed"]
                shards.append(len(record["stored"]))
        if not stored:
            raise DataError(
                "Expected at least one readable image.", hint="cytosae site check names the files."
            )
        index = {
            "urn": URN, "key": self.key, "encoder": self.encoder.digest, "d": self.encoder.d,
            "stored": stored, "failed": failed, "shards": shards,
        }  # fmt: skip
        write_atomic(self.folder / "index.json", canonical_json(index))

    def _shard(
        self, number: int, images: tuple[CellImage, ...], decoder: ThreadPoolExecutor
    ) -> dict[str, list[int]]:
        """Images of one shard, encoded now or found finished: positions stored and failed."""
        if record := self._finished(number, images):
            self._advance(len(images))
            return record
        record = {"stored": [], "failed": []}
        tokens = [np.zeros((0, TOKENS, self.encoder.d), np.float16)]
        masks = [np.zeros((0, TOKENS), bool)]
        for group, pixels in self._decoded(images, decoder):
            good = [values for values in pixels if values is not None]
            for image, values in zip(group, pixels, strict=True):
                record["failed" if values is None else "stored"].append(image.index)
            if good:
                tokens.append(self._encode(good))
                masks.append(np.stack([self.encoder.mask_of(values) for values in good]))
            self._advance(len(group))
        tokens_file, masks_file = shard_files(self.folder, number)
        write_atomic(tokens_file, _npy(np.concatenate(tokens)))
        write_atomic(masks_file, _npy(np.concatenate(masks)))
        write_atomic(self._record_file(number), canonical_json(record))
        return record

    def _record_file(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.json"

    def _finished(self, number: int, images: tuple[CellImage, ...]) -> dict[str, list[int]] | None:
        """The record of a finished shard of these images; none when missing, unreadable or without its arrays."""
        try:
            found = parse_json(self._record_file(number).read_bytes())
            record = {name: [int(item) for item in found[name]] for name in ("stored", "failed")}
        except (FileNotFoundError, MessageError, KeyError, ValueError, TypeError):
            return None
        whole = sorted(record["stored"] + record["failed"]) == [image.index for image in images]
        return record if whole and all(path.is_file() for path in shard_files(self.folder, number)) else None

    def _decoded(
        self, images: tuple[CellImage, ...], decoder: ThreadPoolExecutor
    ) -> Iterator[tuple[tuple[CellImage, ...], list[Pixels | None]]]:
        """Batches of images and their pixels; the next is decoded while this one is in the transformer."""
        groups = [images[start : start + self.batch] for start in range(0, len(images), self.batch)]
        waiting = decoder.submit(self._decode, groups[0])
        for position, group in enumerate(groups):
            pixels = waiting.result()
            if position + 1 < len(groups):
                waiting = decoder.submit(self._decode, groups[position + 1])
            yield group, pixels

    def _decode(self, group: tuple[CellImage, ...]) -> list[Pixels | None]:
        pixels: list[Pixels | None] = []
        for image in group:
            try:
                pixels.append(self.encoder.pixels(open_rgb(image)))
            except DataError:
                pixels.append(None)  # counted as failed; `cytosae site check` names the file
        return pixels

    def _encode(self, pixels: list[Pixels]) -> NDArray[np.float16]:
        tokens = self.encoder.encode(torch.stack([to_input(values) for values in pixels])).numpy()
        if not np.isfinite(tokens).all() or np.abs(tokens).max() > FLOAT16_MAX:
            raise SetupError(
                "Expected finite tokens within float16.", hint="Are these the encoder's weights?"
            )
        return tokens.astype(np.float16)

    def _advance(self, images: int) -> None:
        self.done += images
        self.progress(self.done, len(self.cohort.images))


def _npy(values: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()
