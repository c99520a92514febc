"""BloodMNIST (Yang et al. 2023): images inside one .npz file, in the sizes 28, 64, 128 and 224.

`<split>_images` uint8 [n, size, size, 3] and `<split>_labels` [n, 1] for train, val and test. Nothing is unpickled.
An array is unpacked once into a nameless temporary file and mapped: memory stays flat for the 2.6 GB of size 224.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .cells import CellImage, refuse_links

SPLITS = ("train", "val", "test")
SIZES = (28, 64, 128, 224)
LABELS = (
    "basophil", "eosinophil", "erythroblast", "immature_granulocyte",
    "lymphocyte", "monocyte", "neutrophil", "platelet",
)  # fmt: skip
MAX_ARRAY_BYTES = 8 << 30
MAX_LABEL_BYTES = 64 << 20
BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
AGAIN = "Download it again: https://zenodo.org/records/10519652"


def read_bloodmnist(folder: Path) -> list[CellImage]:
    """The images of the one `bloodmnist*.npz` in a folder, with their published split.

    Raises:
        DataError: none or several such files, a link, or arrays of another form.
    """
    found = sorted(folder.glob("bloodmnist*.npz"))
    if len(found) != 1:
        raise DataError(f"Expected one bloodmnist*.npz in {folder}, found {len(found)}.", hint=AGAIN)
    path = found[0]
    refuse_links(folder, path)
    images = []
    for split in SPLITS:
        labels, count = _labels(path, split), len(_array(path, split))
        if len(labels) != count:
            raise DataError(f"Expected one label per image in {path.name}, split={split}.", hint=AGAIN)
        for position, label in enumerate(labels):
            member = f"{split}/{position}"
            attributes = {"original_label": str(label)}
            unit = f"{path.name}/{member}"
            images.append(CellImage(0, path, LABELS[label], unit, split, attributes, member))
    return images


def member_pixels(path: Path, member: str) -> NDArray[np.uint8]:
    """Pixels [size, size, 3] of one image; DataError when the file changed since the cohort was read."""
    split, _, position = member.partition("/")
    array = _array(path, split)
    if not position.isdecimal() or int(position) >= len(array):
        raise DataError(f"Expected an image {member} in {path.name}.", hint=AGAIN)
    return np.array(array[int(position)])


def _labels(path: Path, split: str) -> list[int]:
    try:
        with zipfile.ZipFile(path) as archive:
            _entry(archive, f"{split}_labels.npy", MAX_LABEL_BYTES)
        with np.load(path, allow_pickle=False) as file:
            labels = np.asarray(file[f"{split}_labels"]).reshape(-1).astype(np.int64)
    except BROKEN as error:
        raise DataError(f"Expected a readable {path.name}.", hint=AGAIN) from error
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(LABELS):
        raise DataError(f"Expected labels 0 .. {len(LABELS) - 1} in {path.name}.", hint=AGAIN)
    return [int(label) for label in labels]


def _array(path: Path, split: str) -> NDArray[np.uint8]:
    try:
        state = path.stat()
        return _unpacked(path, split, state.st_mtime_ns, state.st_size)
    except BROKEN as error:
        raise DataError(f"Expected a readable {path.name}.", hint=AGAIN) from error


@lru_cache(maxsize=len(SPLITS))
def _unpacked(path: Path, split: str, mtime_ns: int, size: int) -> NDArray[np.uint8]:
    """The array as a map of a temporary file, which the system deletes with us."""
    with tempfile.TemporaryFile() as stream, zipfile.ZipFile(path) as archive:
        with archive.open(_entry(archive, f"{split}_images.npy", MAX_ARRAY_BYTES)) as packed:
            shutil.copyfileobj(packed, stream, 1 << 20)
        stream.seek(0)
        np.lib.format.read_magic(stream)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] != 3 or not _square(shape):
            raise DataError(f"Expected uint8 images [n, size, size, 3] of sizes {SIZES} in {path.name}.")
        return np.memmap(stream, dtype=np.uint8, mode="r", offset=stream.tell(), shape=shape)


def _entry(archive: zipfile.ZipFile, name: str, limit: int) -> zipfile.ZipInfo:
    entry = archive.getinfo(name)
    if entry.file_size > limit:
        raise DataError(f"Expected at most {limit} bytes in {name}, got {entry.file_size}.")
    return entry


def _square(shape: tuple[int, ...]) -> bool:
    return shape[0] > 0 and shape[1] == shape[2] and shape[1] in SIZES
