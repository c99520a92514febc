"""Marks and words for a number that the true one is at least (a PSI where bins are withheld)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from . import svg
from .figure import HALF, ROW, Dots, Panel, name_width
from .marks import Series, legend
from .svg import Scale
from .text import Json, clean, mapping

ARROW = 11.0  # px
SAID = " An arrow to the right: some bins are withheld, and the index is at least this."
Lower = Mapping[str, Collection[str]]


def lower_bounds(report: Json) -> dict[str, set[str]]:
    """Facts whose PSI is a lower bound, by site; sites without one are left out."""
    found = {}
    for site, entry in mapping(mapping(report.get("drift")).get("sites")).items():
        detail = mapping(mapping(entry).get("psi_detail"))
        facts = {clean(name) for name, part in detail.items() if mapping(part).get("bound") == "lower"}
        if facts:
            found[clean(site)] = facts
    return found


def arrows(rows: Sequence[Dots], series: Sequence[Series], panel: Panel, lower: Lower) -> str:
    """An arrow to the right of every mark of a half-column dot plot (`figure.dot_plot`) that is a lower bound."""
    top = legend(series, 4, 8, HALF - 10)[1] + (18.0 if panel.guides else 6.0)
    scale = Scale(panel.scale.low, panel.scale.high, name_width([row.name for row in rows]), HALF - 14)
    parts = []
    for index, row in enumerate(rows):
        y = top + ROW * (index + 0.5)
        for item in series:
            value = row.values.get(item.name)
            if value is not None and item.name in lower.get(row.name, ()):
                parts.append(_arrow(scale(value) + 6, y, item.colour))
    return "".join(parts)


def _arrow(x: float, y: float, colour: str) -> str:
    end = x + ARROW
    path = f"M{x:.1f} {y:.1f}H{end:.1f}M{end - 4:.1f} {y - 3:.1f}L{end:.1f} {y:.1f}L{end - 4:.1f} {y + 3:.1f}"
    return svg.el("path", d=path, fill="none", stroke=colour, stroke_width=1.4)


def at_least(
    header: Sequence[str],
    table: Sequence[Sequence[str]],
    lower: Lower,
    reasons: Mapping[tuple[str, str], str],
) -> list[list[str]]:
    """A dot plot's table (site first, then one column per name) with ≥ before lower bounds, and reasons for gaps."""
    out = []
    for site, *cells in table:
        shown = []
        for name, cell in zip(header[1:], cells, strict=True):
            if name in lower.get(site, ()):
                shown.append(f"≥ {cell}")
            else:
                shown.append(reasons.get((site, name), cell))
        out.append([site, *shown])
    return out


def gaps(report: Json) -> dict[tuple[str, str], str]:
    """Why a site has no PSI of a fact, by (site, fact)."""
    found = {}
    for site, entry in mapping(mapping(report.get("drift")).get("sites")).items():
        for name, part in mapping(mapping(entry).get("psi_detail")).items():
            reason = clean(mapping(part).get("reason") or "")
            if reason:
                found[clean(site), clean(name)] = f"not estimable: {reason}"
    return found
