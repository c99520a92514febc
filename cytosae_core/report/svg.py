"""SVG as text from small pure functions: elements, scales, axes, colours. Lengths are viewBox units (px).

Colours are names (`var(--ink)`): the page's style sheet gives them their values, once for light and once for dark
screens (`style.py`). Okabe and Ito's palette (Color Universal Design, 2008), darkened where text needs it; the
diverging ramp is blue to orange and the sequential one blue, both safe for the common colour-vision deficiencies.
Every series also has its own mark (`marks.py`), so that no figure needs colour to be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .text import escape, short

INK, MUTED, RULE, PAPER = "var(--ink)", "var(--muted)", "var(--rule)", "var(--paper)"
FAINT, HATCH_INK, GREY, TINT = "var(--faint)", "var(--hatch)", "var(--grey)", "var(--tint)"
HOLD, DIFFER = "var(--hold)", "var(--differ)"
PALETTE = tuple(f"var(--s{index})" for index in range(8))
SMALL = 11  # px, text in figures
BAND = 20.0  # px, watermark band with the space below it
STEPS = {"d": 21, "q": 11}  # colours of the diverging and the sequential ramp


def _attribute(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return str(value) if isinstance(value, int) else escape(value)


def el(name: str, content: str = "", /, **attributes: object) -> str:
    """One element. `content` is markup; attribute values are escaped; `_` in names becomes `-`; None is left out."""
    pairs = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()]
    text = "".join(f' {key}="{_attribute(value)}"' for key, value in pairs if value is not None)
    return f"<{name}{text}>{content}</{name}>" if content else f"<{name}{text}/>"


def label(x: float, y: float, value: object, /, **attributes: object) -> str:
    """Text with its baseline at y; the value is escaped."""
    return el("text", escape(value) or " ", x=float(x), y=float(y), **attributes)


def line(x1: float, y1: float, x2: float, y2: float, colour: str = RULE, /, **attributes: object) -> str:
    """A straight line."""
    place = {"x1": float(x1), "y1": float(y1), "x2": float(x2), "y2": float(y2)}
    return el("line", stroke=colour, **place, **attributes)


def rect(x: float, y: float, width: float, height: float, fill: str, /, **attributes: object) -> str:
    """A filled rectangle."""
    place = {"x": float(x), "y": float(y), "width": float(width), "height": float(height)}
    return el("rect", fill=fill, **place, **attributes)


def polyline(points: Sequence[tuple[float, float]], colour: str, /, **attributes: object) -> str:
    """A line through points."""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return el("path", d=path, fill="none", stroke=colour, **attributes)


def hover(markup: str, text: object) -> str:
    """`markup` in a group with a name that pointers and readers find."""
    return el("g", el("title", escape(text)) + markup)


def width_of(value: str, size: float = SMALL) -> float:
    """Estimated width in px of sans-serif text; wide scripts count double."""
    return sum(size * (0.56 if ord(character) < 0x1100 else 1.05) for character in value)


@dataclass(frozen=True)
class Scale:
    """A linear map from values in [low, high] to px in [start, stop]; values outside are held at the ends."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values inside the scale (steps of 1, 2 or 5 times a power of ten)."""
        step = nice_step(self.high - self.low, count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(step * index, 10) for index in range(first, last + 1)]


def nice_step(extent: float, count: int = 5) -> float:
    """A round step that cuts `extent` into about `count` parts."""
    raw = extent / count if extent > 0 else 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next((factor for factor in (1, 2, 5) if factor * power >= raw * 0.999), 10)


def nice_ceiling(value: float, count: int = 5) -> float:
    """The next round value at or above `value`."""
    step = nice_step(value, count)
    return math.ceil(value / step - 1e-9) * step


def tick_text(value: float) -> str:
    """A tick's value without trailing zeros: 0.5, 1, 20."""
    return f"{value:g}".replace("-", "−")


def x_axis(scale: Scale, top: float, bottom: float, name: str, count: int = 5) -> str:
    """Vertical grid lines from top to bottom, tick values below, the axis' name below them."""
    parts = []
    for value in scale.ticks(count):
        x = scale(value)
        parts.append(line(x, top, x, bottom))
        parts.append(label(x, bottom + 14, tick_text(value), fill=MUTED, text_anchor="middle"))
    middle = (scale.start + scale.stop) / 2
    return "".join([*parts, label(middle, bottom + 30, name, text_anchor="middle")])


def y_axis(scale: Scale, left: float, right: float, name: str) -> str:
    """Horizontal grid lines, tick values on the left, the axis' name above."""
    parts = [label(left - 32, scale.stop - 12, name)]
    for value in scale.ticks():
        y = scale(value)
        parts.append(line(left, y, right, y))
        parts.append(label(left - 6, y + 4, tick_text(value), fill=MUTED, text_anchor="end"))
    return "".join(parts)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `wanted` (any order), at least `gap` apart and, when there is room, in [low, high]."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed, floor, ceiling = [0.0] * len(wanted), low, high
    for index in order:
        placed[index] = max(wanted[index], floor)
        floor = placed[index] + gap
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def _step(ramp: str, share: float) -> str:
    last = STEPS[ramp] - 1
    return f"var(--{ramp}{round(min(max(share, 0.0), 1.0) * last)})"


def diverging(share: float) -> str:
    """Blue (0) over the paper's colour (.5) to orange (1), in 21 steps."""
    return _step("d", share)


def sequential(share: float) -> str:
    """Nearly the paper's colour (0) to the darkest blue (1; the lightest on dark screens), in 11 steps."""
    return _step("q", share)


def text_on(fill: str) -> str:
    """Black or white, whichever reads better on a step of a ramp (`style.py` chooses, 4.5 : 1 or better)."""
    return fill.replace("var(--", "var(--t")


def hatch(key: str) -> str:
    """The definition of figure `key`'s pattern for suppressed cells; `hatched(key)` refers to it."""
    stroke = el("path", d="M-1 7L7 -1M-1 1L1 -1M5 7L7 5", stroke=HATCH_INK, stroke_width=1)
    box = {"width": 6, "height": 6, "patternUnits": "userSpaceOnUse"}
    return el("defs", el("pattern", rect(0, 0, 6, 6, TINT) + stroke, id=f"{key}-hatch", **box))


def hatched(key: str) -> str:
    """The fill of suppressed cells in figure `key`."""
    return f"url(#{key}-hatch)"


def _banded(body: str, width: float, marks: Sequence[str]) -> str:
    text = short(" · ".join(marks), int(width / 7))
    name = label(6, 11, text, fill="var(--warnink)", font_size=9, letter_spacing=0.6)
    return rect(0, 0, width, 15, "var(--warn)") + name + el("g", body, transform=f"translate(0 {BAND:.0f})")


def canvas(
    key: str, width: float, height: float, body: str, title: str, text: str, marks: Sequence[str]
) -> str:
    """The whole picture, its names for screen readers, and its watermark band on top (when there are marks)."""
    if marks:
        body, height = _banded(body, width, marks), height + BAND
    names = el("title", escape(title), id=f"{key}-t") + el("desc", escape(text), id=f"{key}-d")
    size = {"viewBox": f"0 0 {width:.0f} {height:.0f}", "width": round(width), "height": round(height)}
    who = {"role": "img", "aria_labelledby": f"{key}-t {key}-d"}
    return el("svg", names + body, **size, **who, font_size=SMALL, fill=INK)
