"""Needles and the search for them: did any piece of a secret get out, in whatever form?

Everything is looked up as windows of 16 bytes. A needle is cut into windows when it is added; bytes that left are
read at every offset, so that a window is found wherever it lies. What a sender may do to it is undone on the bytes
that left, to a fixed depth: base64 (standard and URL-safe, all alignments, wrapped lines), hex (both cases, with
separators), deflate (and with it zlib, gzip, zip and PNG data: a stream is tried at every offset), bz2, xz, decimal
numbers, PNG pixels. Values are windows of 8 float16: float32 and float64 are rounded to float16 at every alignment
before they are looked up, bfloat16 has windows of its own.

    needles = Needles()
    needles.text("patient id", "Kq81...")
    search = Search(needles.index())
    search.feed("wire", data)
    assert search.hits == []

Two windows are equal or they are not: there is no hash to collide. Windows with few different values (a white
background, zeros) are no needles; `Index.skipped` counts them.

Not undone: encryption, bits in other orders, big-endian values, quantised values, differences of values. 8-bit text
is found from 16 bytes on, text in UTF-16 from 8 characters on.
"""

from __future__ import annotations

import binascii
import bz2
import contextlib
import hashlib
import io
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
WINDOW, HALVES = 16, 8
MAX_DEPTH = 3
# More than this from one piece is an error, never left out in silence.
MAX_OUTPUT = 1 << 28
CHUNK = 1 << 20
TABLE_BITS = 25
ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], dtype=np.uint64)


# Needles


class Needles:
    """Windows of everything that must not leave, by class."""

    def __init__(self) -> None:
        self.classes: list[str] = []
        self._windows: list[Array] = []
        self._labels: list[Array] = []
        self.added: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()

    def text(self, name: str, text: str) -> None:
        """A random text of at least 16 characters: as it is, in lower and upper case, in UTF-8 and UTF-16."""
        assert len(text) >= WINDOW and text.isascii(), f"Expected {WINDOW} ASCII characters, got {text!r}."
        for form in (text, text.lower(), text.upper()):
            for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
                self.windows(name, _cut(np.frombuffer(form.encode(encoding), np.uint8), 1), distinct=4)

    def digests(self, name: str, data: bytes) -> None:
        """Digests of a guessable secret: whoever guesses it could confirm it."""
        for make in (hashlib.md5, hashlib.sha1, hashlib.sha256, hashlib.blake2b):
            self.windows(name, _cut(np.frombuffer(make(data).digest()[:32], np.uint8), 1), distinct=8)

    def bytes(self, name: str, data: bytes | Array, stride: int = WINDOW) -> None:
        """Bytes: any run of 15 + stride of them is found."""
        self.windows(name, _cut(np.frombuffer(data, np.uint8), stride), distinct=8)

    def values(self, name: str, values: Array, stride: int = HALVES) -> None:
        """Rows [..., m] of floats: any run of 7 + stride values of a row is found, in every float format."""
        rows = values.reshape(-1, values.shape[-1])
        places = range(0, rows.shape[1] - HALVES + 1, stride)
        with np.errstate(over="ignore"):
            for form in (rows.astype("<f2").view("<u2"), _bfloat16(rows)):
                cut = np.stack([form[:, at : at + HALVES] for at in places], axis=1).reshape(-1, HALVES)
                self.windows(name, cut.view(np.uint8).reshape(-1, WINDOW), distinct=6, unit=2)

    def windows(self, name: str, windows: Array, *, distinct: int, unit: int = 1) -> None:
        """Windows [w, 16] uint8 that hold at least `distinct` different units of `unit` bytes."""
        if name not in self.classes:
            self.classes.append(name)
        kept = windows[_distinct(windows, unit) >= distinct]
        self.added[name] += len(kept)
        self.skipped[name] += len(windows) - len(kept)
        self._windows.append(np.ascontiguousarray(kept))
        self._labels.append(np.full(len(kept), self.classes.index(name), np.uint8))

    def index(self) -> Index:
        """For lookups; what was added first names a window that two classes share."""
        words = np.concatenate(self._windows).view("<u8")
        return Index(tuple(self.classes), words, np.concatenate(self._labels), self.added, self.skipped)


def _cut(data: Array, stride: int) -> Array:
    if len(data) < WINDOW:
        return np.zeros((0, WINDOW), np.uint8)
    return np.lib.stride_tricks.sliding_window_view(data, WINDOW)[::stride]


