"""Figures of how well the dictionary describes cells: by round, against comparators, trained on one site only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import svg
from .figure import (
    HALF,
    NAME,
    Cell,
    Dots,
    Figure,
    Missing,
    Panel,
    colour_key,
    dot_plot,
    dot_table,
    matrix,
)
from .marks import Series
from .svg import INK, MUTED, PALETTE, Scale
from .text import Json, clean, decimal, entries, mapping, mean, number, numbers, short

FEDERATED = Series("federated", "circle", PALETTE[0])
POOLED = Series("pooled", "bar", INK)
OTHER = Series("best other site's own", "triangle", PALETTE[1], filled=False)
PCA = Series("PCA", "square", PALETTE[2], filled=False)
START = Series("before training", "diamond", PALETTE[3], filled=False)
RANDOM = Series("random rows", "cross", MUTED)
COMPARED = (FEDERATED, POOLED, OTHER, PCA, START, RANDOM)
MANY_SITES = 24  # rows of a figure; of more sites those that matter most, the table has all
LABELLED_LINES = 8  # more lines than this cannot be told apart by name


def site_value(report: Json, name: str) -> dict[str, float | None]:
    """One number of every site."""
    return {
        clean(site): number(mapping(facts).get(name)) for site, facts in mapping(report.get("sites")).items()
    }


def fvu_paths(report: Json) -> dict[str, list[tuple[int, float]]]:
    """Site -> (rounds completed, FVU). A record holds the quality of the dictionary that its round started from."""
    paths: dict[str, list[tuple[int, float]]] = {}
    rounds = entries(report.get("rounds"))
    for record in rounds:
        done = (number(record.get("round")) or 1) - 1
        for site, value in numbers(record.get("sites")).items():
            if value is not None:
                paths.setdefault(site, []).append((int(done), value))
    last = max((int(number(record.get("round")) or 0) for record in rounds), default=0)
    for site, value in site_value(report, "fvu").items():
        if rounds and value is not None:
            paths.setdefault(site, []).append((last, value))
    return paths


def by_round(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """FVU by number of completed rounds, one line per site."""
    title, paths = "Unexplained share by round", fvu_paths(report)
    if not paths:
        return Missing(title, "no round of training was recorded")
    body, height = _lines(paths, number(mapping(report.get("overall")).get("pooled_fvu")))
    how = (
        "Each line is one site; the height is the share of the information in its images that the dictionary does "
        "not explain (FVU) after that many rounds. Lower is better; a line that turns upwards would mean that "
        "training for all is harming that site."
    )
    picture = svg.canvas("fvu-rounds", HALF, height, body, title, how, marks)
    last = max(done for path in paths.values() for done, _ in path)
    header = ["Site", *(f"after {done}" for done in range(last + 1))]
    rows = [
        [site, *(decimal(dict(path).get(done)) or "n/a" for done in range(last + 1))]
        for site, path in paths.items()
    ]
    return Figure("fvu-rounds", title, how, picture, header, rows)


def _lines(paths: Mapping[str, Sequence[tuple[int, float]]], pooled: float | None) -> tuple[str, float]:
    many = len(paths) > LABELLED_LINES
    room = 14.0 if many else 20 + max(svg.width_of(short(site, NAME)) for site in paths)
    top, bottom, left = 26.0, 250.0, 38.0
    last = max(done for path in paths.values() for done, _ in path)
    highest = max(value for path in paths.values() for _, value in path)
    across = Scale(0, max(last, 1), left, HALF - room)
    up = Scale(0, svg.nice_ceiling(highest), bottom, top)
    parts = [svg.y_axis(up, left, across.stop, "Unexplained share (FVU)"), _round_axis(across, bottom)]
    if pooled is not None:
        parts.append(svg.line(left, up(pooled), across.stop, up(pooled), INK, stroke_dasharray="4 3"))
        parts.append(
            svg.label(left + 4, up(pooled) + 13, "all images in one place (pooled)", fill=INK, font_size=10)
        )
    ends = svg.spread([up(path[-1][1]) for path in paths.values()], 13, top, bottom)
    for index, (site, path) in enumerate(paths.items()):
        colour = MUTED if many else PALETTE[index % len(PALETTE)]
        points = [(across(done), up(value)) for done, value in path]
        drawn = svg.polyline(points, colour, stroke_width=0.8 if many else 1.8, stroke_linejoin="round")
        parts.append(svg.hover(drawn, f"{site}: {path[-1][1]:.3f} at the end"))
        if not many:
            parts.append(_line_name(site, points[-1], ends[index], colour))
    return "".join(parts), bottom + 36


def _line_name(site: str, end: tuple[float, float], y: float, colour: str) -> str:
    dot = svg.el("circle", cx=end[0], cy=end[1], r=2.5, fill=colour)
    lead = svg.line(end[0] + 4, end[1], end[0] + 12, y, colour, stroke_width=0.8)
    return dot + lead + svg.label(end[0] + 15, y + 4, short(site, NAME), fill=colour)


def _round_axis(across: Scale, bottom: float) -> str:
    parts = [svg.line(across.start, bottom, across.stop, bottom, MUTED)]
    for value in across.ticks(6):
        if value == int(value):
            parts.append(svg.label(across(value), bottom + 15, int(value), fill=MUTED, text_anchor="middle"))
    middle = (across.start + across.stop) / 2
    return "".join([*parts, svg.label(middle, bottom + 31, "Rounds completed", text_anchor="middle")])


def _best_other(local: Mapping[str, Mapping[str, float | None]], site: str) -> float | None:
    """Lowest FVU at `site` of the dictionaries that single other sites trained alone."""
    known = [table.get(site) for trained_on, table in local.items() if trained_on != site]
    return min((value for value in known if value is not None), default=None)


def local_tables(report: Json) -> dict[str, dict[str, float | None]]:
    """Trained on -> tested at -> FVU."""
    given = mapping(mapping(report.get("comparators")).get("local_only"))
    return {clean(trained_on): numbers(values) for trained_on, values in given.items()}


def comparator_rows(report: Json) -> list[Dots]:
    """FVU of everything the federated dictionary is compared with, one row per site and their mean."""
    given, local = mapping(report.get("comparators")), local_tables(report)
    tables = {
        FEDERATED.name: site_value(report, "fvu"),
        POOLED.name: numbers(given.get("pooled")),
        PCA.name: numbers(given.get("pca")),
        START.name: numbers(given.get("init")) or site_value(report, "fvu_init"),
        RANDOM.name: numbers(given.get("random")) or site_value(report, "fvu_random"),
    }
    sites = list(tables[FEDERATED.name])
    tables[OTHER.name] = {site: _best_other(local, site) for site in sites}
    rows = [Dots(site, {name: table.get(site) for name, table in tables.items()}) for site in sites]
    if len(rows) > 1:
        means = {name: mean([row.values[name] for row in rows]) for name in tables}
        rows.append(Dots("Mean over sites", means, strong=True))
    return rows


def comparators(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """Dot plot of FVU per site: federated and what it has to be judged against."""
    title, rows = "Unexplained share against alternatives", comparator_rows(report)
    values = [value for row in rows for value in row.values.values() if value is not None]
    if not values:
        return Missing(title, "no site reported a quality of the dictionary")
    series = [item for item in COMPARED if any(row.values.get(item.name) is not None for row in rows)]
    panel = Panel(Scale(0, svg.nice_ceiling(max(values)), 0, 1), "Unexplained share (FVU), lower is better")
    shown = rows
    if len(rows) > MANY_SITES:
        worst = sorted(rows[:-1], key=lambda row: (-(row.values.get(FEDERATED.name) or 0.0), row.name))
        shown = [*worst[:MANY_SITES], rows[-1]]
    body, height = dot_plot(shown, series, panel)
    how = (
        "Each row is one site. The filled dot is the shared dictionary. It should lie close to the upright bar (what "
        "one would reach with all images in one place) and left of everything else: the best dictionary of any other "
        "single site, a principal component analysis of equal size, the dictionary before training, and random rows."
    ) + (f" The {MANY_SITES} sites described worst; the table has all." if len(shown) < len(rows) else "")
    picture = svg.canvas("fvu-compare", HALF, height, body, title, how, marks)
    return Figure("fvu-compare", title, how, picture, *dot_table(rows, series, "Site"))


def local_only(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """Heat map: trained on one site alone (rows), tested at each site (columns), the federation as last row."""
    title = "One hospital alone"
    table = local_tables(report)
    if not table:
        return Missing(
            title, "dictionaries of single sites can only be compared where one machine holds all images"
        )
    columns = list(site_value(report, "fvu"))
    table["Federation"] = site_value(report, "fvu")
    known = [value for values in table.values() for value in values.values() if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)

    def colour(value: float) -> str:
        return svg.sequential((value - low) / (high - low) if high > low else 0.5)

    cells = [[Cell(values.get(site)) for site in columns] for values in table.values()]
    body, width, height = matrix("local-only", list(table), columns, cells, colour)
    steps = [low + (high - low) * index / 6 for index in range(7)]
    body += colour_key(
        8, height + 4, (f"{decimal(low)} explained best", f"{decimal(high)} worst"), colour, steps
    )
    how = (
        "Rows: the site that trained a dictionary alone; columns: the site where it was tested; numbers: unexplained "
        "share (FVU), a stronger colour is worse. Strong cells off the diagonal are what a hospital would lose by "
        "using another hospital's dictionary; the last row is the federation."
    )
    picture = svg.canvas("local-only", width, height + 22, body, title, how, marks)
    rows = [
        [name, *(decimal(values.get(site)) or "not assessed" for site in columns)]
        for name, values in table.items()
    ]
    return Figure(
        "local-only", title, how, picture, ["Trained on \\ tested at", *columns], rows, width > HALF
    )
