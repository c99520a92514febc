"""DICOM single-frame images through the optional `pydicom`: pixels only. Runs in the decoder's process.

Only the tags in `PIXEL_TAGS` are parsed; every other one, the patient's name and number among them, is skipped
while reading and nothing keeps it. What pydicom says about a file may quote a tag, so its warnings and logs are
silenced, and only a word for what is wrong leaves this module.
"""

from __future__ import annotations

import codecs
import io
import logging
import struct
import sys
import warnings
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..limits import MAX_DICOM_RECURSION
from .containers import check_pixels
from .words import Refused

DEFLATED = "1.2.840.10008.1.2.1.99"
LUT = ("Red", "Green", "Blue")
PIXEL_TAGS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "BurnedInAnnotation",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in LUT),
    *(f"{colour}PaletteColorLookupTableData" for colour in LUT),
)  # fmt: skip
KINDS = (
    "MONOCHROME1",
    "MONOCHROME2",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_ICT",
    "YBR_RCT",
    "PALETTE COLOR",
)
HALF_CHROMA = "YBR_FULL_422"  # two samples a pixel, where the others have SamplesPerPixel


def read_dicom(data: bytes, max_pixels: int) -> Image.Image:
    """The image in RGB, 8 bits a channel: grey values are mapped linearly from the whole range of BitsStored.

    Raises:
        Refused: the file is damaged, multi-frame, too large, of another colour model, marked as bearing burned-in
            text, or compressed in a way that no installed decoder knows.
    """
    if data[128:132] != b"DICM":
        raise Refused("DECODE")
    pydicom = _pydicom()
    try:
        return _decode(pydicom, data, max_pixels)
    except (Refused, MemoryError):
        raise
    except RecursionError:
        word = "DEPTH"
    except Exception:  # pydicom raises anything on damaged files, and may quote tags
        word = "DECODE"
    raise Refused(word)


def warm_up() -> None:
    """Load what pydicom loads late, and bound how deep it may go."""
    pydicom = _pydicom()
    for names in pydicom.charset.python_encoding.values():
        for name in [names] if isinstance(names, str) else names:
            codecs.lookup(name)
    stream = io.BytesIO()
    sample = _sample(pydicom)
    sample.save_as(stream, enforce_file_format=True)
    read_dicom(stream.getvalue(), 64)
    sample.compress(pydicom.uid.RLELossless)
    stream = io.BytesIO()
    sample.save_as(stream, enforce_file_format=True)
    read_dicom(stream.getvalue(), 64)
    for decoder in vars(pydicom.pixels.decoders).values():
        getattr(decoder, "is_available", None)  # looks for the codecs that are installed
    sys.setrecursionlimit(MAX_DICOM_RECURSION)


def _sample(pydicom: Any) -> Any:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.2"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.Dataset()
    data.file_meta = meta
    data.Rows = data.Columns = 2
    data.SamplesPerPixel, data.PlanarConfiguration, data.PhotometricInterpretation = 3, 0, "YBR_FULL"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = bytes(12)
    data["PixelData"].VR = "OB"
    return data


@cache
def _pydicom() -> Any:
    import pydicom
    import pydicom.pixels.decoders

    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module="pydicom")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def _decode(pydicom: Any, raw: bytes, max_pixels: int) -> Image.Image:
    syntax = pydicom.uid.UID(_syntax(raw))
    if syntax == DEFLATED:  # before anything is inflated
        raise Refused("DEFLATED")
    data = pydicom.dcmread(io.BytesIO(raw), specific_tags=list(PIXEL_TAGS))
    if data.file_meta.TransferSyntaxUID != syntax:
        raise Refused("DECODE")
    compressed = bool(syntax.is_compressed)
    _check(data, max_pixels, len(raw), compressed)
    values = _values(pydicom, data, compressed)
    kind = data.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        values = pydicom.pixels.apply_color_lut(values, data)
        bits, signed = 8 * values.dtype.itemsize, False
    else:
        bits, signed = int(data.BitsStored), bool(data.PixelRepresentation)
    grey = _to_8_bits(values, bits, signed)
    return Image.fromarray(255 - grey if kind == "MONOCHROME1" else grey).convert("RGB")


def _syntax(raw: bytes) -> str:
    """The transfer syntax: a value of the file's first group, which is always explicit little endian."""
    at = 132
    while raw[at : at + 2] == b"\x02\0":
        element, kind, short = struct.unpack_from("<H2sH", raw, at + 2)
        long = kind in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        start, length = (at + 12, struct.unpack_from("<I", raw, at + 8)[0]) if long else (at + 8, short)
        if element == 0x0010:
            return raw[start : start + length].rstrip(b"\0 ").decode("ascii")
        at = start + length
    raise Refused("DECODE")


def _check(data: Any, max_pixels: int, file_bytes: int, compressed: bool) -> None:
    if str(data.get("BurnedInAnnotation") or "NO").strip().upper() == "YES":
        raise Refused("BURNED_IN")
    if int(data.get("NumberOfFrames") or 1) != 1:
        raise Refused("FRAMES")
    if "PixelData" not in data:
        raise Refused("NO_IMAGE")
    rows, columns, samples = int(data.Rows), int(data.Columns), int(data.SamplesPerPixel)
    check_pixels(columns, rows, max_pixels, file_bytes)
    if data.PhotometricInterpretation not in KINDS or samples not in (1, 3):
        raise Refused("KIND")
    if int(data.BitsAllocated) not in (8, 16) or not 1 <= int(data.BitsStored) <= int(data.BitsAllocated):
        raise Refused("BITS")
    each = 2 if data.PhotometricInterpretation == HALF_CHROMA else samples
    expected = rows * columns * each * int(data.BitsAllocated) // 8
    if not compressed and len(data.PixelData) != expected + expected % 2:
        raise Refused("DECODE")


def _values(pydicom: Any, data: Any, compressed: bool) -> NDArray[Any]:
    if compressed and not _has_decoder(pydicom, data.file_meta.TransferSyntaxUID):
        raise Refused("CODEC")
    return np.asarray(pydicom.pixels.pixel_array(data))  # YBR becomes RGB here


def _has_decoder(pydicom: Any, syntax: str) -> bool:
    try:
        return bool(pydicom.pixels.get_decoder(syntax).is_available)
    except RuntimeError:  # not implemented
        return False


def _to_8_bits(values: NDArray[Any], bits: int, signed: bool) -> NDArray[np.uint8]:
    """Linear from the range of `bits` (signed: around zero) to 0 .. 255; 8-bit values stay as they are."""
    stored = np.arange(1 << (8 * values.dtype.itemsize), dtype=values.dtype.str.replace("i", "u"))
    wide = stored.view(values.dtype).astype(np.int64) + ((1 << (bits - 1)) if signed else 0)
    scaled = np.round(np.clip(wide, 0, (1 << bits) - 1) * (255 / ((1 << bits) - 1)))
    return np.asarray(scaled, dtype=np.uint8)[values.view(stored.dtype)]
