"""The token store, read side: every image's tokens, cell mask and picture facts on disk, written once.

    key                     store_key of the images and encoder that own the folder; replaced only once it is empty
    golden.npy              mean tokens of the golden cells, float32 [8, d]
    tokens-NNNNN.npy        float16 [b, 257, d]                           masks-NNNNN.npy   bool [b, 257]
    facts-NNNNN.npy         float32 [b, 67], see `image_facts.py`
    shard-NNNNN.json        written last: which images the shard holds. A shard without it does not exist.
    index.json              urn, key, encoder digest, width, images in order, failed ones: the store is complete

`key` covers encoder, preprocessing and the images' bytes in order; another key in a folder is refused. Plain .npy
files are opened as memory maps (never pickled), so memory is flat in the number of images. `build.py` writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..canonical import digest_of, parse_json
from ..cohort import CellImage, Cohort, image_digest
from ..errors import MessageError, SetupError
from .image_facts import MEASURED, WIDTH, cell_size

URN = "urn:cytosae:tokens:v3"
_VERSIONS = "urn:cytosae:tokens:v"
TOKENS = 257  # CLS and 16 x 16 patches
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
    """SHA-256 over the encoder's digest and the images' digests in order, 64 hex digits."""
    return digest_of(
        {"urn": URN, "encoder": encoder.digest, "images": [_digest(image) for image in cohort.images]}
    )


def _digest(image: CellImage) -> str:
    try:
        return image_digest(image)
    except OSError:
        return "unreadable"  # counted among the failed when the store is built


class TokenStore:
    """A complete store, opened.

    Attributes: folder, key, encoder_digest, d (token width), n_images (stored ones), image_index (int64 [n],
    positions of the stored images in the cohort), failed (positions of the unreadable ones), canary (float32 [8, d]).
    """

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder, self.key, self.d = folder, str(index["key"]), int(index["d"])
        self.encoder_digest = str(index["encoder"])
        self.image_index = np.array(index["stored"], dtype=np.int64)
        self.failed = tuple(int(item) for item in index["failed"])
        self.n_images = len(self.image_index)
        self._starts = np.cumsum([0, *index["shards"]])
        if self._starts[-1] != self.n_images:
            raise ValueError("shards do not add up to the stored images")
        self.canary: NDArray[np.float32] = _load(folder / "golden.npy", (8, self.d), "float32")
        self._shards: list[NDArray[np.float16]] = []
        masks: list[NDArray[np.bool_]] = []
        facts: list[NDArray[np.float32]] = []
        for number, count in enumerate(index["shards"]):
            tokens, mask, fact = shard_files(folder, number)
            self._shards.append(_load(tokens, (count, TOKENS, self.d), "float16", mapped=count > 0))
            masks.append(_load(mask, (count, TOKENS), "bool"))
            facts.append(_load(fact, (count, WIDTH), "float32"))
        self._mask: NDArray[np.bool_] = np.concatenate(masks)
        self._facts: NDArray[np.float32] = np.concatenate(facts)

    def tokens(self, start: int, stop: int) -> NDArray[np.float16]:
        """Tokens [b, 257, d] float16 of stored images start .. stop."""
        stop = min(stop, self.n_images)
        parts = []
        for number, shard in enumerate(self._shards):
            low, high = max(start, self._starts[number]), min(stop, self._starts[number + 1])
            if low < high:
                parts.append(shard[low - self._starts[number] : high - self._starts[number]])
        return np.concatenate(parts) if parts else np.zeros((0, TOKENS, self.d), np.float16)

    def mask(self) -> NDArray[np.bool_]:
        """Stained-cell tokens [n, 257], CLS false."""
        return self._mask

    def image_facts(self) -> NDArray[np.float32]:
        """Brightness, saturation, focus and cell size [n, 4] (`config.IMAGE_FACTS`), of pictures as they came from
        the camera. Cell size is NaN where the encoder marks no cell."""
        return np.concatenate([self._facts[:, :MEASURED], cell_size(self._mask)[:, None]], axis=1)

    def colours(self) -> NDArray[np.float32]:
        """Shares of the pixels in 4 x 4 x 4 bins of R, G, B [n, 64], before any colours were matched."""
        return self._facts[:, MEASURED:]

    def gather(self, image: NDArray[np.int64], token: NDArray[np.int64]) -> NDArray[np.float32]:
        """Single tokens [m, d] float32: token `token[i]` of stored image `image[i]`.

        Raises:
            IndexError: an image outside 0 .. n_images - 1 or a token outside 0 .. 256.
        """
        if len(image) and not (0 <= image.min() <= image.max() < self.n_images):
            raise IndexError(f"Expected 0 <= image < n_images={self.n_images}.")
        if len(token) and not (0 <= token.min() <= token.max() < TOKENS):
            raise IndexError(f"Expected 0 <= token < {TOKENS}.")
        out = np.empty((len(image), self.d), np.float32)
        number = np.searchsorted(self._starts, image, side="right") - 1
        for shard in np.unique(number):
            chosen = np.flatnonzero(number == shard)
            order = chosen[
                np.lexsort((token[chosen], image[chosen]))
            ]  # ascending places: pages are read once
            out[order] = self._shards[shard][image[order] - self._starts[shard], token[order]]
        return out


def shard_files(folder: Path, number: int) -> tuple[Path, Path, Path]:
    """Files of a shard's tokens, masks and facts."""
    tokens, masks, facts = (folder / f"{name}-{number:05d}.npy" for name in ("tokens", "masks", "facts"))
    return tokens, masks, facts


def refuse_old(folder: Path) -> None:
    """SetupError when the folder holds a complete store of another version; anything else passes."""
    try:
        urn = str(parse_json((folder / "index.json").read_bytes())["urn"])
    except (OSError, KeyError, TypeError, MessageError):
        return
    if urn.startswith(_VERSIONS) and urn != URN:
        raise SetupError(
            f"Expected a token store of version {URN[len(_VERSIONS) :]}, got version {urn[len(_VERSIONS) :][:8]}.",
            hint=f"Delete {folder}: the next run embeds the images again and keeps facts of the pictures.",
            reason="STORE_VERSION",
        )


def _load(path: Path, shape: tuple[int, ...], dtype: str, *, mapped: bool = False) -> NDArray[Any]:
    """The array in a file, or a map of it; ValueError when it is cut short, of other shape or type."""
    values = np.asarray(np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False))
    if values.shape != shape or values.dtype != np.dtype(dtype):
        raise ValueError("other shape or type than the index says")
    return values


def open_store(folder: Path, *, key: str | None = None) -> TokenStore:
    """Open a complete store; tokens stay on disk.

    Raises:
        SetupError: incomplete, damaged, of another version, or of another key than `key`.
    """
    try:
        refuse_old(folder)
        index = parse_json((folder / "index.json").read_bytes())
        if index["urn"] != URN or (key is not None and index["key"] != key):
            raise SetupError(
                "Expected the token store of these images and this encoder.",
                hint="Use another folder, or delete it.",
            )
        return TokenStore(folder, index)
    except (OSError, EOFError, KeyError, ValueError, TypeError, MessageError) as error:
        raise SetupError(
            "Expected a complete token store.", hint="Delete its folder and build it again."
        ) from error
