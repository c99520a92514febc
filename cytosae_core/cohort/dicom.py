"""DICOM single-frame images through the optional `pydicom`: pixels only.

Only the tags in `PIXEL_TAGS` are parsed; every other one, the patient's name and number among them, is skipped
while reading and nothing keeps it. What pydicom says about a file may quote a tag, so its warnings and logs are
silenced and its errors are replaced by ours, not chained.
"""

from __future__ import annotations

import logging
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError

MAX_FILE_BYTES = 1 << 30
DEFLATED = "1.2.840.10008.1.2.1.99"
LUT = ("Red", "Green", "Blue")
PIXEL_TAGS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData",
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
INSTALL = "pip install 'cytosae-federation[dicom]'"


def read_dicom(path: Path, max_pixels: int) -> Image.Image:
    """The image in RGB, 8 bits a channel: grey values are mapped linearly from the whole range of BitsStored.

    Raises:
        DataError: pydicom is missing, or the file is damaged, multi-frame, too large, of another colour model, or
            compressed in a way that no installed decoder knows.
    """
    pydicom = _pydicom()
    try:
        return _decode(pydicom, path, max_pixels)
    except DataError:
        raise
    except Exception:  # pydicom raises anything on damaged files, and may quote tags
        pass
    raise DataError(f"Expected a readable DICOM image, {path.name} is not.", hint="Export it again.")


@cache
def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise DataError("Expected the package pydicom for .dcm images.", hint=INSTALL) from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module="pydicom")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def _decode(pydicom: Any, path: Path, max_pixels: int) -> Image.Image:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"Expected a DICOM file of at most {MAX_FILE_BYTES} bytes.")
    syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
    if syntax == DEFLATED:
        raise DataError("Expected a DICOM file that is not deflated.", hint="Export it uncompressed.")
    data = pydicom.dcmread(path, specific_tags=list(PIXEL_TAGS))
    _check(data, max_pixels)
    values = _values(pydicom, data, bool(syntax.is_compressed))
    kind = data.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        values = pydicom.pixels.apply_color_lut(values, data)
        bits, signed = 8 * values.dtype.itemsize, False
    else:
        bits, signed = int(data.BitsStored), bool(data.PixelRepresentation)
    grey = _to_8_bits(values, bits, signed)
    return Image.fromarray(255 - grey if kind == "MONOCHROME1" else grey).convert("RGB")


def _check(data: Any, max_pixels: int) -> None:
    if int(data.get("NumberOfFrames") or 1) != 1:
        raise DataError("Expected a single-frame DICOM image.", hint="Export the frames one by one.")
    if "PixelData" not in data:
        raise DataError("Expected a DICOM file with an image.", hint="Reports have none: leave them out.")
    if int(data.Rows) * int(data.Columns) > max_pixels:
        raise DataError(f"Expected at most {max_pixels} pixels in an image.")
    if data.PhotometricInterpretation not in KINDS or int(data.SamplesPerPixel) not in (1, 3):
        raise DataError(f"Expected a DICOM image of the kinds {KINDS}.", hint="Export it as RGB.")
    if int(data.BitsAllocated) not in (8, 16) or not 1 <= int(data.BitsStored) <= int(data.BitsAllocated):
        raise DataError("Expected a DICOM image of 8 or 16 bits.", hint="Export it again.")


def _values(pydicom: Any, data: Any, compressed: bool) -> NDArray[Any]:
    try:
        return np.asarray(pydicom.pixels.pixel_array(data))  # YBR becomes RGB here
    except RuntimeError:  # its subclass says that a part of the standard is not implemented
        if not compressed:
            raise
    raise DataError("Expected a decoder for this compressed DICOM image.", hint="Export it uncompressed.")


def _to_8_bits(values: NDArray[Any], bits: int, signed: bool) -> NDArray[np.uint8]:
    """Linear from the range of `bits` (signed: around zero) to 0 .. 255; 8-bit values stay as they are."""
    wide = values.astype(np.int64) + ((1 << (bits - 1)) if signed else 0)
    scaled = np.round(np.clip(wide, 0, (1 << bits) - 1) * (255 / ((1 << bits) - 1)))
    return np.asarray(scaled, dtype=np.uint8)
