"""Tables of many sites on disk: written site by site, read by rows of all sites. Memory does not grow with sites.

One unnamed file per table of [sites, n, width] float32, in blocks of rows: [block][site][row][width]. NaN: not known.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
BLOCK_VALUES = 1 << 18  # values of one table that are in memory at a time


class Stack:
    """One table of [sites, n, width]. Sites that are never written are NaN.

    Args:
        sites, n, width: sizes.
        folder: where the unnamed file lies; None for the system's folder of temporary files.
        block: rows of a block; tables that are read together have the same.
    """

    def __init__(self, sites: int, n: int, width: int, folder: Path | None = None, block: int = 0) -> None:
        self.shape = (sites, n, width)
        self.block = block or block_rows(sites, n, width)
        descriptor, name = tempfile.mkstemp(dir=folder)
        os.unlink(name)
        self._file = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._known: set[int] = set()

    def put(self, site: int, values: Array) -> None:
        """One site's table, [n, width] or [n] for width 1."""
        _, n, width = self.shape
        table = np.ascontiguousarray(values, dtype=np.float32).reshape(n, width)
        for start, stop in blocks(n, self.block):
            self._write(start, stop, site, table[start:stop])
        self._known.add(site)

    def _write(self, start: int, stop: int, site: int, values: Array) -> None:
        sites, _, width = self.shape
        offset = 4 * width * (start * sites + (stop - start) * site)
        data = np.ascontiguousarray(values).tobytes()
        while len(data):
            written = os.pwrite(self._file, data, offset)
            data, offset = data[written:], offset + written

    def rows(self, start: int, stop: int) -> Floats:
        """[sites, stop - start, width] float64 of one block, as `spans` gives them."""
        sites, _, width = self.shape
        count = sites * (stop - start) * width
        out = np.full((sites, stop - start, width), np.nan)
        if not self._known:
            return out
        data = b"".join(self._read(4 * width * start * sites, 4 * count))
        data += bytes(4 * count - len(data))
        values = np.frombuffer(data, np.float32).reshape(out.shape)
        known = sorted(self._known)
        out[known] = values[known]
        return out

    def _read(self, offset: int, size: int) -> Iterator[bytes]:
        while size > 0:
            data = os.pread(self._file, size, offset)
            if not data:
                return
            yield data
            size, offset = size - len(data), offset + len(data)

    def spans(self) -> list[tuple[int, int]]:
        """Blocks of rows as (start, stop), in order."""
        return blocks(self.shape[1], self.block)

    def column(self, index: int) -> Floats:
        """One column of every site, [sites, n]."""
        parts = [self.rows(start, stop)[:, :, index] for start, stop in self.spans()]
        return np.concatenate(parts, axis=1) if parts else np.zeros(self.shape[:2])

    def all(self) -> Floats:
        """The whole table, [sites, n, width]: for small studies."""
        parts = [self.rows(start, stop) for start, stop in self.spans()]
        return np.concatenate(parts, axis=1) if parts else np.zeros(self.shape)


def block_rows(sites: int, n: int, width: int) -> int:
    """Rows of a block, so that one block of all sites holds about `BLOCK_VALUES` values."""
    return max(1, min(max(n, 1), BLOCK_VALUES // max(1, sites * width)))


def blocks(n: int, size: int) -> list[tuple[int, int]]:
    """(start, stop) of blocks of `size` rows that cover n rows."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]
