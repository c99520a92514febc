"""The token store: every image's tokens and cell mask on disk, written once, never recomputed.

    index.json              urn, key, encoder digest, width, images in order, failed ones, digest of the golden file
    golden.npy              features of the golden cells, float32 [8, d]
    tokens-NNNNN.npy        float16 [b, 257, d], SHARD images each        masks-NNNNN.npy   bool [b, 257]
    shard-NNNNN.json        written last: which images the shard holds. A shard without it does not exist.

`key` covers encoder, preprocessing and the images' bytes in order; another key in a folder is refused. Plain .npy
files are opened as memory maps (never pickled), so memory is flat in the number of images.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..canonical import canonical_json, digest_of, parse_json
from ..cohort import CellImage, Cohort, image_digest, open_rgb
from ..errors import DataError, SetupError
from ..tensors import write_atomic

URN = "urn:cytosae:tokens:v1"
SHARD = 64  # images; 257 tokens x 384 x 2 bytes: 12.6 MB a shard at d = 384
FLOAT16_MAX = 65504.0
Progress = Callable[[int, int], None]
Pixels = NDArray[np.uint8]


class EncodesImages(Protocol):
    """What the store needs of an encoder."""

    d: int
    digest: str

    def pixels(self, image: Any) -> Pixels: ...

    def mask_of(self, pixels: Pixels) -> NDArray[np.bool_]: ...

    def encode(self, images: torch.Tensor) -> torch.Tensor: ...

    def canary(self) -> NDArray[np.float32]: ...


def store_key(cohort: Cohort, encoder: EncodesImages) -> str:
    """SHA-256 over the encoder's digest and the images' digests in order."""
    return digest_of(
        {"urn": URN, "encoder": encoder.digest, "images": [image_digest(i) for i in cohort.images]}
    )


class TokenStore:
    """A complete store, opened. `image_index` [n] maps stored images to positions in the cohort."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder, self.key, self.d = folder, str(index["key"]), int(index["d"])
        self.encoder_digest = str(index["encoder"])
        self.image_index = np.array(index["stored"], dtype=np.int64)
        self.failed = tuple(int(item) for item in index["failed"])
        self.n_images = len(self.image_index)
        self.canary: NDArray[np.float32] = np.load(folder / "golden.npy", allow_pickle=False)
        self._starts = np.cumsum([0, *index["shards"]])
        self._shards = [_map(folder / f"tokens-{number:05d}.npy") for number in range(len(index["shards"]))]
        masks = [np.load(folder / f"masks-{n:05d}.npy", allow_pickle=False) for n in range(len(self._shards))]
        self._mask: NDArray[np.bool_] = np.concatenate(masks)

    def tokens(self, start: int, stop: int) -> NDArray[np.float16]:
        """Tokens [b, 257, d] float16 of stored images start .. stop."""
        stop = min(stop, self.n_images)
        parts = []
        for number, shard in enumerate(self._shards):
            low, high = max(start, self._starts[number]), min(stop, self._starts[number + 1])
            if low < high:
                parts.append(shard[low - self._starts[number] : high - self._starts[number]])
        return np.concatenate(parts) if parts else np.zeros((0, 257, self.d), np.float16)

    def mask(self) -> NDArray[np.bool_]:
        """Stained-cell tokens [n, 257], CLS false."""
        return self._mask

    def gather(self, image: NDArray[np.int64], token: NDArray[np.int64]) -> NDArray[np.float32]:
        """Single tokens [m, d] float32: token `token[i]` of stored image `image[i]`."""
        out = np.empty((len(image), self.d), np.float32)
        number = np.searchsorted(self._starts, image, side="right") - 1
        for shard in np.unique(number):
            chosen = np.flatnonzero(number == shard)
            order = chosen[np.lexsort((token[chosen], image[chosen]))]
            out[order] = self._shards[shard][image[order] - self._starts[shard], token[order]]
        return out


