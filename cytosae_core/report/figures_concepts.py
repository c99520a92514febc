"""Figures of what concepts mean: the map of concepts by sites, agreement between sites, planted concepts."""

from __future__ import annotations

from collections.abc import Sequence

from . import svg
from .figure import (
    FULL,
    HALF,
    NAME,
    Cell,
    Dots,
    Figure,
    Missing,
    Panel,
    colour_key,
    column_names,
    dot_plot,
    dot_table,
    draw_cell,
    matrix,
)
from .svg import INK, MUTED, PALETTE, RULE, Scale, Series
from .text import Json, clean, compact, decimal, entries, mapping, mean, number, numbers, short, suppressed

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
    spoken = [
        clean(name) for name, site in facts.items() if mapping(site).get("status", "reported") == "reported"
    ]
    return spoken or [clean(name) for name in facts]


def auroc(concept: Json, site: str) -> tuple[float | None, float | None]:
    """AUROC and its standard error at one site; None when suppressed."""
    table = {clean(name): mapping(entry) for name, entry in mapping(concept.get("auroc")).items()}
    return number(table.get(site, {}).get("value")), number(table.get(site, {}).get("se"))


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
    parts, y = [svg.hatch("concept-map"), column_names(sites, LABELS, top, pitch)], top + 2
    for name, group in groups:
        drawn, y = _group(name, group, sites, pitch, scale, y)
        parts.append(drawn)
    parts += [_map_axis(scale, top, y), _map_key(y + 14, suppressed(report))]
    how = (
        "Each line is one concept and the kind of cell it speaks of most. A number is the AUROC: the chance that a "
        "random cell of that kind shows more of the concept than a random other cell. Orange, above .5: more of it; "
        "blue, below .5: less of it; white, .5: no connection. Right: the same numbers with 95 % intervals, one dot "
        "per site. A concept holds when all its dots lie clearly on the same side of the dashed line."
    )
    picture = svg.canvas("concept-map", width, y + 44, "".join(parts), title, how, marks)
    return Figure("concept-map", title, how, picture, *_map_table(report, groups, sites), wide=True)


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
    middle, values = y + LINE / 2, [auroc(concept, site) for site in sites]
    parts = [
        svg.label(4, middle + 4, short(concept.get("id", ""), 9), fill=MUTED),
        svg.label(52, middle + 4, short(concept.get("target") or "no meaning", NAME)),
        svg.line(scale.start, middle, scale.stop, middle, "#eceff0"),
    ]
    for index, (value, _) in enumerate(values):
        box = (LABELS + index * pitch, y)
        parts.append(draw_cell("concept-map", Cell(value), *box, (pitch, LINE), svg.diverging))
    low = min((v for v, _ in values if v is not None), default=None)
    for index, (value, error) in enumerate(values):
        if value is None or low is None:
            continue
        colour = PALETTE[index % len(PALETTE)] if len(sites) <= len(PALETTE) else MUTED
        shift = (index - (len(sites) - 1) / 2) * min(2.6, 15 / len(sites))
        drawn = _estimate(value, error, scale, middle + shift, colour)
        parts.append(svg.hover(drawn, f"{concept.get('id')}, {sites[index]}: {value:.2f}"))
    return "".join(parts)


def _estimate(value: float, error: float | None, scale: Scale, y: float, colour: str) -> str:
    """A dot with its 95 % interval (1.96 standard errors)."""
    bar = ""
    if error is not None:
        bar = svg.line(scale(value - 1.96 * error), y, scale(value + 1.96 * error), y, colour, stroke_width=1)
    return bar + svg.el("circle", cx=scale(value), cy=y, r=2.8, fill=colour)


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
            for site in sites:
                value, error = auroc(concept, site)
                interval = "" if error is None else f" ± {1.96 * error:.2f}"
                cells.append(reason if value is None else f"{value:.2f}{interval}")
            rows.append([clean(concept.get("id")), clean(concept.get("target") or "none"), name, *cells])
    return ["Concept", "Speaks of", "Verdict", *sites], rows


def strip(concept: Json, sites: Sequence[str], key: str) -> str:
    """A small line of dots, one per site, on 0 to 1 with a mark at .5; for lists of concepts."""
    scale = Scale(0, 1, 6, 124)
    parts = [svg.line(6, 9, 124, 9), svg.line(65, 2, 65, 16, MUTED, stroke_dasharray="2 2")]
    said = []
    for site in sites:
        value, _ = auroc(concept, site)
        said.append(f"{site} {'suppressed' if value is None else compact(value)}")
        if value is not None:
            fill = svg.diverging(0.08 if value < 0.35 else 0.92 if value > 0.65 else 0.5)
            parts.append(
                svg.el("circle", cx=scale(value), cy=9, r=3.2, fill=fill, stroke=INK, stroke_width=0.6)
            )
    title = f"AUROC of {clean(concept.get('id'))} for {clean(concept.get('target') or 'no class')}"
    return svg.canvas(key, 130, 18, "".join(parts), title, "; ".join(said), ())


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


def _pairs(report: Json, part: str, value: str) -> dict[frozenset[str], Json]:
    found = entries(mapping(report.get("agreement")).get(part))
    return {frozenset((clean(item.get("a")), clean(item.get("b")))): item for item in found if value in item}


def _signed(value: float) -> str:
    return svg.diverging((value + 1) / 2)


