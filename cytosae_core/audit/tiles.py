"""Static files of a log as C2SP tlog-tiles writes them, reading side: paths and entry bundles.

    tile/<level>/<number>[.p/<width>]     up to 256 hashes of 32 bytes; level 0 holds leaf hashes
    tile/entries/<number>[.p/<width>]     up to 256 leaves, each after its length (u16, big-endian)

A number is written in groups of three digits, all but the last after an x: 1234067 is x001/x234/067.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import VerificationError

TILE_WIDTH = 256


def tile_path(level: str, number: int, width: int = TILE_WIDTH) -> str:
    """Path of a tile or (`level` = "entries") entry bundle; a width below 256 makes it a partial one."""
    digits = str(number).zfill(3 * ((len(str(number)) + 2) // 3))
    groups = [digits[start : start + 3] for start in range(0, len(digits), 3)]
    path = "/".join(["tile", level, *(f"x{group}" for group in groups[:-1]), groups[-1]])
    return path if width == TILE_WIDTH else f"{path}.p/{width}"


def widths(count: int) -> Iterator[int]:
    """Widths of the tiles over `count` hashes: full ones, then the rest."""
    for start in range(0, count, TILE_WIDTH):
        yield min(TILE_WIDTH, count - start)


def read_entries(files: Mapping[str, bytes], size: int) -> list[bytes]:
    """The `size` leaves in the entry bundles of `files` (path: bytes); compare their root with a checkpoint.

    Raises:
        VerificationError: reason BUNDLE: a bundle is missing, cut or too long.
    """
    return [
        leaf
        for number, width in enumerate(widths(size))
        for leaf in _entries(files.get(tile_path("entries", number, width), b""), width)
    ]


def _entries(data: bytes, width: int) -> list[bytes]:
    leaves, start = list[bytes](), 0
    while len(leaves) < width and start + 2 <= len(data):
        end = start + 2 + int.from_bytes(data[start : start + 2], "big")
        leaves.append(data[start + 2 : end])
        start = end
    if start != len(data) or len(leaves) != width:
        raise VerificationError(f"Expected an entry bundle of {width} leaves.", reason="BUNDLE")
    return leaves
