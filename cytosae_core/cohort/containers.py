"""What is checked in an image file before a decoder sees it: size, frames, checksums, and an exact end.

Runs in the decoder's process (`decoder.py`). Each function walks one format's outer structure, raises `Refused`
with a reason, and returns the bytes to decode: for PNG and JPEG without texts, EXIF, thumbnails and profiles, so
that no decoder ever parses them.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable

from ..limits import MAX_IMAGE_SIDE, MAX_JPEG_SCANS, MAX_META_BYTES, MAX_RATIO, RATIO_FROM_BYTES
from .tiff import check_tiff
from .words import Refused

PNG = b"\x89PNG\r\n\x1a\n"
KEPT_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
KEPT_SEGMENTS = frozenset({0xE0, 0xEE})  # JFIF; Adobe's says how colours are coded
IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def check_pixels(width: int, height: int, max_pixels: int, file_bytes: int, channels: int = 3) -> None:
    """Refuse impossible sizes, too many pixels, and bombs: small files that decode to much."""
    if not (0 < width <= 0x7FFFFFFF and 0 < height <= 0x7FFFFFFF):
        raise Refused("HEADER")
    if width * height > max_pixels or max(width, height) > MAX_IMAGE_SIDE:
        raise Refused("PIX_LIMIT")
    decoded = width * height * channels
    if decoded > RATIO_FROM_BYTES and decoded > MAX_RATIO * file_bytes:
        raise Refused("RATIO")


def check_png(data: bytes, max_pixels: int) -> bytes:
    """Walk the chunks; every checksum must hold. Returns the chunks that pixels need."""
    view = memoryview(data)
    kept: list[bytes | memoryview] = [PNG]
    at, meta, first = len(PNG), 0, True
    while True:
        if at + 12 > len(data):
            raise Refused("DECODE")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data) or first != (kind == b"IHDR"):
            raise Refused("DECODE")
        if kind == b"IHDR":
            _png_header(data[at + 8 : end - 4], max_pixels, len(data))
        if kind == b"acTL":
            raise Refused("FRAMES")
        if kind in KEPT_CHUNKS:
            if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
                raise Refused("DECODE")
            kept.append(view[at:end])
        else:
            meta += length + 1
        if meta > MAX_META_BYTES:
            raise Refused("META_LIMIT")
        at, first = end, False
        if kind == b"IEND":
            check_end(data, at)
            return b"".join(kept) if meta else data


def _png_header(header: bytes, max_pixels: int, file_bytes: int) -> None:
    if len(header) != 13:
        raise Refused("HEADER")
    width, height, depth, colour = struct.unpack(">IIBB", header[:10])
    if depth == 16 and colour in (0, 4):  # there is no agreed way from 16-bit grey to 8 bits a channel
        check_pixels(width, height, max_pixels, file_bytes)
        raise Refused("MODE")
    check_pixels(width, height, max_pixels, file_bytes)


def check_jpeg(data: bytes, max_pixels: int) -> bytes:
    """Walk the segments and scans. Returns them without APPn and comments, up to the end of the image."""
    at, kept, meta, scans = 2, [data[:2]], 0, 0
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise Refused("DECODE")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xD9:
            break
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if marker in SOF:
            _jpeg_header(data, at, max_pixels)
        if marker == 0xDA:
            scans += 1
            if scans > MAX_JPEG_SCANS:
                raise Refused("CPU_LIMIT")
            found = IN_SCAN.search(data, end)
            end = found.end() - 2 if found else len(data)
        if marker == 0xE2 and data[at + 4 : at + 8] == b"MPF\0":
            raise Refused("FRAMES")
        if marker in KEPT_SEGMENTS or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[at:end])
        else:
            meta += end - at
        if meta > MAX_META_BYTES:
            raise Refused("META_LIMIT")
        at = end
    if data[at : at + 2] == b"\xff\xd9":
        check_end(data, at + 2)
        kept.append(b"\xff\xd9")
    return b"".join(kept)


def _jpeg_header(data: bytes, at: int, max_pixels: int) -> None:
    if at + 10 > len(data):
        raise Refused("DECODE")
    depth, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
    check_pixels(width, height, max_pixels, len(data))
    if depth != 8 or channels not in (1, 3):  # CMYK has no colours without its profile
        raise Refused("MODE")


def check_bmp(data: bytes, max_pixels: int) -> bytes:
    """Size and end of a Windows bitmap."""
    if len(data) < 30:
        raise Refused("DECODE")
    announced, offset, header = struct.unpack_from("<I4xII", data, 2)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        packed = 0
    elif header >= 40 and len(data) >= 34:
        width, height, _, bits, packed = struct.unpack_from("<iiHHI", data, 18)
        height = abs(height)  # negative: top row first
    else:
        raise Refused("HEADER")
    check_pixels(width, height, max_pixels, len(data))
    end = announced or len(data) if packed in (1, 2) else offset + (width * bits + 31) // 32 * 4 * height
    if end > len(data):
        raise Refused("DECODE")
    check_end(data, max(end, min(announced, end + 4)))  # some programs pad by two bytes
    return data


def check_end(data: bytes, end: int) -> None:
    """Refuse anything but zeros after the image: a second file may hide there."""
    if data[end:].strip(b"\0"):
        raise Refused("TRAIL")


def check_tiff_file(data: bytes, max_pixels: int) -> bytes:
    """One page, sane tags, nothing appended."""
    width, height = check_tiff(data)
    check_pixels(width, height, max_pixels, len(data))
    return data


CHECKS: dict[str, Callable[[bytes, int], bytes]] = {
    "PNG": check_png,
    "JPEG": check_jpeg,
    "BMP": check_bmp,
    "TIFF": check_tiff_file,
}
