"""From an image to the encoder's input, and which tokens show the stained cell.

Always: RGB, PIL bilinear squash to 224 x 224, ImageNet mean and standard deviation (CytoSAE tasks/utils.py:77-81).
Named steps, part of the encoder's digest:

    reinhard    each image's colours matched to a fixed public reference (Reinhard et al. 2001, l-alpha-beta)
    cell-mask   tokens of the stained cell: Otsu on (R + B) / 2 - G at 16 x 16, the component at the centre, grown
                by one token (portability section 0, "col")
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

SIZE, GRID = 224, 16
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
STEPS = ("reinhard", "cell-mask")

# Means and standard deviations of l, alpha, beta (log10 units) over 200 images of Acevedo et al. 2020
# (Mendeley Data snkd93bnjr v1, CC BY 4.0), 20 of each of 10 classes: the public reference.
REFERENCE_MEAN = np.array([-0.22887, 0.01377, 0.01054])
REFERENCE_STD = np.array([0.1918, 0.07027, 0.00521])

# Reinhard et al. 2001, equations 4 and 6: RGB -> LMS -> l, alpha, beta.
RGB_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
LMS_TO_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1, 1], [1, 1, -2], [1, -1, 0]])
# A flat image has no colours to match: its spread is taken as this (log10 units).
MIN_SPREAD = 1e-3

Floats = NDArray[np.float64]


def squash(image: Image.Image, size: int = SIZE) -> NDArray[np.uint8]:
    """The image in RGB at `size` x `size` pixels, aspect not kept: [size, size, 3]."""
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def to_input(pixels: NDArray[np.uint8]) -> Tensor:
    """[s, s, 3] -> normalised float32 [3, s, s]."""
    scaled = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    return (scaled - MEAN) / STD


def to_lab(pixels: NDArray[np.uint8]) -> Floats:
    """l, alpha, beta [pixels, 3] of an image."""
    rgb = np.clip(pixels.reshape(-1, 3) / 255.0, 1 / 255, 1)
    return np.asarray(np.log10(rgb @ RGB_TO_LMS.T) @ LMS_TO_LAB.T)


def match_colours(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image with mean and spread of l, alpha, beta of the public reference."""
    lab = to_lab(pixels)
    spread = np.maximum(lab.std(axis=0), MIN_SPREAD)
    matched = (lab - lab.mean(axis=0)) / spread * REFERENCE_STD + REFERENCE_MEAN
    rgb = (10 ** (matched @ np.linalg.inv(LMS_TO_LAB).T)) @ np.linalg.inv(RGB_TO_LMS).T
    return np.asarray(np.round(np.clip(rgb, 0, 1) * 255), dtype=np.uint8).reshape(pixels.shape)


def cell_mask(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tokens of the stained cell [257], CLS false; never empty (a central disc when nothing is stained)."""
    small = np.asarray(Image.fromarray(pixels).resize((GRID, GRID), Image.Resampling.BOX), dtype=np.float64)
    stain = (small[..., 0] + small[..., 2]) / 2 - small[..., 1]
    above = stain > otsu(stain)
    labels, count = ndimage.label(above)
    if count == 0:
        return _with_cls(_disc())
    nearest = ndimage.distance_transform_edt(~above, return_distances=False, return_indices=True)
    row, column = nearest[:, GRID // 2, GRID // 2]
    return _with_cls(ndimage.binary_dilation(labels == labels[row, column]))


def otsu(values: Floats) -> float:
    """Otsu's threshold (1979) over the sorted values themselves; the maximum when all are equal."""
    ordered = np.sort(values.ravel())
    below = np.arange(1, len(ordered))
    left = np.cumsum(ordered)[:-1] / below
    right = (ordered.sum() - np.cumsum(ordered)[:-1]) / (len(ordered) - below)
    between = below * (len(ordered) - below) * (left - right) ** 2
    return float(ordered[int(np.argmax(between))]) if between.max() > 1e-9 else float(ordered[-1])


def all_patches() -> NDArray[np.bool_]:
    """Every patch token [257], CLS false."""
    return _with_cls(np.ones((GRID, GRID), dtype=bool))


def _disc() -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:GRID, :GRID]
    return np.asarray((rows - 7.5) ** 2 + (columns - 7.5) ** 2 <= 16)


def _with_cls(grid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.concatenate([[False], grid.ravel()])
