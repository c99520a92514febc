"""What all figures share: one sheet of paper, one look, and files that are the same bytes every time.

matplotlib without pyplot (no global state), Agg for PNG, text that is never read as mathematics: names come from
hospital files.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from ..errors import DataError
from ..report.text import short
from ..tensors import write_atomic

LOCAL_ONLY = "local only: shows cells of this hospital"
NUMBERS_LOCAL_ONLY = "local only: shows numbers of this hospital's patients"
INK, MUTED, RULE = "#1c2329", "#56616a", "#d5dadd"
UP, DOWN = (
    "#c94f00",
    "#0072b2",
)  # Okabe and Ito 2008, orange darkened: safe for common colour-vision deficiencies
CLASS_COLOURS = (
    "#0072b2", "#c94f00", "#00805f", "#a8467f", "#806600", "#4b3fae", "#3b3b3b", "#8c2130",
)  # fmt: skip
DPI = 144
_STYLE: Any = {
    "svg.hashsalt": "cytosae",
    "svg.fonttype": "path",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


@contextmanager
def paper() -> Iterator[None]:
    """The look of all figures, for as long as one is drawn; nothing of the caller's matplotlib changes.

    Characters that the font lacks (a name in another script) are drawn as boxes without a warning.
    """
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def sheet(width: float, height: float, note: str = LOCAL_ONLY, title: str = "") -> Figure:
    """An empty figure of width x height inches; `note` stands at its top left corner, the title under it."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    margin = (0.5 if title else 0.24) / height
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 1, 1 - margin))
    x = 0.06 / width
    figure.text(x, 1 - 0.06 / height, note.upper(), ha="left", va="top", fontsize=6.5, color=UP)
    figure.text(x, 1 - 0.25 / height, title, ha="left", va="top", fontsize=9.5)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG by the path's suffix: the same figure gives the same bytes (no dates).

    Raises:
        DataError: another suffix.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise DataError(f"Expected a picture name ending in .png or .svg, got {path.name!r}.")
    empty = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    stream = io.BytesIO()
    with paper():
        figure.savefig(stream, format=kind, dpi=DPI, metadata=empty)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, stream.getvalue())


def class_colour(index: int) -> str:
    """Colour of class `index`; grey for -1, a unit of several classes."""
    return "#9aa5ac" if index < 0 else CLASS_COLOURS[index % len(CLASS_COLOURS)]


def name(value: object, limit: int = 24) -> str:
    """A name from a file, on one line, cut, without control or bidirectional characters."""
    return short(value, limit)
