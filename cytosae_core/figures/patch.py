"""Patch scale: codes of a cell's 256 patches as a heat map over the ORIGINAL image.

The encoder squashes the whole image to 224 x 224 and cuts it into 16 x 16 patches, so patch (row r, column c) is
token 1 + 16 r + c and covers rows r H / 16 .. (r + 1) H / 16 and the same of the columns of an image of H x W
pixels. Token 0 (CLS) has no place on the cell and is never drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import DataError
from .canvas import MUTED, name, paper, sheet

GRID = 16
TOKENS = 1 + GRID * GRID
COLOURS = "YlOrRd"  # lightness falls steadily: readable without colour vision
OPACITY = 0.72  # of a patch that fires; one that does not shows the bare cell
PRINTED = 3  # strongest patches whose value is written

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One cell to draw: RGB pixels [H, W, 3] at the original size, and what stands above it."""

    pixels: Pixels
    title: str


def patch_grid(codes: NDArray[Any]) -> Floats:
    """Codes of one concept at the 257 tokens of an image -> its 16 x 16 patches, CLS dropped.

    Raises:
        DataError: not 257 values.
    """
    if codes.shape != (TOKENS,):
        raise DataError(f"Expected codes [{TOKENS}] (CLS first), got {list(codes.shape)}.")
    return np.asarray(codes[1:], dtype=np.float64).reshape(GRID, GRID)


def heat_map(codes: NDArray[Any], height: int, width: int, *, smooth: bool = False) -> Floats:
    """Code at every pixel of the original image, [height, width], in units of the code.

    Args:
        codes: [257] codes of one concept, CLS first.
        smooth: bilinear between the centres of patches; otherwise the patch that the pixel's centre lies in.
    """
    grid = patch_grid(codes)
    rows = (np.arange(height) + 0.5) * GRID / height  # in patches
    columns = (np.arange(width) + 0.5) * GRID / width
    if not smooth:
        return np.asarray(grid[np.ix_(rows.astype(int), columns.astype(int))])
    places = np.meshgrid(rows - 0.5, columns - 0.5, indexing="ij")
    return np.asarray(ndimage.map_coordinates(grid, places, order=1, mode="nearest"))


def overlay(pixels: Pixels, heat: Floats, top: float, *, fade: bool = False) -> Pixels:
    """The cell in grey with the heat map on it, [H, W, 3]; where the code is 0 the cell is untouched grey.

    `top` is the code at the end of the colour scale; `fade` lets the lowest tenth of it run out softly.
    """
    grey = pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma
    base = np.repeat(grey[..., None], 3, axis=2)
    colour = colormaps[COLOURS](np.clip(heat / top if top > 0 else heat * 0, 0, 1))[..., :3] * 255
    share = np.clip(heat / (top / 10), 0, 1) if fade and top > 0 else (heat > 0).astype(np.float64)
    opacity = OPACITY * share[..., None]
    return np.asarray(np.round(base * (1 - opacity) + colour * opacity), dtype=np.uint8)


def strongest(codes: NDArray[Any], count: int = PRINTED) -> list[tuple[int, int, float]]:
    """(row, column, code) of the strongest patches that fire, best first, far enough apart to be written."""
    grid = patch_grid(codes)
    chosen: list[tuple[int, int, float]] = []
    for place in np.argsort(-grid.ravel(), kind="stable").tolist():
        row, column = divmod(place, GRID)
        if len(chosen) == count or grid[row, column] <= 0:
            break
        if all(abs(row - r) > 1 or abs(column - c) > 2 for r, c, _ in chosen):
            chosen.append((row, column, float(grid[row, column])))
    return chosen


def patch_figure(
    cells: Sequence[Cell], concepts: Sequence[int], codes: NDArray[Any], *, smooth: bool = False
) -> Figure:
    """Rows: cells. Columns: the cell itself, then one heat map per concept, all on one colour scale.

    Args:
        codes: [cells, concepts, 257] codes, CLS first.

    Raises:
        DataError: no cell, no concept, or codes of another shape.
    """
    if not len(cells) or not len(concepts) or codes.shape != (len(cells), len(concepts), TOKENS):
        raise DataError(f"Expected codes [{len(cells)}, {len(concepts)}, {TOKENS}], got {list(codes.shape)}.")
    top = float(codes[:, :, 1:].max())
    with paper():
        figure = sheet(1.9 + 2.5 * (len(concepts) + 1), 0.75 + 2.65 * len(cells))
        axes = figure.subplots(len(cells), len(concepts) + 1, squeeze=False)
        for row, cell in enumerate(cells):
            _plain_cell(axes[row, 0], cell)
            for column, concept in enumerate(concepts):
                title = f"concept {concept}" if row == 0 else ""
                _heat_cell(axes[row, column + 1], cell, codes[row, column], top, title, smooth)
        _colour_bar(figure, axes, top)
    return figure


def _plain_cell(axis: Any, cell: Cell) -> None:
    height, width = cell.pixels.shape[:2]
    axis.imshow(cell.pixels, extent=(0, width, height, 0), interpolation="nearest")
    axis.set_title(name(cell.title, 44), loc="left")
    axis.set_xlabel(f"{width} x {height} pixels", color=MUTED, fontsize=7)
    _bare(axis)


def _heat_cell(axis: Any, cell: Cell, codes: NDArray[Any], top: float, title: str, smooth: bool) -> None:
    height, width = cell.pixels.shape[:2]
    heat = heat_map(codes, height, width, smooth=smooth)
    axis.imshow(
        overlay(cell.pixels, heat, top, fade=smooth), extent=(0, width, height, 0), interpolation="nearest"
    )
    lines = np.arange(1, GRID)
    axis.hlines(lines * height / GRID, 0, width, colors="white", linewidths=0.25, alpha=0.6)
    axis.vlines(lines * width / GRID, 0, height, colors="white", linewidths=0.25, alpha=0.6)
    for row, column, value in strongest(codes):
        x, y = (column + 0.5) * width / GRID, (row + 0.5) * height / GRID
        text = axis.text(
            min(max(x, 0.07 * width), 0.93 * width), y, f"{value:.2g}", ha="center", va="center", fontsize=6.5
        )
        text.set_path_effects([withStroke(linewidth=1.6, foreground="white")])
    if title:
        axis.set_title(title, loc="left")
    grid = patch_grid(codes)
    fired = int((grid > 0).sum())
    axis.set_xlabel(
        f"fires in {fired} of 256 patches, at most {grid.max():.2g}" if fired else "does not fire in this cell",
        color=MUTED, fontsize=7,
    )  # fmt: skip
    _bare(axis)


def _bare(axis: Any) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _colour_bar(figure: Figure, axes: Any, top: float) -> None:
    scale = ScalarMappable(Normalize(0, top if top > 0 else 1), COLOURS)
    bar = figure.colorbar(scale, ax=axes, shrink=0.6, aspect=28, pad=0.01)
    bar.set_label("code of the patch\none scale for all panels")
    bar.outline.set_linewidth(0.4)
