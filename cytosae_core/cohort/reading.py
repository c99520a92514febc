"""One image: read with limits here, decoded in a process of its own."""

from __future__ import annotations

from PIL import Image

from ..errors import DataError
from ..limits import MAX_FILE_BYTES, MAX_IMAGE_PIXELS, MIN_FILE_BYTES
from .cells import CellImage
from .npz import member_pixels
from .opening import read_input
from .sandbox import decode_confined
from .words import refusal

MAX_PIXELS, MAX_BYTES = MAX_IMAGE_PIXELS, MAX_FILE_BYTES
# Ending -> format, and how its files begin.
FORMS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".dcm": "DICOM",
}  # fmt: skip
MAGIC = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "DICOM": (b"",),  # 128 bytes of anything, then DICM: the decoder looks
}


def open_rgb(image: CellImage) -> Image.Image:
    """The image in RGB, fully decoded.

    Raises:
        DataError: missing, a link, damaged, too large, or not of the format that its name says; `reason` is one of
            `words.WORDS`. SetupError: the decoder's process does not start.
    """
    if image.member:
        return Image.fromarray(member_pixels(image.path, image.member))
    try:
        return _decode(image)
    except OSError:
        raise refusal("IO", image.name) from None
    except DataError as error:
        if error.reason == "DECODE":
            raise refusal("DECODE", image.name) from None
        raise


def _decode(image: CellImage) -> Image.Image:
    form = FORMS.get(image.path.suffix.lower())
    if form is None:
        raise refusal("FORMAT", image.name)
    data = read_input(image.path, image.root, MAX_BYTES)
    if len(data) < MIN_FILE_BYTES:
        raise refusal("EMPTY", image.name)
    if not data.startswith(MAGIC[form]):
        raise refusal("MAGIC", image.name)
    return decode_confined(form, data, MAX_PIXELS)
