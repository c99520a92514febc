"""What a figure is: a picture, how to read it, and the same numbers as a table. Shared dot plots and matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from . import svg
from .marks import Series, legend
from .svg import FAINT, MUTED, RULE, Scale
from .text import compact, short

HALF, FULL = 440, 904  # px, half and whole column
NAME = 20  # characters of a site's name in a figure; the table beside it has the whole name
ROW = 24.0
HALF_COLUMNS = 8  # a matrix with more columns takes the whole width


@dataclass(frozen=True)
class Figure:
    """One figure. `how` says how to read it; header and rows are its text alternative (plain text)."""

    key: str
    title: str
    how: str
    picture: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    wide: bool = False


@dataclass(frozen=True)
class Missing:
    """A figure that has no numbers, and why."""

    title: str
    reason: str


@dataclass(frozen=True)
class Dots:
    """One row of a dot plot: its name, values by series name, an optional range, bold rows are summaries."""

    name: str
    values: Mapping[str, float | None]
    span: tuple[float, float] | None = None
    note: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Panel:
    """Where a dot plot stands and what its axis means. `guides`: value -> name of a vertical reference line."""

    scale: Scale
    axis: str
    guides: Mapping[float, str] = field(default_factory=dict)


def name_width(names: Sequence[str]) -> float:
    """px that row names need on the left."""
    return 14 + max((svg.width_of(short(name, NAME)) for name in names), default=20.0)


def dot_rows(rows: Sequence[Dots], series: Sequence[Series], panel: Panel, top: float) -> tuple[str, float]:
    """Rows of marks on a shared horizontal axis, without names; and the y below the axis."""
    bottom = top + ROW * len(rows)
    parts = [svg.x_axis(panel.scale, top, bottom, panel.axis)]
    for value, name in panel.guides.items():
        x = panel.scale(value)
        parts.append(svg.line(x, top - 3, x, bottom, MUTED, stroke_dasharray="4 3"))
        parts.append(svg.label(x, top - 7, name, fill=MUTED, font_size=10, text_anchor="middle"))
    for index, row in enumerate(rows):
        parts.append(_dot_row(row, series, panel, top + ROW * (index + 0.5)))
    return "".join(parts), bottom + 38


def _dot_row(row: Dots, series: Sequence[Series], panel: Panel, y: float) -> str:
    scale, parts = panel.scale, [svg.line(panel.scale.start, y, panel.scale.stop, y, FAINT)]
    if row.span:
        parts.append(svg.line(scale(row.span[0]), y, scale(row.span[1]), y, MUTED, stroke_width=2))
    known = [(item, row.values.get(item.name)) for item in series]
    for item, value in known:
        if value is not None:
            parts.append(svg.hover(item.draw(scale(value), y), f"{row.name}, {item.name}: {value:.3f}"))
    if all(value is None for _, value in known):
        parts.append(svg.label(scale.start + 6, y + 4, "not assessed", fill=MUTED, font_style="italic"))
    return "".join(parts)


def row_names(rows: Sequence[Dots], x: float, top: float) -> str:
    """Names at the left of a dot plot, right aligned at x."""
    parts = []
    for index, row in enumerate(rows):
        y = top + ROW * (index + 0.5) + 4
        weight = "bold" if row.strong else None
        parts.append(svg.label(x, y, short(row.name, NAME), text_anchor="end", font_weight=weight))
    return "".join(parts)


def dot_plot(rows: Sequence[Dots], series: Sequence[Series], panel: Panel) -> tuple[str, float]:
    """Legend, names and marks in a half column; and the height. The panel's scale is moved beside the names."""
    left = name_width([row.name for row in rows])
    names, used = legend(series, 4, 8, HALF - 10)
    top = used + (18.0 if panel.guides else 6.0)
    scale = Scale(panel.scale.low, panel.scale.high, left, HALF - 14)
    marks, bottom = dot_rows(rows, series, Panel(scale, panel.axis, panel.guides), top)
    return names + row_names(rows, left - 10, top) + marks, bottom


