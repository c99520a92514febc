"""Decoding one image, with limits."""

from __future__ import annotations

from PIL import Image, UnidentifiedImageError

from ..errors import DataError
from .cells import CellImage
from .dicom import read_dicom
from .npz import member_pixels

# A crop of one cell has under 1 megapixel; 100 leaves room for whole fields and stops decompression bombs.
MAX_PIXELS = 100_000_000
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")


def open_rgb(image: CellImage) -> Image.Image:
    """The image in RGB, fully decoded.

    Raises:
        DataError: missing, truncated, not an image of `FORMATS`, or more than `MAX_PIXELS` pixels.
    """
    if image.member:
        return Image.fromarray(member_pixels(image.path, image.member))
    if image.path.suffix.lower() == ".dcm":
        return read_dicom(image.path, MAX_PIXELS)
    # No warnings.catch_warnings here: it is not safe in the threads that decode.
    try:
        with Image.open(image.path, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise DataError(f"Expected at most {MAX_PIXELS} pixels, got {opened.width}x{opened.height}.")
            return opened.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"Expected at most {MAX_PIXELS} pixels in an image.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(
            f"Expected a readable image, {image.path.name} is not.", hint="Export it again."
        ) from error
