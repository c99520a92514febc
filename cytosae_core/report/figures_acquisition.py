"""How pictures look at every site: units per bin of brightness, saturation, focus and cell size, as small bars.

The bins are the same at all sites and were fixed before any study (`concepts.acquisition.EDGES`), so columns can be
compared from site to site. A withheld bin is hatched over its whole height: it is not empty, it is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..concepts.acquisition import EDGES
from . import svg
from .figure import FULL, NAME, Figure, Missing, name_width
from .svg import MUTED, PALETTE, RULE
from .text import Json, clean, mapping, number, short, units_word, whole

TITLE = "How pictures look at each site"
SITES = 12  # of more sites those that differ most from the others
HEIGHT, PITCH, TOP, GAP = 24.0, 32.0, 26.0, 18.0
HEADER = ("Site", "Measured", "{units} per bin, low to high")
HOW = (
    "Each small bar is a bin, the same one at every site; its height is the number of {units} in it, drawn against "
    "the fullest bin of that site. Sites whose hills stand at different places take pictures differently. Hatched: "
    "withheld, too few {units} in the bin. A line without bars: the site did not release this."
)
Bins = list[float | None]


def histograms(report: Json) -> dict[str, dict[str, Bins]]:
    """Released bins by site and fact; only facts whose bins are known by name and number."""
    found = {}
    for site, entry in mapping(report.get("acquisition")).items():
        given = mapping(mapping(entry).get("histogram"))
        facts = {name: _bins(given.get(name), len(edges) + 1) for name, edges in EDGES.items()}
        found[clean(site)] = {name: bins for name, bins in facts.items() if bins}
    return found


def _bins(given: object, size: int) -> Bins:
    """The bins as numbers; empty when there are not as many as the fact has, or none was released."""
    values = [number(value) for value in given] if isinstance(given, list) and len(given) == size else []
    return [] if all(value is None for value in values) else values


def appearance(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """Sites below each other, facts beside each other."""
    found = histograms(report)
    told = {site: facts for site, facts in found.items() if facts}
    if not told:
        return Missing(TITLE, "no site released how light, focus and cell size are distributed")
    shown = list(told) if len(told) <= SITES else _different(report, told)
    left = name_width(shown)
    width = (FULL - left - GAP * (len(EDGES) - 1)) / len(EDGES)
    parts = [svg.hatch("appearance")]
    for index, site in enumerate(shown):
        y = TOP + PITCH * index
        parts.append(svg.label(left - 10, y + HEIGHT - 4, short(site, NAME), text_anchor="end"))
        for place, fact in enumerate(EDGES):
            x = left + place * (width + GAP)
            parts.append(_bars(f"{site}, {fact}", told[site].get(fact, []), x, y, width))
    bottom = TOP + PITCH * len(shown)
    for place, (fact, edges) in enumerate(EDGES.items()):
        parts.append(_axis(fact, edges, left + place * (width + GAP), width, bottom))
    units = units_word(report)
    how = HOW.format(units=units)
    if len(told) > SITES:
        how += f" Shown are the {SITES} sites that differ most from the others; all {len(told)} stand in the table."
    picture = svg.canvas("appearance", FULL, bottom + 22, "".join(parts), TITLE, how, marks)
    header = [name.format(units=units.capitalize()) for name in HEADER]
    return Figure("appearance", TITLE, how, picture, header, _rows(found), True)


def _different(report: Json, told: Mapping[str, object]) -> list[str]:
    """The sites with the largest drift of any fact, in the order of the report."""
    sites = mapping(mapping(report.get("drift")).get("sites"))
    worst = {}
    for site, entry in sites.items():
        values = [number(value) for value in mapping(mapping(entry).get("psi")).values()]
        worst[clean(site)] = max((value for value in values if value is not None), default=-1.0)
    first = sorted(told, key=lambda site: (-worst.get(site, -1.0), site))[:SITES]
    return [site for site in told if site in set(first)]


def _bars(name: str, bins: Bins, x: float, y: float, width: float) -> str:
    """One site's bins of one fact on a base line of `width` px."""
    base = svg.line(x, y + HEIGHT, x + width, y + HEIGHT, RULE)
    most = max((value for value in bins if value is not None), default=0.0)
    parts, pitch = [base], width / max(len(bins), 1)
    for place, value in enumerate(bins):
        at = x + place * pitch
        if value is None:
            parts.append(svg.rect(at + 0.5, y, pitch - 1, HEIGHT, svg.hatched("appearance")))
        elif value > 0 and most > 0:
            tall = max(HEIGHT * value / most, 1.0)
            parts.append(svg.rect(at + 0.5, y + HEIGHT - tall, pitch - 1, tall, PALETTE[0]))
    text = ", ".join("withheld" if value is None else whole(value) for value in bins) or "not released"
    return svg.hover("".join(parts), f"{name}: {text}")


def _axis(fact: str, edges: Sequence[float], x: float, width: float, bottom: float) -> str:
    """The fact's name above its column; its edges below it, every second one so that they can be read."""
    parts = [svg.label(x, 14, fact.capitalize(), font_weight="bold")]
    pitch = width / (len(edges) + 1)
    for place, edge in list(enumerate(edges, 1))[::2]:
        at = x + place * pitch
        parts.append(svg.line(at, bottom - PITCH + HEIGHT, at, bottom - PITCH + HEIGHT + 4, MUTED))
        text = svg.tick_text(edge)
        parts.append(svg.label(at, bottom + 8, text, fill=MUTED, font_size=10, text_anchor="middle"))
    return "".join(parts)


def _rows(found: Mapping[str, Mapping[str, Bins]]) -> list[list[str]]:
    """Bins of every site and fact as one text, and the edges between them."""
    rows = []
    for site, facts in found.items():
        for fact in EDGES:
            bins = facts.get(fact, [])
            text = " | ".join("withheld" if value is None else whole(value) for value in bins)
            rows.append([site, fact, text or "not released"])
    for fact, edges in EDGES.items():
        rows.append(["edges between bins", fact, " | ".join(svg.tick_text(edge) for edge in edges)])
    return rows