def dot_table(
    rows: Sequence[Dots], series: Sequence[Series], first: str
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a dot plot's text alternative."""
    body = [
        [row.name, *("not assessed" if (v := row.values.get(s.name)) is None else f"{v:.3f}" for s in series)]
        for row in rows
    ]
    return [first, *(item.name for item in series)], body


@dataclass(frozen=True)
class Cell:
    """One cell of a matrix: value, or None for hatched; `small` is a second line; `empty` draws nothing."""

    value: float | None
    small: str = ""
    empty: bool = False


Colour = Callable[[float], str]


def matrix(
    key: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Cell]], colour: Colour
) -> tuple[str, float, float]:
    """A matrix with names on both sides; and its width and height. Large ones drop the numbers in the cells."""
    left, room = name_width(rows), FULL if len(columns) > HALF_COLUMNS else HALF
    pitch = min(62.0, max(12.0, (room - left - _overhang(columns)) / max(len(columns), 1)))
    top = _column_room(columns, pitch)
    height = min(pitch, 40.0)
    parts = [svg.hatch(key), column_names(columns, left, top, pitch)]
    for index, row in enumerate(cells):
        y = top + index * height
        name = short(rows[index], NAME)
        parts.append(svg.label(left - 8, y + height / 2 + 4, name, text_anchor="end"))
        parts += [draw_cell(key, c, left + n * pitch, y, (pitch, height), colour) for n, c in enumerate(row)]
    width = max(room, left + pitch * len(columns) + _overhang(columns))
    return "".join(parts), width, top + height * len(rows) + 8


def _overhang(columns: Sequence[str]) -> float:
    """px that the last slanted column name reaches beyond its column."""
    return 6 + 0.87 * svg.width_of(short(columns[-1], NAME)) - 10 if columns else 0.0


def _column_room(columns: Sequence[str], pitch: float) -> float:
    """px above a matrix for its slanted column names."""
    longest = max((svg.width_of(short(name, NAME)) for name in columns), default=20.0)
    return 16 + longest * (0.5 if pitch > 24 else 0.87)


def column_names(
    columns: Sequence[str], left: float, top: float, pitch: float, colours: Sequence[str] = ()
) -> str:
    """Slanted names above columns of width `pitch`, steeper where columns are narrow; `colours`: one per name."""
    angle, parts = (-30 if pitch > 24 else -60), []
    for index, name in enumerate(columns):
        x, y = left + (index + 0.5) * pitch, top - 6
        turn = f"rotate({angle} {x:.1f} {y:.1f})"
        fill = colours[index] if colours else None
        parts.append(svg.label(x, y, short(name, NAME), transform=turn, fill=fill))
    return "".join(parts)


def draw_cell(key: str, cell: Cell, x: float, y: float, size: tuple[float, float], colour: Colour) -> str:
    """One cell with its number when it fits; hatched without a number when there is none."""
    if cell.empty:
        return ""
    width, height = size
    fill = svg.hatched(key) if cell.value is None else colour(cell.value)
    box = svg.rect(x, y, width - 1, height - 1, fill)
    if cell.value is None or width < 26:
        return box
    ink = svg.text_on(fill)
    lift = 0 if not cell.small or height < 28 else 5
    middle = {"text_anchor": "middle", "fill": ink}
    text = svg.label(x + width / 2, y + height / 2 + 4 - lift, compact(cell.value), **middle)
    if lift:
        text += svg.label(x + width / 2, y + height / 2 + 10, cell.small, font_size=9, **middle)
    return box + text


def colour_key(x: float, y: float, ends: tuple[str, str], colour: Colour, values: Sequence[float]) -> str:
    """A small ramp with its two ends named."""
    parts = [svg.label(x, y + 9, ends[0], fill=MUTED)]
    at = x + svg.width_of(ends[0]) + 6
    for value in values:
        parts.append(svg.rect(at, y, 14, 11, colour(value), stroke=RULE, stroke_width=0.5))
        at += 14
    return "".join([*parts, svg.label(at + 6, y + 9, ends[1], fill=MUTED)])
