"""Makers of hostile image files: bytes, built field by field."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int = 40, height: int = 40, *more: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of zeros that claims a size; extra chunks before the data."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = 1 + 40 * channels * max(1, depth // 8)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        PNG + header + b"".join(more) + chunk(b"IDAT", zlib.compress(bytes(row * 40))) + chunk(b"IEND", b"")
    )


@contextmanager
def silent() -> Iterator[None]:
    """Pillow and pydicom log tags at level DEBUG: here, in the test's own process, that is no finding."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    """A file as Pillow writes it."""
    stream = io.BytesIO()
    with silent():
        image.save(stream, form, **options)
    return stream.getvalue()


def plain(data: bytes) -> Image.Image:
    """What Pillow alone decodes."""
    with silent(), Image.open(io.BytesIO(data)) as opened:
        return opened.convert("RGB")


def noise(size: int = 40, mode: str = "RGB", seed: int = 1) -> Image.Image:
    """Random pixels."""
    values = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def jpeg_claiming(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    data = bytearray(saved(noise(), "JPEG"))
    at = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, height, width)
    return bytes(data)


def many_scans(count: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    data = saved(noise(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    return data[:-2] + scan * count + data[-2:]


def tiff(*pages: list[tuple[int, int, int, int]], after: bytes = b"", loop: bool = False) -> bytes:
    """A little-endian TIFF of (tag, type, count, value) entries per page; the last page may point to the first."""
    out = bytearray(b"II*\0" + struct.pack("<I", 8))
    for number, entries in enumerate(pages):
        size = 2 + 12 * len(entries) + 4
        following = len(out) + size if number + 1 < len(pages) else (8 if loop else 0)
        out += struct.pack("<H", len(entries))
        out += b"".join(struct.pack("<HHII", *entry) for entry in entries)
        out += struct.pack("<I", following)
    return bytes(out + after)


def page(**changes: int) -> list[tuple[int, int, int, int]]:
    """Tags of an 8 x 8 grey page whose one strip is the file's first bytes."""
    tags = {256: (3, 1, 8), 257: (3, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8)}
    tags |= {277: (3, 1, 1), 278: (3, 1, 8), 279: (4, 1, 64)}
    for name, value in changes.items():
        kind, count, _ = tags[int(name[1:])]
        tags[int(name[1:])] = (kind, count, value)
    return [(tag, *entry) for tag, entry in sorted(tags.items())]


def big_tiff(width: int, height: int) -> bytes:
    """A BigTIFF header with sizes of 64 bits."""
    entries = [(256, 16, 1, width), (257, 16, 1, height), (273, 16, 1, 0), (279, 16, 1, 64)]
    body = struct.pack("<Q", len(entries)) + b"".join(struct.pack("<HHQQ", *entry) for entry in entries)
    return b"II+\0" + struct.pack("<HHQ", 8, 0, 16) + body + struct.pack("<Q", 0) + bytes(64)


def dicom(canary: str = "", **tags: Any) -> bytes:
    """A DICOM file of 8 x 8 grey pixels, with the canary in every text tag and a private one."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = Dataset()
    data.file_meta = meta
    data.PatientName, data.PatientID, data.PatientBirthDate = canary, canary, "19640812"
    data.StudyDescription = data.InstitutionName = canary
    data.private_block(0x0013, "CYTOSAE TEST", create=True).add_new(1, "LO", canary)
    data.Rows = data.Columns = 8
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = bytes(range(64))
    data["PixelData"].VR = "OB"
    syntax = tags.pop("syntax", None)
    for name, value in tags.items():
        setattr(data, name, value)
    if syntax is not None:
        data.file_meta.TransferSyntaxUID = syntax
        data.PixelData = pydicom.encaps.encapsulate([tags.get("frame", b"\0\x01" * 40)])
        data["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    with silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def nested_dicom(depth: int) -> bytes:
    """A DICOM file with sequences of undefined length inside each other, before its pixels."""
    whole = dicom()
    at = whole.index(struct.pack("<HH", 0x0028, 0x0002))
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return whole[:at] + opening * depth + closing * depth + whole[at:]
