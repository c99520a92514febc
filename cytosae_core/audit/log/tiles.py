"""Static files of a log as C2SP tlog-tiles defines them, writing side; `audit/tiles.py` reads them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..note import parse_checkpoint, split_note
from ..tiles import TILE_WIDTH, tile_path, widths
from .tree import Tree


class Source(Protocol):
    """What has leaves and their hashes: `Log`, `Mirror`."""

    @property
    def tree(self) -> Tree:
        """The hashes."""

    def leaves(self, start: int, stop: int) -> list[bytes]:
        """Leaves `start` to `stop` - 1."""


def tile_files(log: Source, checkpoint: bytes) -> dict[str, bytes]:
    """`checkpoint`, hash tiles and entry bundles of a log at that checkpoint's size, by path."""
    size = parse_checkpoint(split_note(checkpoint)[0]).size
    files = {"checkpoint": checkpoint}
    for number, width in enumerate(widths(size)):
        start = number * TILE_WIDTH
        bundle = b"".join(struct.pack(">H", len(leaf)) + leaf for leaf in log.leaves(start, start + width))
        files[tile_path("entries", number, width)] = bundle
    level, count = 0, size
    while count:
        for number, width in enumerate(widths(count)):
            start = number * TILE_WIDTH
            hashes = log.tree.subtrees(8 * level, start, start + width)
            files[tile_path(str(level), number, width)] = b"".join(hashes)
        level, count = level + 1, count // TILE_WIDTH
    return files


def write_tiles(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files of `tile_files` below a folder."""
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
