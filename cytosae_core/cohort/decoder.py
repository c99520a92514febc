"""The decoder's process: bytes of an image file in, RGB pixels or a word out. It knows no names and no paths.

    started by `sandbox.py`:  python -I -c ... decoder.main("image" | "dicom", file of the shared memory)
    first                     u32 protections in force (`confine.PROTECTIONS`)
    request                   u8 format, u32 most pixels, u64 length; the file's bytes are in the shared memory
    answer                    u8 0 or 1 + index in `words.WORDS`, u32 width, u32 height, f32 CPU seconds so far;
                              RGB rows are in the shared memory

Everything that decoding needs is imported, and one image of each format decoded, before `confine` closes the doors.
It ends when its input ends, so it cannot outlive the process that started it.
"""

from __future__ import annotations

import io
import mmap
import os
import struct

from PIL import Image, ImageFile, UnidentifiedImageError

from ..limits import MAX_IMAGE_PIXELS, SHARED_BYTES
from .confine import allow_seconds, confine, cpu_seconds
from .containers import CHECKS
from .words import WORDS, Refused

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "DICOM")
REQUEST, ANSWER = struct.Struct("<BIQ"), struct.Struct("<BIIf")
# 16-bit grey, 32-bit, floating point, CMYK and Lab have no agreed way to 8-bit RGB.
MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr"})
BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError)
# One pixel of each format: decoding them loads the plugins.
SAMPLES = ("PNG", "JPEG", "BMP", "TIFF")


def decode(kind: str, data: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """The image in RGB. Alpha is dropped, palettes and 1-bit images are looked up, EXIF orientation is not applied.

    Raises:
        Refused: with the reason.
    """
    if kind == "DICOM":
        from .dicom import read_dicom

        return read_dicom(data, max_pixels)
    checked = CHECKS[kind](data, max_pixels)
    try:
        with Image.open(io.BytesIO(checked), formats=(kind,)) as opened:
            if opened.width * opened.height > max_pixels:
                raise Refused("PIX_LIMIT")
            if getattr(opened, "n_frames", 1) != 1:
                raise Refused("FRAMES")
            if opened.mode not in MODES:
                raise Refused("MODE")
            return opened.convert("RGB")
    except Image.DecompressionBombError:
        pass
    except MemoryError:
        raise
    except (*BROKEN, struct.error, RuntimeError, ArithmeticError):
        raise Refused("DECODE") from None
    raise Refused("PIX_LIMIT")


def warm_up(kind: str) -> None:
    """Load all that decoding needs."""
    Image.MAX_IMAGE_PIXELS = None  # our own limit, which also binds formats that Pillow does not ask
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.init()
    for name in SAMPLES:
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, name)
        Image.open(io.BytesIO(stream.getvalue()), formats=(name,)).convert("RGB").load()
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "TIFF", compression="tiff_lzw")
    Image.open(io.BytesIO(stream.getvalue()), formats=("TIFF",)).convert("RGB").load()
    if kind == "dicom":
        from .dicom import warm_up as warm_up_dicom

        warm_up_dicom()


def main(kind: str, shared: int) -> None:
    """Serve requests from standard input until it ends."""
    memory = mmap.mmap(shared, SHARED_BYTES)
    os.close(shared)
    sink = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    warm_up(kind)
    os.write(sink, struct.pack("<I", confine()))
    while len(request := os.read(0, REQUEST.size)) == REQUEST.size:
        form, max_pixels, length = REQUEST.unpack(request)
        allow_seconds()
        os.write(sink, _answer(FORMATS[form], memory, length, max_pixels))


def _answer(kind: str, memory: mmap.mmap, length: int, max_pixels: int) -> bytes:
    try:
        image = decode(kind, memory[:length], max_pixels)
        pixels = image.tobytes()
        memory[: len(pixels)] = pixels
        return ANSWER.pack(0, image.width, image.height, cpu_seconds())
    except Refused as refused:
        word = refused.word
    except MemoryError:
        word = "MEM_LIMIT"
    except RecursionError:
        word = "DEPTH"
    except Exception:  # whatever a library raises on damaged files
        word = "DECODE"
    return ANSWER.pack(1 + WORDS.index(word), 0, 0, cpu_seconds())
