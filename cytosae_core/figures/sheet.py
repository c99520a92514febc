"""Image scale: the reference sheet of a concept. Each cell stands beside its own heat map.

Three groups, because the strongest cells alone mislead: by mean code over the cell (large or widespread concepts),
by the largest single code (small ones), and one random cell per level of activation, weak to strong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ..concepts.extracted import Extracted
from ..errors import DataError
from .canvas import LOCAL_ONLY, MUTED, name, paper, sheet
from .patch import Pixels, heat_map, overlay

ROW = 5  # cells per row
TILE = 150  # pixels, side of a cell on a page
GROUPS = ("mean", "peak", "strata")
WORDS = {
    "mean": "strongest by mean code over the cell",
    "peak": "strongest by a single patch",
    "strata": "one random cell per level of activation, weak to strong",
}
VALUES = {"mean": "mean", "peak": "peak", "strata": "peak"}


@dataclass(frozen=True)
class Reference:
    """One stored image that stands for a concept: why (one of `GROUPS`), and its value there."""

    group: str
    image: int
    value: float


@dataclass(frozen=True)
class Shot:
    """One cell as drawn: RGB pixels [H, W, 3], codes [257] of the concept in it, class and number."""

    pixels: Pixels
    codes: NDArray[Any]
    label: str
    image: int


def references(found: Extracted, concept: int) -> list[Reference]:
    """The images of a concept's sheet, group by group; places that no image fills (-1) are left out.

    Raises:
        DataError: no such concept.
    """
    check_concept(found.facts.n, concept)
    tables = {
        "mean": (found.top_image, found.top_mean),
        "peak": (found.top_peak_image, found.top_peak),
        "strata": (found.strata_image, found.strata_value),
    }
    return [
        Reference(group, int(image), float(value))
        for group, (images, values) in tables.items()
        for image, value in zip(images[concept], values[concept], strict=True)
        if image >= 0
    ]


def check_concept(n: int, concept: int) -> None:
    """DataError unless 0 <= concept < n."""
    if not 0 <= concept < n:
        raise DataError(f"Expected 0 <= concept < n={n}, got concept={concept}.")


def sheet_figure(
    concept: int, chosen: Iterable[Reference], shots: Mapping[int, Shot], words: str = ""
) -> Figure:
    """The reference sheet as a figure; all heat maps of the concept share one scale.

    Args:
        shots: by stored image, everything that `chosen` names.
        words: a line under the title.
    """
    chosen = list(chosen)
    groups = [[one for one in chosen if one.group == group] for group in GROUPS]
    rows = [max(1, -(-len(group) // ROW)) for group in groups]
    top = scale_of(shots.values())
    title = f"Concept {concept}" + (f" · {words}" if words else "")
    with paper():
        figure = sheet(11.0, 1.0 + 1.42 * sum(rows) + 0.34 * len(rows), LOCAL_ONLY, title)
        for part, kind, group in zip(
            figure.subfigures(len(groups), 1, height_ratios=rows, squeeze=False)[:, 0],
            GROUPS,
            groups,
            strict=True,
        ):
            part.suptitle(WORDS[kind], x=0.01, ha="left", fontsize=8.5)
            _group(part, group, shots, top)
    return figure


def scale_of(shots: Iterable[Shot]) -> float:
    """Largest code of a patch (CLS left out) over all shots: the end of the colour scale."""
    return max((float(shot.codes[1:].max()) for shot in shots), default=0.0)


def _group(part: Any, group: list[Reference], shots: Mapping[int, Shot], top: float) -> None:
    rows = max(1, -(-len(group) // ROW))
    axes = part.subplots(rows, ROW, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    if not group:
        axes[0].text(0, 0.5, "no such cell", color=MUTED, va="center")
    for axis, reference in zip(axes, group, strict=False):
        shot = shots[reference.image]
        axis.imshow(tile(shot, top), interpolation="nearest")
        caption = f"{name(shot.label, 18)} · {VALUES[reference.group]} {reference.value:.2g}"
        axis.set_title(f"{caption}\nimage {shot.image}", fontsize=6.5, loc="left", pad=2)


def tile(shot: Shot, top: float, side: int = TILE) -> Pixels:
    """The cell and, right of it, its heat map: [side, 2 side + 4, 3]; drawn at original size, then squeezed."""
    height, width = shot.pixels.shape[:2]
    drawn = overlay(shot.pixels, heat_map(shot.codes, height, width), top)
    halves = [_fit(pixels, side) for pixels in (shot.pixels, drawn)]
    gap = np.full((side, 4, 3), 255, np.uint8)
    return np.concatenate([halves[0], gap, halves[1]], axis=1)


def _fit(pixels: Pixels, side: int) -> Pixels:
    """Scaled into a white square, proportions kept, centred."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(
        Image.fromarray(pixels).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    )
    square = np.full((side, side, 3), 255, np.uint8)
    y, x = (side - size[1]) // 2, (side - size[0]) // 2
    square[y : y + size[1], x : x + size[0]] = small
    return square