def _map(path: Path) -> NDArray[np.float16]:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def open_store(folder: Path, *, key: str | None = None) -> TokenStore:
    """Open a complete store; SetupError when incomplete, damaged or of another key."""
    try:
        index = parse_json((folder / "index.json").read_bytes())
        if index["urn"] != URN or (key is not None and index["key"] != key):
            raise SetupError(
                "Expected the token store of these images and this encoder.",
                hint="Use another folder, or delete it.",
            )
        return TokenStore(folder, index)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise SetupError("Expected a complete token store.", hint="Build it again.") from error


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

    Args:
        batch: images per forward pass.
        progress: told (done, total) after every batch.
        rebuild: delete a store of another key instead of refusing.

    Raises:
        DataError: no image can be read. SetupError: another key in the folder, disk full, tokens beyond float16.
    """
    key = store_key(cohort, encoder)
    _claim(folder, key, rebuild)
    if (folder / "index.json").exists():
        store = open_store(folder, key=key)
        if progress:
            progress(len(cohort.images), len(cohort.images))
        return store
    try:
        return _Builder(cohort, encoder, folder, key, batch, progress).run()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SetupError(
                "Expected free disk space for the token store.", hint="Free space, run again."
            ) from error
        raise


def _claim(folder: Path, key: str, rebuild: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "key"
    if owner.exists() and owner.read_text() != key:
        if not rebuild:
            raise SetupError(
                "Expected a folder for this token store, found one of other images or another encoder.",
                hint="Delete it, or use another folder.",
            )
        for path in folder.iterdir():
            path.unlink()
    if not owner.exists():
        write_atomic(owner, key.encode())


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

    def run(self) -> TokenStore:
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
        return open_store(self.folder, key=self.key)

    def _shard(
        self, number: int, images: tuple[CellImage, ...], decoder: ThreadPoolExecutor
    ) -> dict[str, Any]:
        marker = self.folder / f"shard-{number:05d}.json"
        if marker.exists():
            self._advance(len(images))
            return dict(parse_json(marker.read_bytes()))
        stored, failed, tokens, masks = [], [], [], []
        groups = [images[start : start + self.batch] for start in range(0, len(images), self.batch)]
        waiting = decoder.submit(self._decode, groups[0])
        for position, group in enumerate(groups):
            pixels = waiting.result()
            if position + 1 < len(groups):  # the next batch is decoded while this one is in the transformer
                waiting = decoder.submit(self._decode, groups[position + 1])
            good = [
                (image, values) for image, values in zip(group, pixels, strict=True) if values is not None
            ]
            failed += [image.index for image, values in zip(group, pixels, strict=True) if values is None]
            if good:
                stored += [image.index for image, _ in good]
                tokens.append(self._encode([values for _, values in good]))
                masks += [self.encoder.mask_of(values) for _, values in good]
            self._advance(len(group))
        return self._write(number, stored, failed, tokens, masks)

    def _decode(self, group: tuple[CellImage, ...]) -> list[Pixels | None]:
        pixels: list[Pixels | None] = []
        for image in group:
            try:
                pixels.append(self.encoder.pixels(open_rgb(image)))
            except DataError:
                pixels.append(None)  # counted as failed; `cytosae site check` names the file
        return pixels

    def _encode(self, pixels: list[Pixels]) -> NDArray[np.float16]:
        from .preprocess import to_input

        tokens = self.encoder.encode(torch.stack([to_input(values) for values in pixels])).numpy()
        if not np.isfinite(tokens).all() or np.abs(tokens).max() > FLOAT16_MAX:
            raise SetupError(
                "Expected finite tokens within float16.", hint="Are these the encoder's weights?"
            )
        return tokens.astype(np.float16)

    def _write(
        self, number: int, stored: list[int], failed: list[int], tokens: list[Any], masks: list[Any]
    ) -> dict[str, Any]:
        width = (257, self.encoder.d)
        values = np.concatenate(tokens) if tokens else np.zeros((0, *width), np.float16)
        mask = np.stack(masks) if masks else np.zeros((0, 257), bool)
        write_atomic(self.folder / f"tokens-{number:05d}.npy", _npy(values))
        write_atomic(self.folder / f"masks-{number:05d}.npy", _npy(mask))
        record = {"stored": stored, "failed": failed}
        write_atomic(self.folder / f"shard-{number:05d}.json", canonical_json(record))
        return record

    def _advance(self, images: int) -> None:
        self.done += images
        self.progress(self.done, len(self.cohort.images))


def _npy(values: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()
