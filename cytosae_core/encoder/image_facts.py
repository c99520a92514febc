"""What a picture says about lamp, stain, lens and camera: taken before any colours are matched.

Concepts that follow these instead of the cell are caught by them (`concepts/acquisition.py`). Every number is of the
picture squashed to 224 x 224, so that hospitals with other picture sizes, and other encoders, can be compared:

    brightness  mean luminance (ITU-R BT.601), 0 .. 1
    saturation  mean of (max - min) / max over R, G, B, as in HSV, 0 .. 1
    focus       log10(1 + variance of the Laplacian of the luminance in grey values of 0 .. 255)
                (Pech-Pacheco et al. 2000; noise and JPEG sharpen it too: a comparison of pictures of one kind)
    colours     shares of the pixels in 4 x 4 x 4 bins of R, G, B, 64 numbers: what a colour histogram alone can do

The fourth fact, cell size, is the share of stained-cell tokens: the token store takes it from its masks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import COLOUR_BINS, IMAGE_FACTS
from .preprocess import squash

MEASURED = len(IMAGE_FACTS) - 1  # of the picture; cell size is the mask's
WIDTH = MEASURED + COLOUR_BINS
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


def facts_of(image: Image.Image) -> Floats:
    """Brightness, saturation, focus, then 64 colour shares of a picture as it came from the camera: [67]."""
    pixels = squash(image)
    luma = np.asarray(Image.fromarray(pixels).convert("L"))
    return np.concatenate(
        [[luma.mean() / 255, saturation(pixels), focus(luma)], colour_shares(pixels)], dtype=np.float32
    )


def saturation(pixels: Pixels) -> float:
    """Mean HSV saturation of [h, w, 3]; black pixels have none."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    high = np.maximum(np.maximum(red, green), blue)
    low = np.minimum(np.minimum(red, green), blue)
    return float(np.mean((high - low) / np.maximum(high, np.float32(1))))


def focus(luma: Pixels) -> float:
    """log10(1 + variance of the 4-neighbour Laplacian) of grey values [h, w]; 0 for a flat picture."""
    grey = luma.astype(np.int16)
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(np.log10(1 + laplacian.astype(np.float32).var()))


def colour_shares(pixels: Pixels) -> Floats:
    """Share of the pixels in each bin [64]; bin 16 r + 4 g + b, with r, g, b = value // 64."""
    quarter = pixels >> 6
    place = (quarter[..., 0] << 4) | (quarter[..., 1] << 2) | quarter[..., 2]
    return np.asarray(np.bincount(place.ravel(), minlength=COLOUR_BINS) / place.size, dtype=np.float32)


def cell_size(masks: NDArray[np.bool_]) -> Floats:
    """Share of the patches that show the stained cell [n], from masks [n, 257] (CLS first).

    NaN throughout when every mask holds every patch: then the encoder marks no cell, and nobody knows its size.
    """
    size = masks[:, 1:].mean(axis=1, dtype=np.float32)
    return np.asarray(np.full_like(size, np.nan) if (size == 1).all() else size)
