"""Figures of what concepts mean: the map of concepts by sites, strips for lists, the bar of verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from . import svg
from .figure import (
    FULL,
    NAME,
    Cell,
    Figure,
    Missing,
    colour_key,
    column_names,
    draw_cell,
)
from .figures_data import Concepts, concept_sites
from .svg import DIFFER, FAINT, GREY, HOLD, INK, MUTED, PALETTE, RULE, Scale
from .text import Json, compact, precise, short, span, suppressed

VERDICTS = ("holds", "differs", "no class meaning", "too few patients")
VERDICT_COLOURS = {"holds": HOLD, "differs": DIFFER, "no class meaning": GREY, "too few patients": ""}
SHOWN = 12  # concepts per group in the map
MOST_SITES = 60  # columns of the map; sites beyond it are in the linked pages
LINE = 22.0
LABELS = 178.0
Pairs = list[tuple[float | None, float | None]]
MAP_HOW = (
    "Each line is one concept and the kind of cell it speaks of most. A number is the AUROC: the chance that one "
    "patient's cells of that kind show more of the concept, on average, than other cells of another. Orange, above "
    ".5: more of it; blue, below .5: less of it; pale, .5: no connection. Right: the same numbers, one dot per "
    "site, from top to bottom in the order of the columns; up to 8 sites with 95 % intervals. A concept holds when "
    "all its dots lie clearly on the same side of the dashed line."
)


def verdict_counts(report: Json) -> dict[str, int]:
    """Number of concepts per verdict, in the order of `VERDICTS`."""
    found = Concepts(report).counts("verdict")
    return {name: found.get(name, 0) for name in VERDICTS}


def site_colours(sites: Sequence[str]) -> list[str]:
    """One colour per site; all grey when there are more sites than colours that can be told apart."""
    return list(PALETTE[: len(sites)]) if len(sites) <= len(PALETTE) else [MUTED] * len(sites)


def aurocs(concepts: Concepts, place: int, sites: Sequence[str]) -> Pairs:
    """AUROC and its standard error at every site; None when suppressed."""
    return list(
        zip(
            concepts.at_sites("auroc", place, sites), concepts.at_sites("auroc_se", place, sites), strict=True
        )
    )


def concept_map(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """F5: concepts by sites: numbers in cells on the left, the same with confidence intervals on the right."""
    title, concepts = "What the strongest concepts mean, site by site", Concepts(report)
    groups = [(name, concepts.places("verdict", name)[:SHOWN]) for name in ("holds", "differs")]
    every = concept_sites(report)
    if not every or not any(group for _, group in groups):
        return Missing(title, "no concept could be given a meaning at three or more sites")
    if not concepts.with_sites:
        return Missing(title, _elsewhere(concepts))
    sites = every[:MOST_SITES]
    pitch = max(14.0, min(58.0, 420 / len(sites)))
    right = LABELS + pitch * len(sites) + 24
    width = max(float(FULL), right + 260)
    top = 16 + max(svg.width_of(short(site, NAME)) for site in sites) * (0.5 if pitch > 24 else 0.87)
    scale = Scale(0, 1, right, width - 20)
    parts, y = (
        [svg.hatch("concept-map"), column_names(sites, LABELS, top, pitch, site_colours(sites))],
        top + 2,
    )
    for name, group in groups:
        drawn, y = _group(name, concepts, group, sites, pitch, scale, y)
        parts.append(drawn)
    parts += [_map_axis(scale, top, y), _map_key(y + 14, suppressed(report))]
    how = MAP_HOW + (f" The first {MOST_SITES} of {len(every)} sites." if len(every) > MOST_SITES else "")
    picture = svg.canvas("concept-map", width, y + 44, "".join(parts), title, how, marks)
    return Figure("concept-map", title, how, picture, *_map_table(report, concepts, groups, sites), wide=True)


def _elsewhere(concepts: Concepts) -> str:
    if concepts.file:
        return f"a study of this size keeps the values of single sites in {concepts.file} and on the linked pages"
    return "no values of single sites are in the report"


def _group(
    name: str,
    concepts: Concepts,
    group: Sequence[int],
    sites: Sequence[str],
    pitch: float,
    scale: Scale,
    y: float,
) -> tuple[str, float]:
    heading = {"holds": "Hold across sites", "differs": "Do not hold: sites disagree"}[name]
    parts = [svg.label(4, y + 15, heading, font_weight="bold", fill=VERDICT_COLOURS[name], font_size=12)]
    y += LINE
    if not group:
        parts.append(svg.label(4, y + 15, "none", fill=MUTED, font_style="italic"))
        y += LINE
    for place in group:
        parts.append(_concept_line(concepts, place, sites, pitch, scale, y))
        y += LINE
    return "".join(parts), y + 8


def _concept_line(
    concepts: Concepts, place: int, sites: Sequence[str], pitch: float, scale: Scale, y: float
) -> str:
    middle, values, name = y + LINE / 2, aurocs(concepts, place, sites), concepts.id(place)
    parts = [
        svg.label(4, middle + 4, short(name, 9), fill=MUTED),
        svg.label(52, middle + 4, short(concepts.name("target", place) or "no meaning", NAME)),
        svg.line(scale.start, middle, scale.stop, middle, FAINT),
    ]
    for index, (value, _) in enumerate(values):
        box = (LABELS + index * pitch, y)
        parts.append(draw_cell("concept-map", Cell(value), *box, (pitch, LINE), svg.diverging))
    colours = site_colours(sites)
    for index, (value, error) in enumerate(values):
        if value is None:
            continue
        colour = colours[index]
        shift = (index - (len(sites) - 1) / 2) * min(2.6, 15 / len(sites))
        drawn = _estimate(value, error if len(sites) <= len(PALETTE) else None, scale, middle + shift, colour)
        parts.append(svg.hover(drawn, f"{name}, {sites[index]}: {value:.2f}"))
    return "".join(parts)


def _estimate(value: float, error: float | None, scale: Scale, y: float, colour: str) -> str:
    """A dot with its 95 % interval (1.96 standard errors)."""
    bar = ""
    if error is not None:
        bar = svg.line(scale(value - 1.96 * error), y, scale(value + 1.96 * error), y, colour, stroke_width=1)
    return bar + svg.el("circle", cx=scale(value), cy=y, r=2.8, fill=colour, fill_opacity=0.8)


def _map_axis(scale: Scale, top: float, bottom: float) -> str:
    x = scale(0.5)
    parts = [svg.line(x, top, x, bottom, MUTED, stroke_dasharray="4 3")]
    for value, text in ((0.0, "0 less"), (0.5, ".5 none"), (1.0, "more 1")):
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[value]
        parts.append(svg.label(scale(value), top - 6, text, fill=MUTED, text_anchor=anchor))
    return "".join(parts)


def _map_key(y: float, reason: str) -> str:
    ramp = colour_key(4, y, ("less, 0", "1, more"), svg.diverging, [index / 8 for index in range(9)])
    box = svg.rect(262, y, 22, 11, svg.hatched("concept-map"), stroke=RULE)
    return ramp + box + svg.label(290, y + 9, reason, fill=MUTED)


def _map_table(
    report: Json, concepts: Concepts, groups: Sequence[tuple[str, Sequence[int]]], sites: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    rows, reason = [], suppressed(report)
    for name, group in groups:
        for place in group:
            cells = []
            for value, error in aurocs(concepts, place, sites):
                interval = "" if error is None else f" ± {1.96 * error:.2f}"
                cells.append(reason if value is None else f"{value:.2f}{interval}")
            rows.append([concepts.id(place), concepts.name("target", place) or "none", name, *cells])
    return ["Concept", "Speaks of", "Verdict", *sites], rows


def strip(concepts: Concepts, place: int, sites: Sequence[str], key: str) -> str:
    """A small line on 0 to 1 with a mark at .5: a bar for the prediction interval, a dot per site (or one pooled)."""
    scale = Scale(0, 1, 6, 174)
    parts = [svg.line(6, 9, 174, 9), svg.line(90, 2, 90, 16, MUTED, stroke_dasharray="2 2")]
    said, pair = [], concepts.interval("prediction_", place)
    if pair:
        low, high = scale(pair[0]), scale(pair[1])
        parts.append(svg.rect(low, 6, max(high - low, 1.0), 6, HOLD, fill_opacity="0.3"))
        said.append(f"prediction interval {span(pair)}")
    dots = concepts.at_sites("auroc", place, sites) if concepts.with_sites else []
    for site, value in zip(sites, dots, strict=False):
        said.append(f"{site} {'suppressed' if value is None else compact(value)}")
        parts.append("" if value is None else _dot(scale(value), value, 3.2))
    pooled = concepts.value("estimate", place)
    if not dots and pooled is not None:
        said.append(f"pooled {precise(pooled)}")
        parts.append(_dot(scale(pooled), pooled, 4.0))
    title = f"AUROC of {concepts.id(place)} for {concepts.name('target', place) or 'no class'}"
    return svg.canvas(key, 180, 18, "".join(parts), title, "; ".join(said), ())


def _dot(x: float, value: float, r: float) -> str:
    fill = svg.diverging(0.08 if value < 0.35 else 0.92 if value > 0.65 else 0.5)
    return svg.el("circle", cx=x, cy=9, r=r, fill=fill, stroke=INK, stroke_width=0.6)


def verdict_bar(report: Json) -> str:
    """All concepts in one bar, split by verdict; the same counts stand beside it as text."""
    counts = verdict_counts(report)
    total, x, parts = sum(counts.values()), 0.0, [svg.hatch("verdicts")]
    for name, count in counts.items():
        width = FULL * count / total if total else 0.0
        parts.append(
            svg.rect(x, 0, max(width - 1.5, 0.0), 16, VERDICT_COLOURS[name] or svg.hatched("verdicts"))
        )
        x += width
    said = "; ".join(f"{name}: {count}" for name, count in counts.items())
    return svg.canvas("verdicts", FULL, 16, "".join(parts), "All concepts by verdict", said, ())


def verdicts_by_target(report: Json) -> list[list[str]]:
    """For every kind of cell: how many concepts speak of it and hold, or differ."""
    concepts = Concepts(report)
    table: dict[str, dict[str, int]] = {}
    for verdict in ("holds", "differs"):
        for place in concepts.places("verdict", verdict):
            row = table.setdefault(concepts.name("target", place) or "none", {"holds": 0, "differs": 0})
            row[verdict] += 1
    return [[name, f"{row['holds']:,}", f"{row['differs']:,}"] for name, row in sorted(table.items())]
