"""Figures of transfer: the cross-site matrix, and whether probabilities hold at each site."""

from __future__ import annotations

from collections.abc import Sequence

from . import svg
from .figure import HALF, Cell, Dots, Figure, Missing, Panel, colour_key, dot_plot, matrix
from .figures_data import site_names
from .marks import Series
from .svg import PALETTE, Scale
from .text import Json, clean, decimal, ends, entries, lines, mapping, number, precise, span, whole

MANY = 24  # sites; with more, a calibration figure has one row per class
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "bar")
MEASURES = ("slope", "slope_se", "citl", "observed", "expected", "brier", "ece")


def cross_matrix(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """F3: trained on (rows) by tested on (columns), with the number of units."""
    title, part = "Trained where, tested where", mapping(report.get("matrix"))
    trained, tested = lines(part.get("trained")), lines(part.get("tested"))
    rows = part.get("cells") if isinstance(part.get("cells"), list) else []
    cells = [[_cell(rows, i, j) for j in range(len(tested))] for i in range(len(trained))]
    values = [cell.value for row in cells for cell in row if cell.value is not None]
    if not values:
        return Missing(title, "no site was tested with what other sites trained")
    endpoint = clean(part.get("endpoint") or "value")
    low, high = (0.0, 1.0) if endpoint == "balanced accuracy" else (min(values), max(values))

    def colour(value: float) -> str:
        return svg.sequential((value - low) / (high - low) if high > low else 0.5)

    body, width, height = matrix("matrix", trained, tested, cells, colour)
    key = [low + (high - low) * index / 6 for index in range(7)]
    body += colour_key(8, height + 4, (f"{precise(low)}", f"{precise(high)}"), colour, key)
    how = _MATRIX_HOW.format(
        endpoint=endpoint, side="a stronger colour is better" if low == 0 else "a stronger colour is worse"
    )
    picture = svg.canvas("matrix", width, height + 22, body, title, how, marks)
    table = [
        [trained[i], tested[j], *_numbers(rows, i, j)]
        for i in range(len(trained))
        for j in range(len(tested))
    ]
    header = ("Trained on", "Tested at", endpoint.capitalize(), "95 % interval", "Units")
    return Figure("matrix", title, how, picture, header, table, width > HALF)


_MATRIX_HOW = (
    "Rows: where the dictionary or the classifier was trained. Columns: where it was tested. Numbers: {endpoint}, "
    "{side}; below it n, the units tested (left out where cells are small: the table has all). Hatched: not assessed."
)


def _entry(rows: object, i: int, j: int) -> Json:
    row = rows[i] if isinstance(rows, list) and i < len(rows) else None
    return mapping(row[j]) if isinstance(row, list) and j < len(row) else {}


def _cell(rows: object, i: int, j: int) -> Cell:
    entry = _entry(rows, i, j)
    count = whole(number(entry.get("n")))
    return Cell(number(entry.get("value")), f"n {count}" if count else "")


def _numbers(rows: object, i: int, j: int) -> list[str]:
    entry = _entry(rows, i, j)
    return [
        precise(number(entry.get("value"))) or "not assessed",
        span(ends(entry.get("interval"))) or "none",
        whole(number(entry.get("n"))) or "not released",
    ]


def calibration_sites(report: Json) -> dict[str, dict[str, Json]]:
    """Site -> class -> numbers of calibration; sites that have any."""
    part = mapping(report.get("calibration"))
    found = {}
    for site in site_names(report):
        table = {clean(name): mapping(entry) for name, entry in mapping(part.get(site)).items()}
        table = {
            name: entry for name, entry in table.items() if any(number(v) is not None for v in entry.values())
        }
        if table:
            found[site] = table
    return found


def ratio(entry: Json) -> float | None:
    """Observed over expected."""
    observed, expected = number(entry.get("observed")), number(entry.get("expected"))
    return None if observed is None or not expected else observed / expected


def calibration(report: Json, marks: Sequence[str]) -> tuple[Figure | Missing, Figure | Missing]:
    """F4: slope, and observed over expected, of every class at every site."""
    sites = calibration_sites(report)
    names = list(dict.fromkeys(name for table in sites.values() for name in table))
    titles = (
        "Are sure predictions right as often as they say? (slope)",
        "Are classes as frequent as predicted? (O:E)",
    )
    if not sites:
        said = clean(mapping(report.get("calibration")).get("reason") or "no site released calibration")
        return Missing(titles[0], said), Missing(titles[1], said)
    slope = {
        site: {name: number(e.get("slope")) for name, e in table.items()} for site, table in sites.items()
    }
    share = {site: {name: ratio(entry) for name, entry in table.items()} for site, table in sites.items()}
    return (
        _ideal_one("calibration-slope", titles[0], slope, names, ("Calibration slope", _SLOPE), marks),
        _ideal_one("calibration-oe", titles[1], share, names, ("Observed over expected", _RATIO), marks),
    )


_SLOPE = (
    "1: a prediction of 80 % is right in 80 of 100 cases; below 1: predictions at this site are too sure; above 1: "
    "not sure enough. Values beyond the axis stand at its end; the table has them."
)
_RATIO = (
    "How often a class occurs, divided by how often the classifier expected it: 1 is right, 2 means twice as often. "
    "Values beyond the axis stand at its end; the table has them."
)


def _ideal_one(
    key: str, title: str, found: dict[str, dict[str, float | None]], names: list[str], words: tuple[str, str],
    marks: Sequence[str],
) -> Figure | Missing:  # fmt: skip
    axis, how = words
    if len(found) > MANY:
        series = [Series("mean over sites", "circle", PALETTE[0])]
        rows = [_class_row(name, found, series[0].name) for name in names]
        how = (
            f"One row per class; the bar reaches from the lowest to the highest of {len(found)} sites. {how}"
        )
    else:
        series = [Series(name, SHAPES[i % 6], PALETTE[i % 8], filled=i < 4) for i, name in enumerate(names)]
        rows = [Dots(site, table) for site, table in found.items()]
    body, height = dot_plot(rows, series, Panel(Scale(0, 2, 0, 1), axis, {1.0: "ideal"}))
    picture = svg.canvas(key, HALF, height, body, title, how, marks)
    header = ["Site", *names]
    table = [
        [site, *(decimal(values.get(name), 2) or "not assessed" for name in names)]
        for site, values in found.items()
    ]
    return Figure(key, title, how, picture, header, table)


def _class_row(name: str, found: dict[str, dict[str, float | None]], series: str) -> Dots:
    values = [value for table in found.values() if (value := table.get(name)) is not None]
    middle = sum(values) / len(values) if values else None
    return Dots(name, {series: middle}, (min(values), max(values)) if values else None)


def calibration_rows(report: Json) -> list[list[str]]:
    """Every number of calibration, one row per site and class."""
    return [
        [
            site,
            name,
            *(decimal(number(entry.get(key)), 3) or "none" for key in MEASURES),
            decimal(ratio(entry), 2),
        ]
        for site, table in calibration_sites(report).items()
        for name, entry in table.items()
    ]


def pooled_rows(report: Json) -> list[list[str]]:
    """ln(O:E) of every class, pooled over sites."""
    pooled = mapping(mapping(report.get("calibration")).get("pooled"))
    rows = []
    for name, entry in pooled.items():
        part = mapping(entry)
        value = number(part.get("ln_oe"))
        if value is not None:
            ranges = [span(ends(part.get(key))) or "none" for key in ("interval", "prediction")]
            rows.append(
                [clean(name), decimal(value, 3), *ranges, whole(number(part.get("sites"))) or "unknown"]
            )
    return rows


def subgroup_parts(report: Json) -> list[Json]:
    """Subgroups of the report."""
    return entries(report.get("subgroups"))