def firing_agreement(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """Rank correlation of firing rates between sites."""
    title, pairs = "Do concepts occur equally often?", _pairs(report, "firing_rate", "rho")
    if not pairs:
        return Missing(title, "fewer than two sites released how often concepts occur")
    how = (
        "Rank correlation between two sites of how often each concept occurs: 1 = the same concepts are common and "
        "rare at both; 0 = no relation. Concepts that fire everywhere make this high even when they mean nothing: "
        "read it together with the next figure. Hatched: not assessed, too few concepts released by both sites."
    )
    sites = concept_sites(report)
    cells = [
        [_half(pairs, "rho", a, b, i, j) for j, b in enumerate(sites[:-1])] for i, a in enumerate(sites)
    ][1:]
    body, width, height = matrix("firing", sites[1:], sites[:-1], cells, _signed)
    picture = svg.canvas("firing", width, height, body, title, how, marks)
    rows = [
        [*sorted(pair), _pair(item, "rho"), f"{number(item.get('n')) or 0:.0f}"]
        for pair, item in pairs.items()
        if len(pair) == 2
    ]
    header = ["Site", "Site", "Rank correlation", "Concepts compared"]
    return Figure("firing", title, how, picture, header, rows, width > HALF)


def _half(pairs: dict[frozenset[str], Json], key: str, a: str, b: str, i: int, j: int) -> Cell:
    if j >= i:
        return Cell(None, empty=True)
    return Cell(number(pairs.get(frozenset((a, b)), {}).get(key)))


def _pair(item: Json, key: str) -> str:
    return decimal(number(item.get(key)), 2) or "not assessed: too few values released by both"


def meaning_agreement(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """Correlation of AUROC between sites below the diagonal, its shuffled-label control above it."""
    title, pairs = "Do concepts mean the same?", _pairs(report, "auroc", "r")
    if not pairs:
        return Missing(title, "fewer than two sites released what concepts mean")
    sites = concept_sites(report)
    reliability = numbers(mapping(report.get("agreement")).get("reliability"))
    cells = []
    for i, a in enumerate(sites):
        row = []
        for j, b in enumerate(sites):
            item = pairs.get(frozenset((a, b)), {})
            row.append(
                Cell(reliability.get(a), "self")
                if i == j
                else Cell(number(item.get("r" if j < i else "null")))
            )
        cells.append(row)
    body, width, height = matrix("meaning", sites, sites, cells, _signed)
    how = (
        "Below the diagonal: correlation between two sites of what all concepts say about the kinds of cells; 1 = the "
        "same meaning, 0 = none shared. Diagonal (self): two halves of one site, the best that can be expected. Above "
        "the diagonal: the same with shuffled labels, which must be near 0. Hatched: not assessed, too few values "
        "released by both sites."
    )
    picture = svg.canvas("meaning", width, height, body, title, how, marks)
    rows = [
        [
            *sorted(pair),
            *(_pair(item, key) for key in ("r", "null", "init", "random")),
            f"{number(item.get('n')) or 0:.0f}",
        ]
        for pair, item in pairs.items()
        if len(pair) == 2
    ]
    rows += [
        [site, "(two halves of it)", decimal(value, 2) or "not assessed", "", "", "", ""]
        for site, value in reliability.items()
    ]
    header = [
        "Site",
        "Site",
        "Correlation",
        "Shuffled labels",
        "Before training",
        "Random rows",
        "Values compared",
    ]
    return Figure("meaning", title, how, picture, header, rows, width > HALF)


PLANTED = (
    Series("held-out sites, mean", "circle", PALETTE[0]),
    Series("before training", "diamond", PALETTE[3], filled=False),
    Series("shuffled labels", "cross", MUTED),
)


def planted(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """Recovery of concepts that were painted into synthetic cells."""
    title, found = "Known concepts, found again", entries(report.get("planted"))
    if not found:
        return Missing(title, "only synthetic cells have concepts that are known beforehand")
    rows = []
    for item in found:
        per_site = [value for value in numbers(item.get("auroc")).values() if value is not None]
        values = [number(item.get(key)) for key in ("held_out_mean", "init", "null")]
        named = {series.name: value for series, value in zip(PLANTED, values, strict=True)}
        span = (min(per_site), max(per_site)) if per_site else None
        rows.append(Dots(clean(item.get("attribute")), named, span, "yes" if item.get("recovered") else "no"))
    body, height = dot_plot(
        rows,
        PLANTED,
        Panel(
            Scale(0.3, 1, 0, 1), "AUROC at sites that did not choose it", {0.5: "chance", 0.7: "recovered"}
        ),
    )
    how = (
        "Synthetic cells carry features that were painted in on purpose. For each feature, the concept that reads it "
        "best is chosen at the other sites and tested at the site left out (filled dot: mean; bar: worst to best "
        "site). The open diamond is the dictionary before training, the cross the same search with shuffled labels."
    )
    picture = svg.canvas("planted", HALF, height, body, title, how, marks)
    header, table = dot_table(rows, PLANTED, "Painted-in feature")
    extra = [[clean(item.get("concept") or "none"), row.note] for item, row in zip(found, rows, strict=True)]
    table = [[*row, *more] for row, more in zip(table, extra, strict=True)]
    return Figure("planted", title, how, picture, [*header, "Concept", "Recovered"], table)


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
