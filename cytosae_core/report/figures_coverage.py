"""Figure F15: accuracy on the cells of which the classifier is most sure (risk-coverage, drawn as accuracy)."""

from __future__ import annotations

from collections.abc import Sequence

from . import svg
from .figure import HALF, NAME, Figure, Missing
from .marks import Series
from .svg import FAINT, INK, MUTED, PALETTE, RULE, Scale
from .text import Json, clean, decimal, entries, mapping, number, percent, short, whole

TITLE = "What if it may say “I don't know”?"
LINES = 8  # sites with a line and a name of their own; of more sites: the mean, worst and best
Z = 1.96
TOP, BOTTOM, LEFT, RIGHT = 34.0, 236.0, 44.0, HALF - 110.0
HOW = (
    "Balanced accuracy of the other sites' classifier on the most confident part of a site's cells: on the right all "
    "cells, on the left only the surest fifth, the rest left to a human. A line that rises to the left: it knows "
    "when it does not know. A flat line: its confidence says nothing. Thick: mean over sites; dotted: the same "
    "sites on all their cells. A gap: withheld, too few {units} in the part, or a kind of cell nearly gone from it."
)
Curve = Sequence[float | None]


def abstention(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """One line per site and their mean; of many sites the mean between the worst and the best."""
    part = mapping(report.get("abstention"))
    shares = [value for value in map(number, part.get("shares") or []) if value is not None]
    curves = {
        clean(site): _values(entry, "value", len(shares))
        for site, entry in mapping(part.get("sites")).items()
    }
    if not shares or not any(value is not None for curve in curves.values() for value in curve):
        return Missing(TITLE, clean(part.get("reason") or "") or "the report has no such analysis")
    pooled = [number(item.get("mean")) for item in entries(part.get("pooled"))][: len(shares)]
    pooled += [None] * (len(shares) - len(pooled))
    chance = number(mapping(report.get("loso")).get("chance"))
    across = Scale(0, 1, LEFT, RIGHT)
    up = _height([*curves.values(), pooled], chance)
    parts = [_axes(across, up), _chance(across, up, chance)]
    parts.append(
        _sites(curves, shares, across, up) if len(curves) <= LINES else _band(curves, shares, across, up)
    )
    parts.append(_same_sites(part, shares, across, up))
    parts.append(_line(pooled, shares, across, up, INK, 2.6, "mean over sites"))
    parts.append(_key(len(curves)))
    how = HOW.format(units=_units(report))
    picture = svg.canvas("abstention", HALF, BOTTOM + 40, "".join(parts), TITLE, how, marks)
    header = ["Site", "n", *(f"Surest {percent(share)}" if share < 1 else "All cells" for share in shares)]
    return Figure("abstention", TITLE, how, picture, header, _rows(part, curves, shares))


def _values(entry: object, key: str, size: int) -> list[float | None]:
    given = mapping(entry).get(key)
    found = [number(value) for value in given] if isinstance(given, list) else []
    return (found + [None] * size)[:size]


def _units(report: Json) -> str:
    least = number(mapping(report.get("study")).get("min_units"))
    return f"units ({whole(least)} at least)" if least else "units"


def _height(curves: Sequence[Curve], chance: float | None) -> Scale:
    """The vertical scale: from a tenth below the lowest value (or chance) to 1."""
    known = [value for curve in curves for value in curve if value is not None]
    lowest = min([*known, chance] if chance is not None else known)
    return Scale(max(0.0, (lowest * 10 // 1) / 10), 1.0, BOTTOM, TOP)


def _axes(across: Scale, up: Scale) -> str:
    parts = [svg.y_axis(up, LEFT, RIGHT, "Balanced accuracy")]
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        parts.append(svg.label(across(share), BOTTOM + 15, percent(share), fill=MUTED, text_anchor="middle"))
    return "".join(
        [*parts, svg.label((LEFT + RIGHT) / 2, BOTTOM + 32, "Share of cells answered", text_anchor="middle")]
    )


def _chance(across: Scale, up: Scale, chance: float | None) -> str:
    if chance is None or not up.low <= chance <= up.high:
        return ""
    y = up(chance)
    name = svg.label(LEFT + 4, y - 4, f"chance {decimal(chance, 2)}", fill=MUTED, font_size=10)
    return svg.line(LEFT, y, RIGHT, y, MUTED, stroke_dasharray="4 3") + name


def _line(
    curve: Curve, shares: Sequence[float], across: Scale, up: Scale, colour: str, width: float, name: str
) -> str:
    """A line through neighbouring known values with a mark on each; a withheld value leaves a gap."""
    parts, run = [], list[tuple[float, float]]()
    for share, value in [*zip(shares, curve, strict=True), (0.0, None)]:
        if value is not None:
            run.append((across(share), up(value)))
        elif run:
            parts.append(svg.polyline(run, colour, stroke_width=width) if len(run) > 1 else "")
            run = []
    mark = Series(name, "circle", colour)
    for share, value in zip(shares, curve, strict=True):
        if value is not None:
            dot = mark.draw(across(share), up(value), 1.2 + width)
            parts.append(svg.hover(dot, f"{name}, {percent(share)} of cells: {value:.3f}"))
    return "".join(parts)


def _sites(curves: dict[str, list[float | None]], shares: Sequence[float], across: Scale, up: Scale) -> str:
    """Every site's line, named at its right end."""
    parts, ends = [], []
    for index, (site, curve) in enumerate(curves.items()):
        colour = PALETTE[index % len(PALETTE)]
        parts.append(_line(curve, shares, across, up, colour, 1.2, site))
        last = [(share, value) for share, value in zip(shares, curve, strict=True) if value is not None]
        if last:
            ends.append((site, colour, across(last[-1][0]), up(last[-1][1])))
    for (site, colour, x, y), at in zip(
        ends, svg.spread([end[3] for end in ends], 13, TOP, BOTTOM), strict=True
    ):
        parts.append(svg.line(x + 4, y, RIGHT + 12, at, colour, stroke_width=0.8))
        parts.append(svg.label(RIGHT + 15, at + 4, short(site, NAME - 6), fill=colour))
    return "".join(parts)


def _band(curves: dict[str, list[float | None]], shares: Sequence[float], across: Scale, up: Scale) -> str:
    """From the worst to the best site at every share."""
    parts = []
    for place, share in enumerate(shares):
        known = [value for curve in curves.values() if (value := curve[place]) is not None]
        if known:
            x, low, high = across(share), up(min(known)), up(max(known))
            bar = svg.rect(x - 5, high, 10, max(low - high, 1), FAINT, stroke=RULE)
            parts.append(svg.hover(bar, f"{len(known)} sites: {min(known):.3f} to {max(known):.3f}"))
    return "".join(parts)


def _same_sites(part: Json, shares: Sequence[float], across: Scale, up: Scale) -> str:
    """What the sites in each mean reach on all their cells: what abstaining at random would give."""
    known = [
        (across(share), up(value))
        for share, item in zip(shares, entries(part.get("pooled")), strict=False)
        if (value := number(item.get("everything"))) is not None
    ]
    return svg.polyline(known, MUTED, stroke_width=1.4, stroke_dasharray="2 3") if len(known) > 1 else ""


def _key(sites: int) -> str:
    said = "mean over sites" if sites <= LINES else f"mean; bar: worst to best of {sites} sites"
    mark = svg.line(LEFT + 96, TOP - 16, LEFT + 114, TOP - 16, INK, stroke_width=2.6)
    return mark + svg.label(LEFT + 120, TOP - 12, said, fill=MUTED)


def _rows(part: Json, curves: dict[str, list[float | None]], shares: Sequence[float]) -> list[list[str]]:
    """Values with 95 % intervals; the mean over sites, and the same sites' mean on all their cells."""
    rows = []
    for site, entry in mapping(part.get("sites")).items():
        errors = _values(entry, "se", len(shares))
        count = whole(number(mapping(entry).get("units"))) or "withheld"
        cells = [
            _with_interval(value, error) for value, error in zip(curves[clean(site)], errors, strict=True)
        ]
        rows.append([clean(site), f"{count} units", *cells])
    pooled = entries(part.get("pooled"))[: len(shares)]
    sites = "/".join(whole(number(item.get("sites"))) or "0" for item in pooled)
    for name, key in (("Mean over sites", "mean"), ("The same sites, all cells", "everything")):
        rows.append([name, f"{sites} sites", *(decimal(number(i.get(key)), 3) or "no site" for i in pooled)])
    return rows


def _with_interval(value: float | None, error: float | None) -> str:
    if value is None:
        return "withheld"
    if error is None:
        return decimal(value, 3)
    low, high = max(0.0, value - Z * error), min(1.0, value + Z * error)
    return f"{decimal(value, 3)} ({decimal(low, 2)} to {decimal(high, 2)})"