def _distinct(windows: Array, unit: int) -> Array:
    values = np.sort(np.ascontiguousarray(windows).view(f"<u{unit}"), axis=1)
    return np.asarray((np.diff(values.astype(np.int32), axis=1) != 0).sum(axis=1) + 1)


def _bfloat16(rows: Array) -> Array:
    """bfloat16 by rounding to nearest even, as uint16."""
    bits = np.ascontiguousarray(rows, "<f4").view("<u4").astype(np.uint64)
    return np.asarray(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2"))


class Index:
    """Sorted windows of all needles, and a table of bits before it."""

    def __init__(
        self,
        classes: tuple[str, ...],
        words: Array,
        labels: Array,
        added: Counter[str],
        skipped: Counter[str],
    ) -> None:
        self.classes, self.added, self.skipped = classes, dict(added), dict(skipped)
        keys = words[:, 0] * ODD[0] + words[:, 1] * ODD[1]
        order = np.argsort(keys, kind="stable")
        keys, first, labels = keys[order], words[order, 0], labels[order]
        # A key and its first word decide the second: the multiplier is odd. So the pair is the window itself.
        fresh = np.ones(len(keys), bool)
        fresh[1:] = (keys[1:] != keys[:-1]) | (first[1:] != first[:-1])
        self._keys, self._first, self._labels = keys[fresh], first[fresh], labels[fresh]
        self._table = np.zeros(1 << TABLE_BITS, bool)
        self._table[self._keys >> np.uint64(64 - TABLE_BITS)] = True

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, data: Array, step: int = 1) -> list[tuple[int, int]]:
        """(offset, class number) of every window in uint8 `data`, looking at multiples of `step` bytes."""
        found = []
        for start in range(0, len(data), CHUNK):
            part = data[start : start + CHUNK + WINDOW]
            for shift in range(0, 8, step):
                count = (len(part) - shift) // 8
                if count < 2:
                    continue
                words = np.frombuffer(part, "<u8", count, shift)
                keys = words[:-1] * ODD[0] + words[1:] * ODD[1]
                maybe = np.flatnonzero(self._table[keys >> np.uint64(64 - TABLE_BITS)])
                found += [(start + shift + 8 * at, label) for at, label in self._exact(words, keys, maybe)]
        return found

    def _exact(self, words: Array, keys: Array, maybe: Array) -> Iterator[tuple[int, int]]:
        low = np.searchsorted(self._keys, keys[maybe], side="left")
        high = np.searchsorted(self._keys, keys[maybe], side="right")
        for at, begin, end in zip(maybe[low < high], low[low < high], high[low < high], strict=True):
            for place in range(begin, end):
                if self._first[place] == words[at]:
                    yield int(at), int(self._labels[place])


# The search


@dataclass(frozen=True)
class Hit:
    """A needle that left: its class, the channel and the piece that it was in, how it was read, at which offset."""

    needle: str
    channel: str
    piece: str
    how: tuple[str, ...]
    offset: int


