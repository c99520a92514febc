"""The outer structure of a TIFF file, classic or Big: one page, offsets inside the file, no loops, no XML tricks."""

from __future__ import annotations

import re
import struct

from ..limits import MAX_TIFF_PAGES, MAX_TIFF_STRIPS, MAX_TIFF_TAGS
from .words import Refused

SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
WIDTH, HEIGHT, STRIP_OFFSETS, TILE_OFFSETS = 256, 257, 273, 324
STRIPS = frozenset({STRIP_OFFSETS, 279, TILE_OFFSETS, 325})
TEXTS = frozenset({270, 700})  # ImageDescription (OME-XML lives there), XMP
ENTITIES = re.compile(rb"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)
Tags = dict[int, tuple[int, int, int]]  # number -> (type, count, where the values are)


class _File:
    """A TIFF file's bytes, byte order and word size."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order = "<" if data[:2] == b"II" else ">"
        (version,) = self.read("H", 2)
        self.big = version == 43
        if self.big and self.read("HH", 4) != (8, 0):
            raise Refused("HEADER")
        self.first = self.read("Q", 8)[0] if self.big else self.read("I", 4)[0]

    def read(self, form: str, at: int) -> tuple[int, ...]:
        """Numbers at an offset."""
        size = struct.calcsize("<" + form)
        if at + size > len(self.data):
            raise Refused("DECODE")
        return struct.unpack_from(self.order + form, self.data, at)

    def page(self, at: int) -> tuple[Tags, int]:
        """Tags of the page at an offset, and where the next page is."""
        form, entry, inline = ("Q", 20, 8) if self.big else ("I", 12, 4)
        (count,) = self.read("Q" if self.big else "H", at)
        if not 0 < count <= MAX_TIFF_TAGS:
            raise Refused("HEADER")
        start = at + (8 if self.big else 2)
        tags: Tags = {}
        for number in range(count):
            where = start + number * entry
            tag, kind, items = self.read("HH" + form, where)
            value = where + entry - inline
            size = SIZES.get(kind, 1) * items
            if size > inline:
                (value,) = self.read(form, value)
            if value + size > len(self.data):
                raise Refused("DECODE")
            tags[tag] = (kind, items, value)
        return tags, self.read(form, start + count * entry)[0]

    def number(self, tags: Tags, tag: int) -> int:
        """The first value of an integer tag."""
        if tag not in tags or tags[tag][1] < 1:
            raise Refused("HEADER")
        kind, _, where = tags[tag]
        form = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        if form is None:
            raise Refused("HEADER")
        return self.read(form, where)[0]


def check_tiff(data: bytes) -> tuple[int, int]:
    """Width and height of the only page."""
    file = _File(data)
    tags, following = file.page(file.first)
    _one_page(file, following)
    for tag in STRIPS & set(tags):
        if tags[tag][1] > MAX_TIFF_STRIPS:
            raise Refused("FRAMES")
    for tag in TEXTS & set(tags):
        _, items, where = tags[tag]
        if ENTITIES.search(data, where, where + items):
            raise Refused("XML_REFUSED")
    _nothing_appended(data)
    return file.number(tags, WIDTH), file.number(tags, HEIGHT)


def _one_page(file: _File, following: int) -> None:
    seen = {file.first}
    while following:
        if following in seen:
            raise Refused("IFD_LOOP")
        if len(seen) >= MAX_TIFF_PAGES + 16:  # far enough to tell a loop from many pages
            break
        seen.add(following)
        _, following = file.page(following)
    if len(seen) > MAX_TIFF_PAGES:
        raise Refused("FRAMES")


def _nothing_appended(data: bytes) -> None:
    """A TIFF has no end of its own: refuse the one appendix that other programs would open, a ZIP archive."""
    at = data.rfind(b"PK\x05\x06", max(0, len(data) - 65_557))
    if at >= 0 and at + 22 <= len(data) and at + 22 + struct.unpack_from("<H", data, at + 20)[0] == len(data):
        raise Refused("TRAIL")
