"""Marks of series: a shape and a colour each. Filled marks are measurements, open ones references and controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .svg import INK, MUTED, el, label, width_of

Draw = Callable[[float, float, float, str, str], str]


def _circle(x: float, y: float, r: float, colour: str, fill: str) -> str:
    return el("circle", cx=float(x), cy=float(y), r=float(r), fill=fill, stroke=colour, stroke_width=1.4)


def _cross(x: float, y: float, r: float, colour: str, fill: str) -> str:
    path = f"M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}m0 {-2 * r:.1f}l{-2 * r:.1f} {2 * r:.1f}"
    return el("path", d=path, fill="none", stroke=colour, stroke_width=1.6)


def _polygon(corners: Sequence[tuple[float, float]]) -> Draw:
    def draw(x: float, y: float, r: float, colour: str, fill: str) -> str:
        path = "M" + "L".join(f"{x + r * dx:.1f} {y + r * dy:.1f}" for dx, dy in corners) + "z"
        return el("path", d=path, fill=fill, stroke=colour, stroke_width=1.4)

    return draw


def _bar(x: float, y: float, r: float, colour: str, fill: str) -> str:
    return el("path", d=f"M{x:.1f} {y - 1.7 * r:.1f}v{3.4 * r:.1f}", stroke=colour, stroke_width=2)


_SHAPES: dict[str, Draw] = {
    "circle": _circle,
    "cross": _cross,
    "bar": _bar,
    "square": _polygon(((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))),
    "triangle": _polygon(((0, -1.1), (1.05, 0.85), (-1.05, 0.85))),
    "diamond": _polygon(((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0))),
}


@dataclass(frozen=True)
class Series:
    """How one kind of value is drawn: its name in the legend, shape, colour, and whether it is filled."""

    name: str
    shape: str = "circle"
    colour: str = INK
    filled: bool = True

    def draw(self, x: float, y: float, r: float = 4.5) -> str:
        """The mark at (x, y) with radius r px."""
        return _SHAPES[self.shape](x, y, r, self.colour, self.colour if self.filled else "none")


def legend(series: Sequence[Series], x: float, y: float, width: float) -> tuple[str, float]:
    """Marks with names from (x, y) on, wrapped at `width` px; and the height used."""
    parts, at, top = [], x, y
    for item in series:
        need = width_of(item.name) + 30
        if at > x and at + need > x + width:
            at, top = x, top + 17
        parts.append(item.draw(at + 5, top) + label(at + 14, top + 4, item.name, fill=MUTED))
        at += need
    return "".join(parts), top - y + 17
