"""Figures of what concepts mean: the map of concepts by sites, agreement between sites, planted concepts."""

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
from .svg import FAINT, INK, MUTED, PALETTE, RULE, Scale
from .text import REPORTED, Json, clean, compact, entries, mapping, mean, number, short, status, suppressed

VERDICTS = ("holds", "differs", "no class meaning", "too few patients")
VERDICT_COLOURS = {
    "holds": "#19598f",
    "differs": "#c2641a",
    "no class meaning": "#9aa5ac",
    "too few patients": "",
}
SHOWN = 12  # concepts per group in the map
LINE = 22.0
LABELS = 178.0
MAP_HOW = (
    "Each line is one concept and the kind of cell it speaks of most. A number is the AUROC: the chance that one "
    "patient's cells of that kind show more of the concept, on average, than other cells of another. Orange, above "
    ".5: more of it; blue, below .5: less of it; white, .5: no connection. Right: the same numbers, one dot per "
    "site, from top to bottom in the order of the columns; up to 8 sites with 95 % intervals. A concept holds when "
    "all its dots lie clearly on the same side of the dashed line."
)


def verdict_counts(report: Json) -> dict[str, int]:
    """Number of concepts per verdict, in the order of `VERDICTS`."""
    found = [concept.get("verdict") for concept in entries(report.get("concepts"))]
    return {name: found.count(name) for name in VERDICTS}


def chosen(report: Json, verdict: str, limit: int = SHOWN) -> list[Json]:
    """The first concepts of one verdict: the report lists the strongest first."""
    return [item for item in entries(report.get("concepts")) if item.get("verdict") == verdict][:limit]


def concept_sites(report: Json) -> list[str]:
    """Sites that could speak about concepts: reported, in the report's order."""
    facts = mapping(report.get("sites"))
    spoken = [clean(name) for name, site in facts.items() if status(mapping(site)) == REPORTED]
    return spoken or [clean(name) for name in facts]


def site_colours(sites: Sequence[str]) -> list[str]:
    """One colour per site; all grey when there are more sites than colours that can be told apart."""
    return list(PALETTE[: len(sites)]) if len(sites) <= len(PALETTE) else [MUTED] * len(sites)


def aurocs(concept: Json, sites: Sequence[str]) -> list[tuple[float | None, float | None]]:
    """AUROC and its standard error at every site; None when suppressed."""
    table = {clean(name): mapping(entry) for name, entry in mapping(concept.get("auroc")).items()}
    found = [table.get(site, {}) for site in sites]
    return [(number(entry.get("value")), number(entry.get("se"))) for entry in found]


def concept_map(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """Concepts by sites: numbers in cells on the left, the same with confidence intervals on the right."""
    title = "What the strongest concepts mean, site by site"
    groups = [(name, chosen(report, name)) for name in ("holds", "differs")]
    sites = concept_sites(report)
    if not sites or not any(group for _, group in groups):
        return Missing(title, "no concept could be given a meaning at three or more sites")
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
        drawn, y = _group(name, group, sites, pitch, scale, y)
        parts.append(drawn)
    parts += [_map_axis(scale, top, y), _map_key(y + 14, suppressed(report))]
    picture = svg.canvas("concept-map", width, y + 44, "".join(parts), title, MAP_HOW, marks)
    return Figure("concept-map", title, MAP_HOW, picture, *_map_table(report, groups, sites), wide=True)


def _group(
    name: str, group: Sequence[Json], sites: Sequence[str], pitch: float, scale: Scale, y: float
) -> tuple[str, float]:
    heading = {"holds": "Hold across sites", "differs": "Do not hold: sites disagree"}[name]
    parts = [svg.label(4, y + 15, heading, font_weight="bold", fill=VERDICT_COLOURS[name], font_size=12)]
    y += LINE
    if not group:
        parts.append(svg.label(4, y + 15, "none", fill=MUTED, font_style="italic"))
        y += LINE
    for concept in group:
        parts.append(_concept_line(concept, sites, pitch, scale, y))
        y += LINE
    return "".join(parts), y + 8


def _concept_line(concept: Json, sites: Sequence[str], pitch: float, scale: Scale, y: float) -> str:
    middle, values = y + LINE / 2, aurocs(concept, sites)
    parts = [
        svg.label(4, middle + 4, short(concept.get("id", ""), 9), fill=MUTED),
        svg.label(52, middle + 4, short(concept.get("target") or "no meaning", NAME)),
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
        parts.append(svg.hover(drawn, f"{clean(concept.get('id'))}, {sites[index]}: {value:.2f}"))
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
    report: Json, groups: Sequence[tuple[str, Sequence[Json]]], sites: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    rows, reason = [], suppressed(report)
    for name, group in groups:
        for concept in group:
            cells = []
            for value, error in aurocs(concept, sites):
                interval = "" if error is None else f" ± {1.96 * error:.2f}"
                cells.append(reason if value is None else f"{value:.2f}{interval}")
            rows.append([clean(concept.get("id")), clean(concept.get("target") or "none"), name, *cells])
    return ["Concept", "Speaks of", "Verdict", *sites], rows


def strip(concept: Json, sites: Sequence[str], key: str) -> str:
    """A small line of dots, one per site, on 0 to 1 with a mark at .5; for lists of concepts."""
    scale = Scale(0, 1, 6, 174)
    parts = [svg.line(6, 9, 174, 9), svg.line(90, 2, 90, 16, MUTED, stroke_dasharray="2 2")]
    said = []
    for site, (value, _) in zip(sites, aurocs(concept, sites), strict=True):
        said.append(f"{site} {'suppressed' if value is None else compact(value)}")
        if value is not None:
            fill = svg.diverging(0.08 if value < 0.35 else 0.92 if value > 0.65 else 0.5)
            parts.append(
                svg.el("circle", cx=scale(value), cy=9, r=3.2, fill=fill, stroke=INK, stroke_width=0.6)
            )
    title = f"AUROC of {clean(concept.get('id'))} for {clean(concept.get('target') or 'no class')}"
    return svg.canvas(key, 180, 18, "".join(parts), title, "; ".join(said), ())


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
    table: dict[str, dict[str, int]] = {}
    for concept in entries(report.get("concepts")):
        if concept.get("verdict") in ("holds", "differs"):
            row = table.setdefault(clean(concept.get("target") or "none"), {"holds": 0, "differs": 0})
            row[str(concept["verdict"])] += 1
    return [[name, f"{row['holds']}", f"{row['differs']}"] for name, row in sorted(table.items())]


def mean_replication(report: Json) -> tuple[float | None, float | None, int]:
    """Mean share of meanings chosen elsewhere that hold at the site left out; its control; number of sites."""
    found = [mapping(item) for item in mapping(mapping(report.get("agreement")).get("replication")).values()]
    shares = [number(item.get("share")) for item in found]
    return (
        mean(shares),
        mean([number(item.get("null")) for item in found]),
        sum(v is not None for v in shares),
    )
