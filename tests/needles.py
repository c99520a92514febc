"""Secrets of a site in every form in which they could leave, and a search for them in everything that was captured.

Needles are windows of at least 16 bytes: text in UTF-8 and UTF-16, bytes of files, decoded pixels (as they are,
resized, as float32 in 0..1), and runs of 8 values of stored tokens as float16, float32, bfloat16 and
float64, also centred and scaled. Haystacks are searched as they are and, three levels deep, after base64 (every
alignment, both alphabets), hex, zlib, gzip and raw deflate are undone wherever they occur.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

DEPTH = 3
BASE64, HEX = re.compile(rb"[A-Za-z0-9+/_=-]{24,}"), re.compile(rb"[0-9a-fA-F]{32,}")
ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08")
MAX_INFLATED = 1 << 26


@dataclass
class Needles:
    """Needles by class; `find` names the classes that occur in a haystack."""

    by_bytes: dict[bytes, str] = field(default_factory=dict)

    def add(self, kind: str, needle: bytes) -> None:
        """Add one needle of 16 bytes or more that cannot occur by chance."""
        if len(needle) >= 16 and len(set(needle[:16])) >= 6:
            self.by_bytes[needle] = kind

    def freeze(self) -> None:
        """Index by the first 8 bytes."""
        self._starts: dict[int, list[bytes]] = {}
        for needle in self.by_bytes:
            self._starts.setdefault(int.from_bytes(needle[:8], "little"), []).append(needle)
        self._keys = np.array(sorted(self._starts), dtype=np.uint64)

    def find(self, haystack: bytes) -> set[str]:
        """Classes of the needles in `haystack` and in everything that it encodes."""
        found: set[str] = set()
        for part in unfolded(haystack, DEPTH):
            found |= self._plain(part)
        return found

    def _plain(self, data: bytes) -> set[str]:
        found: set[str] = set()
        for offset in range(8):
            words = (
                np.frombuffer(data, "<u8", (len(data) - offset) // 8, offset)
                if len(data) >= offset + 8
                else []
            )
            if not len(words):
                continue
            place = np.searchsorted(self._keys, words)
            place[place == len(self._keys)] = 0
            for hit in np.flatnonzero(self._keys[place] == words):
                start = offset + 8 * int(hit)
                for needle in self._starts[int(words[hit])]:
                    if data.startswith(needle, start):
                        found.add(self.by_bytes[needle])
        return found


def unfolded(data: bytes, depth: int) -> Iterator[bytes]:
    """`data`, and what is in it under base64, hex or deflate, `depth` levels deep."""
    yield data
    if depth == 0:
        return
    for inner in _decoded(data):
        yield from unfolded(inner, depth - 1)


def _decoded(data: bytes) -> Iterator[bytes]:
    for run in BASE64.finditer(data):
        text = run.group().replace(b"-", b"+").replace(b"_", b"/").replace(b"=", b"")
        for shift in range(4):
            part = text[shift:]
            part = part[: len(part) // 4 * 4]
            if len(part) >= 24:
                yield base64.b64decode(part)
    for run in HEX.finditer(data):
        for shift in range(2):
            part = run.group()[shift:]
            yield binascii.unhexlify(part[: len(part) // 2 * 2])
    for start in (match.start() for match in ZLIB.finditer(data)):
        yield from _inflated(data[start:], 47)
    if len(data) < 1 << 16:
        yield from _inflated(data, -15)


def _inflated(data: bytes, window: int) -> Iterator[bytes]:
    try:
        out = zlib.decompressobj(window).decompress(data, MAX_INFLATED)
    except zlib.error:
        return
    if len(out) >= 16:
        yield out


def add_text(needles: Needles, kind: str, text: str) -> None:
    """A name or id in UTF-8 and UTF-16."""
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        needles.add(kind, text.encode(encoding))


def add_windows(needles: Needles, kind: str, data: bytes, size: int, stride: int) -> None:
    """Windows of a file or of pixels."""
    for start in range(0, len(data) - size + 1, stride):
        needles.add(kind, data[start : start + size])


def add_values(needles: Needles, kind: str, rows: np.ndarray, run: int = 8, every: int = 48) -> None:
    """Runs of `run` values of rows [m, d], in four widths."""
    values = np.ascontiguousarray(rows, dtype=np.float32)
    forms = {
        "float16": values.astype(np.float16), "float32": values, "float64": values.astype(np.float64),
        "bfloat16": (values.view(np.uint32) >> 16).astype(np.uint16),
    }  # fmt: skip
    for name, array in forms.items():
        width = array.dtype.itemsize * run
        for row in array:
            data = row.tobytes()
            for start in range(0, len(data) - width + 1, array.dtype.itemsize * every):
                needles.add(f"{kind} {name}", data[start : start + width])


def search(needles: Needles, captured: Iterable[tuple[str, bytes]]) -> dict[str, set[str]]:
    """Where needles were found: name of the haystack -> classes."""
    found = {name: needles.find(data) for name, data in captured}
    return {name: classes for name, classes in found.items() if classes}
