"""report-sites.safetensors: per-site values of a large study, in a file beside report.json.

Tensors auroc, auroc_se and firing_rate, [sites, n] float32, sites as report.json lists them, rows as in the
dictionary; NaN: withheld or not assessed. The bytes are those of `tensors.pack_tensors`, but they are never all in
memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StudyError
from .rows import SITE_TABLES

Array = NDArray[Any]
FILE = "report-sites.safetensors"
INLINE_VALUES = 500_000  # with more concepts times sites than this, per-site values go to the file
CHUNK = 1 << 20


def is_large(sites: int, n: int) -> bool:
    """Whether a study's per-site values go to the file."""
    return sites * n > INLINE_VALUES


class ColumnFile:
    """Writes the file piece by piece; closing the `with` block makes it appear under its name, whole.

    Attributes:
        sha256: of the bytes, after closing.
    """

    def __init__(self, path: Path, sites: int, n: int) -> None:
        self._path, self._shape, self.sha256 = path, (sites, n), ""
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        head = _header(sites, n)
        self._start = {name: len(head) + 4 * sites * n * place for place, name in enumerate(SITE_TABLES)}
        self._file = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.pwrite(self._file, head, 0)
        os.ftruncate(self._file, len(head) + 4 * sites * n * len(SITE_TABLES))

    def write(self, name: str, start: int, values: Array) -> None:
        """Values [sites, rows] of rows from `start` on."""
        sites, n = self._shape
        data = np.ascontiguousarray(values, dtype="<f4")
        for site in range(sites):
            piece = data[site].tobytes()
            if os.pwrite(self._file, piece, self._start[name] + 4 * (site * n + start)) != len(piece):
                raise OSError("Expected room on the disk for the report's columns.")

    def __enter__(self) -> ColumnFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            os.fsync(self._file)
        os.close(self._file)
        if kind is None:
            self.sha256 = file_sha256(self._temporary)
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def _header(sites: int, n: int) -> bytes:
    size = 4 * sites * n
    table = {
        name: {"dtype": "F32", "shape": [sites, n], "data_offsets": [size * place, size * (place + 1)]}
        for place, name in enumerate(SITE_TABLES)
    }
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def read_columns(path: Path, *, sites: int, n: int, sha256: str = "") -> dict[str, Array]:
    """Tensors [sites, n] by name, mapped from the disk.

    Args:
        sha256: as report.json names it; empty: not checked.

    Raises:
        StudyError: not the file that this report names.
    """
    head = _header(sites, n)
    size = len(head) + 4 * sites * n * len(SITE_TABLES)
    if not path.exists() or path.stat().st_size != size or _start_of(path, len(head)) != head:
        raise StudyError(
            f"Expected the report's per-site values in {path}.",
            hint="Keep report.json and this file together.",
        )
    if sha256 and file_sha256(path) != sha256:
        raise StudyError(f"Expected the file that report.json names, got another {path.name}.")
    found: dict[str, Array] = {}
    for place, name in enumerate(SITE_TABLES):
        offset = len(head) + 4 * sites * n * place
        found[name] = np.memmap(path, dtype="<f4", mode="r", offset=offset, shape=(sites, n))
    return found


def _start_of(path: Path, size: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(size)


def is_large_report(report: Mapping[str, Any]) -> bool:
    """Whether a report names a column file."""
    concepts = report.get("concepts")
    return isinstance(concepts, Mapping) and "file" in (concepts.get("tables") or {})


def columns_of(report: Mapping[str, Any], folder: Path) -> dict[str, Array] | None:
    """The columns that a report.json in `folder` names; None when its tables are in the report itself.

    Raises:
        StudyError: the file is missing or another one.
    """
    if not is_large_report(report):
        return None
    tables, count = report["concepts"]["tables"], int(report["concepts"]["count"])
    return read_columns(folder / FILE, sites=len(tables["sites"]), n=count, sha256=tables["sha256"])
