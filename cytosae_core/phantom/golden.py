"""The golden cells: 8 generated pictures in the package that every site embeds before round 1."""

from __future__ import annotations

import io
from importlib.resources import files

from PIL import Image

from ..canonical import parse_json, sha256_hex
from ..errors import SetupError

PART = (190, 170)  # pixels, width and height


def golden_parts() -> list[Image.Image]:
    """The upper left part of each picture: no encoder takes this size, so these see the resize."""
    return [image.crop((0, 0, *PART)) for image in golden_images()]


def golden_images() -> list[Image.Image]:
    """The 8 pictures, checked against their digests; SetupError when one was altered."""
    folder = files(__package__) / "golden"
    pictures = []
    for entry in parse_json((folder / "golden.json").read_bytes()):
        data = (folder / entry["file"]).read_bytes()
        if sha256_hex(data) != entry["sha256"]:
            raise SetupError("Expected the golden cells as released.", hint="Install the package again.")
        pictures.append(Image.open(io.BytesIO(data)).convert("RGB"))
    return pictures
