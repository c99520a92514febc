"""Scatter plots of all concepts: heterogeneity (pooled effect v tau), and shortcuts (class v site).

Up to `DOTS` concepts are drawn one by one; more are counted in squares, so that a page stays small at any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import svg
from .figure import HALF, Figure, Missing
from .figures_data import FAIL, OPEN, Concepts, state_word
from .marks import Series, legend
from .svg import DIFFER, HOLD, MUTED, Scale
from .text import Json, decimal, mean, precise, whole

DOTS = 400
LISTED = 40  # rows of the table under a scatter plot
GRID = (40, 26)  # squares across and up
CLEAR = Series("prediction interval excludes .5", "circle", HOLD)
CROSSES = Series("prediction interval crosses .5", "circle", MUTED, filled=False)
PASSES = Series("hospital cannot be read from it", "circle", HOLD, filled=False)
FAILS = Series("hospital can be read from it (fails the shortcut check)", "cross", DIFFER)
UNKNOWN = Series("check not made", "square", MUTED, filled=False)


@dataclass(frozen=True)
class Point:
    """One concept: where it lies, which series it belongs to, what a pointer says."""

    place: int
    x: float
    y: float
    series: int


@dataclass(frozen=True)
class Axes:
    """Scales of a scatter plot, what they are called, reference lines by value (upright, level)."""

    across: Scale
    up: Scale
    names: tuple[str, str]
    upright: dict[float, str]
    level: dict[float, str]


def heterogeneity(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """F6: pooled effect against the spread between sites (tau)."""
    title, concepts = "How much do sites differ, concept by concept?", Concepts(report)
    effect, spread = concepts.values("estimate"), concepts.values("tau2")
    points = []
    for place, (x, tau2) in enumerate(zip(effect, spread, strict=True)):
        if x is not None and tau2 is not None and tau2 >= 0:
            points.append(Point(place, x, math.sqrt(tau2), 0 if _clear(concepts, place) else 1))
    if not points:
        return Missing(title, "no concept could be pooled over three or more sites")
    highest = svg.nice_ceiling(max(max(point.y for point in points), 0.1))
    names = ("Pooled AUROC at its class", "Spread between sites (tau, logit scale)")
    axes = Axes(_across(), _up(0, highest), names, {0.5: "no meaning"}, {})
    how = (
        "Each mark is a concept. Sideways: what it says about its class, pooled over sites (.5: nothing). Upwards: "
        "how much sites differ beyond chance. A concept is of use at a new hospital only where its prediction "
        f"interval stays clear of .5: strong and low down. {_squares(points)}"
    )

    def row(point: Point) -> list[str]:
        pair = concepts.interval("prediction_", point.place)
        shown = " to ".join(precise(end) for end in pair) if pair else "none"
        return [concepts.id(point.place), concepts.name("target", point.place) or "none", precise(point.x),
                decimal(point.y, 2), shown, whole(concepts.value("sites", point.place))]  # fmt: skip

    header = ("Concept", "Speaks of", "Pooled AUROC", "tau", "Prediction interval", "Sites")
    return _figure("heterogeneity", title, how, points, (CLEAR, CROSSES), axes, header, row, marks, concepts)


def _clear(concepts: Concepts, place: int) -> bool:
    pair = concepts.interval("prediction_", place)
    return pair is not None and (pair[0] > 0.5 or pair[1] < 0.5)


def shortcuts(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """F9: does a concept tell classes apart, or hospitals?"""
    title, concepts = "Does a concept read the cell, or the hospital?", Concepts(report)
    effect, site, null = (concepts.values(name) for name in ("mean", "site_accuracy", "site_null"))
    points = []
    for place, (x, y) in enumerate(zip(effect, site, strict=True)):
        if x is not None and y is not None:
            gate = concepts.gate("shortcut", place)
            points.append(Point(place, max(x, 1 - x), y, 1 if gate == FAIL else 2 if gate == OPEN else 0))
    if not points:
        return Missing(title, "no site released how well single concepts tell sites apart within a class")
    middle = mean([null[point.place] for point in points])
    level = {} if middle is None else {middle: f"two halves of one site {precise(middle)}"}
    low = min([0.45, *(point.y for point in points), *level])
    high = max([0.7, *(point.y for point in points)])
    step = svg.nice_step(high - low, 5)
    up = _up(math.floor(low / step) * step, math.ceil(high / step) * step)
    names = ("AUROC at its class, either way (.5: no meaning)", "Share of images told from another site")
    axes = Axes(Scale(0.5, 1, 46, HALF - 14), up, names, {}, level)
    how = (
        "Each mark is a concept, taken alone. Sideways: how well it tells its kind of cell. Upwards: how well it "
        "tells which hospital a cell of one kind comes from; the dashed line is the same test on two halves of one "
        f"hospital, where there is nothing to tell. Crosses fail the check. {_squares(points)}"
    )

    def row(point: Point) -> list[str]:
        gate = ("pass", "FAIL", "not assessed")[point.series]
        return [concepts.id(point.place), concepts.name("target", point.place) or "none", precise(point.x),
                decimal(point.y, 3), decimal(null[point.place], 3) or "none", gate,
                state_word(concepts.name("state", point.place))]  # fmt: skip

    header = (
        "Concept",
        "Speaks of",
        "AUROC, either way",
        "Site told",
        "Two halves of a site",
        "Shortcut",
        "State",
    )
    shown = sorted(points, key=lambda point: (point.series != 1, -point.y, point.place))
    return _figure(
        "shortcut", title, how, shown, (PASSES, FAILS, UNKNOWN), axes, header, row, marks, concepts
    )


def _across() -> Scale:
    return Scale(0, 1, 46, HALF - 14)


def _up(low: float, high: float) -> Scale:
    return Scale(low, high, 306, 66)


def _squares(points: Sequence[Point]) -> str:
    if len(points) <= DOTS:
        return ""
    return (
        f"{whole(float(len(points)))} concepts are too many to draw one by one: each square counts those that lie in "
        "it (few: pale, many: strong; from one colour to the next about twice as many)."
    )


def _figure(
    key: str, title: str, how: str, points: Sequence[Point], series: Sequence[Series], axes: Axes,
    header: Sequence[str], row: Callable[[Point], list[str]], marks: Sequence[str], concepts: Concepts,
) -> Figure:  # fmt: skip
    used = [item for index, item in enumerate(series) if any(point.series == index for point in points)]
    names, height = legend(used, 4, 8, HALF - 10)
    drawn = _grid(axes) + (
        _dots(points, series, axes, concepts) if len(points) <= DOTS else _counts(points, series, axes)
    )
    shift = svg.el("g", drawn, transform=f"translate(0 {height - 34:.0f})")
    counts = [[item.name, whole(float(sum(series[p.series] is item for p in points)))] for item in used]
    said = f"{title} {'; '.join(f'{name}: {count}' for name, count in counts)}. {how}"
    picture = svg.canvas(key, HALF, 306 + height + 6, names + shift, title, said, marks)
    rows = [row(point) for point in points[:LISTED]]
    if len(points) > LISTED:
        rest = f"and {len(points) - LISTED:,} more: see the catalogue (R7) and report.csv"
        rows.append([rest, *("" for _ in header[1:])])
    return Figure(key, title, how, picture, header, rows)


def _grid(axes: Axes) -> str:
    parts = [svg.y_axis(axes.up, axes.across.start, axes.across.stop, axes.names[1])]
    parts.append(svg.x_axis(axes.across, axes.up.stop, axes.up.start, axes.names[0]))
    for value, name in axes.upright.items():
        x = axes.across(value)
        parts.append(svg.line(x, axes.up.stop, x, axes.up.start, MUTED, stroke_dasharray="4 3"))
        parts.append(svg.label(x + 4, axes.up.stop + 11, name, fill=MUTED, font_size=10))
    for value, name in axes.level.items():
        y = axes.up(value)
        parts.append(svg.line(axes.across.start, y, axes.across.stop, y, MUTED, stroke_dasharray="4 3"))
        parts.append(svg.label(axes.across.stop, y - 4, name, fill=MUTED, font_size=10, text_anchor="end"))
    return "".join(parts)


def _dots(points: Sequence[Point], series: Sequence[Series], axes: Axes, concepts: Concepts) -> str:
    parts = []
    for point in points:
        drawn = series[point.series].draw(axes.across(point.x), axes.up(point.y), 3.0)
        name = f"{concepts.id(point.place)}, {concepts.name('target', point.place) or 'no class'}"
        parts.append(svg.hover(drawn, f"{name}: {precise(point.x)}, {precise(point.y)}"))
    return "".join(parts)


def _counts(points: Sequence[Point], series: Sequence[Series], axes: Axes) -> str:
    """Squares, stronger where more concepts lie; each series in its own colour, the rarer drawn on top."""
    wide, high = GRID
    cell = ((axes.across.stop - axes.across.start) / wide, (axes.up.start - axes.up.stop) / high)
    counts: dict[tuple[int, int, int], int] = {}
    for point in points:
        x = min(int((axes.across(point.x) - axes.across.start) / cell[0]), wide - 1)
        y = min(int((axes.up(point.y) - axes.up.stop) / cell[1]), high - 1)
        counts[point.series, x, y] = counts.get((point.series, x, y), 0) + 1
    most = max(counts.values())
    total = {index: sum(n for key, n in counts.items() if key[0] == index) for index in range(len(series))}
    parts = []
    for (index, x, y), count in sorted(counts.items(), key=lambda item: (-total[item[0][0]], item[0])):
        share = 0.18 + 0.72 * math.log2(count) / max(math.log2(most), 1.0)
        box = svg.rect(
            axes.across.start + x * cell[0] + 1, axes.up.stop + y * cell[1] + 1, cell[0] - 2, cell[1] - 2,
            series[index].colour, fill_opacity=f"{share:.2f}",
        )  # fmt: skip
        parts.append(svg.hover(box, f"{count:,} concepts: {series[index].name}"))
    return "".join(parts)