@dataclass
class Search:
    """Feed it everything that left. The same piece is searched once, and its hits count for every channel.

    Attributes:
        hits: at most `most` for every class, piece and form.
        fed: bytes by channel. `read`: bytes looked at, decoded ones included; `pieces`: how many were decoded.
    """

    index: Index
    most: int = 3
    hits: list[Hit] = field(default_factory=list)
    fed: Counter[str] = field(default_factory=Counter)
    read: int = 0
    pieces: int = 0
    _known: dict[bytes, list[Hit]] = field(default_factory=dict)

    def feed(self, channel: str, data: bytes, piece: str = "") -> None:
        """Search one piece."""
        self.fed[channel] += len(data)
        digest = _digest(data)
        if digest not in self._known:
            found: list[Hit] = []
            self._read(data, (), found, {})
            self._known[digest] = found
        self.hits += [replace(hit, channel=channel, piece=piece) for hit in self._known[digest]]

    @property
    def found(self) -> dict[str, set[str]]:
        """Class -> channels that it was found in."""
        out: dict[str, set[str]] = {}
        for hit in self.hits:
            out.setdefault(hit.needle, set()).add(hit.channel)
        return out

    def _read(self, data: bytes, how: tuple[str, ...], found: list[Hit], seen: dict[bytes, int]) -> None:
        if len(data) < WINDOW or seen.get(digest := _digest(data), MAX_DEPTH + 1) <= len(how):
            return
        seen[digest] = len(how)
        self.pieces += 1
        self._look(np.frombuffer(data, np.uint8), how, 1, found)
        for form, values in float_forms(data):
            self._look(values, (*how, form), 2, found)
        if len(how) < MAX_DEPTH and how[-1:] != (BROKEN,):
            for form, inner in decoded(data):
                self._read(inner, (*how, form), found, seen)

    def _look(self, data: Array, how: tuple[str, ...], step: int, found: list[Hit]) -> None:
        self.read += len(data)
        count: Counter[int] = Counter()
        for offset, label in self.index.find(data, step):
            count[label] += 1
            if count[label] <= self.most:
                found.append(Hit(self.index.classes[label], "", "", how, offset))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def float_forms(data: bytes) -> Iterator[tuple[str, Array]]:
    """float32 and float64 at every alignment, rounded to float16: its bytes. (float16 is there already.)"""
    with np.errstate(all="ignore"):
        for form, size in (("f4", 4), ("f8", 8)):
            for shift in range(size):
                values = np.frombuffer(data, f"<{form}", (len(data) - shift) // size, shift)
                if len(values) >= HALVES:
                    yield f"{form}+{shift}", values.astype("<f2").view(np.uint8)


def decoded(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What the bytes may be in another form, one step."""
    yield from _from_base64(data)
    yield from _from_hex(data)
    yield from _from_numbers(data)
    yield from _inflated(data)
    yield from _unpacked(data)
    yield from _from_png(data)


BREAK = rb"(?:\\[rn]|[\r\n])+[ \t]*"
BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}(?:" + BREAK + rb"[A-Za-z0-9+/_-]{4,})*")
HEX = re.compile(rb"[0-9A-Fa-f]{32,}|(?:(?:0x|\\x|%)?[0-9A-Fa-f]{2}[ :,\n-]{0,2}){16,}")
NUMBER = rb"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
NUMBERS = re.compile(rb"(?:" + NUMBER + rb"[\],;\s\[()]+){7,}" + NUMBER)
URL_SAFE = bytes.maketrans(b"-_", b"+/")


def _from_base64(data: bytes) -> Iterator[tuple[str, bytes]]:
    runs = [re.sub(BREAK, b"", run) for run in BASE64.findall(data)]
    runs = [run.translate(URL_SAFE) for run in runs if len(run) >= 22]
    for shift in range(4):
        out = []
        for run in runs:
            padded = run[shift:] + b"A" * (-(len(run) - shift) % 4)
            with contextlib.suppress(binascii.Error):
                out.append(binascii.a2b_base64(padded))
        if out:
            yield f"base64+{shift}", b"\0".join(out)


def _from_hex(data: bytes) -> Iterator[tuple[str, bytes]]:
    runs = [re.sub(rb"0x|[^0-9A-Fa-f]", b"", run) for run in HEX.findall(data)]
    for shift in range(2):
        out = [binascii.unhexlify(run[shift : len(run) - (len(run) - shift) % 2]) for run in runs]
        if out:
            yield f"hex+{shift}", b"\0".join(out)


def _from_numbers(data: bytes) -> Iterator[tuple[str, bytes]]:
    values, whole = [], []
    for run in NUMBERS.findall(data):
        words = re.sub(rb"[^0-9eE.+-]+", b" ", run).split()
        numbers = np.array(words, dtype="S32").astype(np.float64)
        values.append(numbers)
        if (numbers == np.floor(numbers)).all() and (np.abs(numbers) < 256).all():
            whole.append(numbers.astype(np.int64).astype(np.uint8))
    with np.errstate(all="ignore"):
        if values:
            yield "numbers", np.concatenate(values).astype("<f2").tobytes()
    if whole:
        yield "integers", np.concatenate(whole).tobytes()


def _unpacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    for name, magic, make in (
        ("bz2", b"BZh", bz2.BZ2Decompressor),
        ("xz", b"\xfd7zXZ\0", lzma.LZMADecompressor),
    ):
        for at in _places(data, magic):
            with contextlib.suppress(OSError, EOFError, ValueError, lzma.LZMAError):
                yield name, make().decompress(data[at:], MAX_OUTPUT)  # type: ignore[operator]


def _from_png(data: bytes) -> Iterator[tuple[str, bytes]]:
    for at in _places(data, b"\x89PNG\r\n\x1a\n"):
        with contextlib.suppress(OSError, SyntaxError, ValueError):
            yield "png", Image.open(io.BytesIO(data[at:]), formats=("PNG",)).convert("RGB").tobytes()


def _places(data: bytes, magic: bytes) -> Iterator[int]:
    at = data.find(magic)
    while at >= 0:
        yield at
        at = data.find(magic, at + 1)


# Deflate: a stream is tried wherever one can begin. Most that go wrong are no streams but chance: what they give is
# looked at and not decoded further.
BROKEN = "broken deflate"
PRINTABLE = np.array([32 <= byte < 127 or byte in b"\t\r\n" for byte in range(256)])


def _inflated(data: bytes) -> Iterator[tuple[str, bytes]]:
    view, out = memoryview(data), {"deflate": bytearray(), BROKEN: bytearray()}
    for at in deflate_places(data):
        got, whole = _inflate(view, at)
        if got:
            out["deflate" if whole else BROKEN] += got + b"\0"
    for form, parts in out.items():
        assert len(parts) < MAX_OUTPUT, "Expected less inside compressed streams: raise MAX_OUTPUT."
        if parts:
            yield form, bytes(parts)


def deflate_places(data: bytes) -> Iterable[int]:
    """Offsets at which a block with Huffman codes may begin. (What is in a stored block is there as it is.)

    Where the next 16 bytes are all printable there is text: of streams that pack anything, one in 10^7 looks so.
    """
    padded = np.frombuffer(data + bytes(16), np.uint8)
    places = [np.zeros(0, np.int64)]
    for start in range(0, len(data), CHUNK):
        part = padded[start : start + CHUNK + 16]
        places.append(start + _block_starts(part, min(CHUNK, len(data) - start)))
    found = np.concatenate(places)
    odd = np.concatenate([[0], np.cumsum(PRINTABLE[padded] == 0)])
    return [int(at) for at in found[odd[np.minimum(found + WINDOW, len(data))] > odd[found]]]


def _block_starts(part: Array, count: int) -> Array:
    kind = (part[:count] >> 1) & 3
    fixed, dynamic = np.flatnonzero(kind == 1), np.flatnonzero(kind == 2)
    word = sum(part[dynamic + k].astype(np.uint64) << np.uint64(8 * k) for k in range(3))
    dynamic = dynamic[
        ((word >> np.uint64(3)) & np.uint64(31) <= 29) & ((word >> np.uint64(8)) & np.uint64(31) <= 29)
    ]
    # The code lengths' own code must be complete (RFC 1951 3.2.7; zlib insists): its lengths fill the tree exactly.
    word = sum(part[dynamic + 2 + k].astype(np.uint64) << np.uint64(8 * k) for k in range(8))
    codes = ((part[dynamic + 1] >> 5) | ((part[dynamic + 2] & 1) << 3)) + 4
    weight, filled = np.array([0, 64, 32, 16, 8, 4, 2, 1]), np.zeros(len(dynamic), np.int64)
    for place in range(19):
        length = ((word >> np.uint64(1 + 3 * place)) & np.uint64(7)).astype(np.int64)
        filled += np.where(place < codes, weight[length], 0)
    return np.sort(np.concatenate([fixed, dynamic[filled == 128]]))


def _inflate(view: memoryview, at: int) -> tuple[bytes, bool]:
    """The stream at an offset as far as it goes, nothing when it is shorter than a window; and whether it came to its
    end, to that of the data, or at least so far that it is no chance."""
    stream = zlib.decompressobj(-15)
    try:
        if len(stream.decompress(view[at : at + 256], WINDOW)) < WINDOW:
            return b"", False
    except zlib.error:
        return b"", False
    stream, out, start = zlib.decompressobj(-15), bytearray(), at
    while at < len(view) and not stream.eof:
        step = 64 if at - start < 4096 else 4096
        try:
            out += stream.decompress(view[at : at + step])
        except zlib.error:
            return bytes(out), at - start >= 1024
        at += step
        assert len(out) < MAX_OUTPUT, "Expected less inside a compressed stream: raise MAX_OUTPUT."
    return bytes(out), True
