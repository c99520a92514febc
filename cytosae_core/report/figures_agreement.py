"""Figures of agreement between sites: how often concepts occur, what they mean, planted concepts found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import svg
from .figure import HALF, Cell, Dots, Figure, Missing, Panel, dot_plot, dot_table, matrix
from .figures_data import concept_sites
from .marks import Series
from .svg import MUTED, PALETTE, Scale
from .text import Json, clean, decimal, entries, mapping, mean, number, numbers

Pairs = Mapping[frozenset[str], Json]
PAIRS_LISTED = 120
MATRIX_SITES = 30  # with more sites a matrix cannot be read: one row per site, mean over the others
MEANING_HEADER = (
    "Site",
    "Against",
    "Correlation",
    "Shuffled labels",
    "Before training",
    "Random rows",
    "Values compared",
)


def _pairs(report: Json, part: str, value: str) -> Pairs:
    """Measurements of two different sites, by the set of their names."""
    found = entries(mapping(report.get("agreement")).get(part))
    named = {frozenset((clean(item.get("a")), clean(item.get("b")))): item for item in found if value in item}
    return {pair: item for pair, item in named.items() if len(pair) == 2}


def _signed(value: float) -> str:
    return svg.diverging((value + 1) / 2)


def firing_agreement(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """Rank correlation of firing rates between sites."""
    title, pairs = "Do concepts occur equally often?", _pairs(report, "firing_rate", "rho")
    if not pairs or len(concept_sites(report)) < 2:
        return Missing(title, "fewer than two sites released how often concepts occur")
    how = (
        "Rank correlation between two sites of how often each concept occurs: 1 = the same concepts are common and "
        "rare at both; 0 = no relation. Concepts that fire everywhere make this high even when they mean nothing: "
        "read it together with the figure beside it. Hatched: not assessed, too few concepts released by both sites."
    )
    sites = concept_sites(report)
    if len(sites) > MATRIX_SITES:
        return _by_site("firing", title, pairs, {"rank correlation": "rho"}, marks)
    cells = [[_half(pairs, a, b, i, j) for j, b in enumerate(sites[:-1])] for i, a in enumerate(sites)]
    body, width, height = matrix("firing", sites[1:], sites[:-1], cells[1:], _signed)
    picture = svg.canvas("firing", width, height, body, title, how, marks)
    header = ["Site", "Against", "Rank correlation", "Concepts compared"]
    return Figure("firing", title, how, picture, header, _pair_rows(pairs, ("rho", "n")), width > HALF)


def _by_site(
    key: str, title: str, pairs: Pairs, names: Mapping[str, str], marks: Sequence[str]
) -> Figure | Missing:
    """Of many sites: those that agree least with the others, by their mean over the sites compared."""
    own: dict[str, list[Json]] = {}
    for pair, item in pairs.items():
        for site in pair:
            own.setdefault(site, []).append(item)
    means = {
        site: {name: mean([number(item.get(value)) for item in found]) for name, value in names.items()}
        for site, found in sorted(own.items())
    }
    first = next(iter(names))
    order = sorted(
        means, key=lambda site: (value if (value := means[site][first]) is not None else 2.0, site)
    )
    rows = [Dots(site, means[site]) for site in order[:24]]
    series = [Series(name, *_SHAPES[index]) for index, name in enumerate(names)]
    low = min(0.0, *(v for row in rows for v in row.values.values() if v is not None))
    body, height = dot_plot(
        rows, series, Panel(Scale(max(low, -1.0), 1, 0, 1), "Mean over the sites compared")
    )
    how = (
        f"{first.capitalize()} of a site with the others it was compared with; 1 = the same, 0 = no relation. The "
        f"{len(rows)} sites that agree least, of {len(means)}; the table has all."
    )
    picture = svg.canvas(key, HALF, height, body, title, how, marks)
    table = [
        [site, *(decimal(value, 2) or "not assessed" for value in means[site].values())] for site in means
    ]
    return Figure(key, title, how, picture, ["Site", *names], table)


_SHAPES = (("circle", PALETTE[0]), ("cross", MUTED))


def _half(pairs: Pairs, a: str, b: str, i: int, j: int) -> Cell:
    if j >= i:
        return Cell(None, empty=True)
    return Cell(number(pairs.get(frozenset((a, b)), {}).get("rho")))


def _pair_rows(pairs: Pairs, keys: Sequence[str]) -> list[list[str]]:
    """One row per pair of sites; with very many pairs one row per site, with means over the others."""
    if len(pairs) <= PAIRS_LISTED:
        listed = [(sorted(pair), item) for pair, item in pairs.items()]
        return [[*names, *(_value(number(item.get(key)), key) for key in keys)] for names, item in listed]
    by_site: dict[str, list[Json]] = {}
    for pair, item in pairs.items():
        for site in pair:
            by_site.setdefault(site, []).append(item)
    return [
        [
            site,
            "all others (mean)",
            *(_value(mean([number(item.get(key)) for item in found]), key) for key in keys),
        ]
        for site, found in sorted(by_site.items())
    ]


def _value(value: float | None, key: str) -> str:
    if value is None:
        return "not assessed: too few values released by both"
    return f"{value:.0f}" if key == "n" else decimal(value, 2)


def meaning_agreement(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """Correlation of AUROC between sites below the diagonal, its shuffled-label control above it."""
    title, pairs = "Do concepts mean the same?", _pairs(report, "auroc", "r")
    if not pairs or len(concept_sites(report)) < 2:
        return Missing(title, "fewer than two sites released what concepts mean")
    sites = concept_sites(report)
    if len(sites) > MATRIX_SITES:
        return _by_site("meaning", title, pairs, {"correlation": "r", "shuffled labels": "null"}, marks)
    reliability = numbers(mapping(report.get("agreement")).get("reliability"))
    cells = [
        [_square(pairs, reliability, a, b, i, j) for j, b in enumerate(sites)] for i, a in enumerate(sites)
    ]
    body, width, height = matrix("meaning", sites, sites, cells, _signed)
    how = (
        "Below the diagonal: correlation between two sites of what all concepts say about the kinds of cells; "
        "1 = the same meaning, 0 = none shared. Diagonal (self): two halves of one site, the best that can be "
        "expected. Above the diagonal: the same with shuffled labels, which must be near 0. Hatched: not assessed, "
        "too few values released by both sites."
    )
    picture = svg.canvas("meaning", width, height, body, title, how, marks)
    rows = _pair_rows(pairs, ("r", "null", "init", "random", "n"))
    rows += [
        [site, "two halves of it", decimal(value, 2) or "not assessed", "", "", "", ""]
        for site, value in reliability.items()
    ]
    return Figure("meaning", title, how, picture, MEANING_HEADER, rows, width > HALF)


def _square(pairs: Pairs, self: Mapping[str, float | None], a: str, b: str, i: int, j: int) -> Cell:
    if i == j:
        return Cell(self.get(a), "self")
    return Cell(number(pairs.get(frozenset((a, b)), {}).get("r" if j < i else "null")))


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


# Rows of `attenuation`: name, key of a pair, and what it is compared with.
AGREED = (
    ("as released", "r"),
    ("noise taken off", "corrected"),
    ("before training", "init"),
    ("random dictionary", "random"),
    ("shuffled labels", "null"),
)
HALVES = "two halves of a site"


def attenuation(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """Agreement of meanings as it is, without the noise of the sites' own values, and beside its controls."""
    title, pairs = "How much agreement could there be?", _pairs(report, "auroc", "r")
    halves = numbers(mapping(report.get("agreement")).get("reliability"))
    found = [(name, [number(item.get(key)) for item in pairs.values()]) for name, key in AGREED]
    found.insert(2, (HALVES, list(halves.values())))
    known = {name: [value for value in values if value is not None] for name, values in found}
    if not known[AGREED[0][0]]:
        return Missing(title, "no two sites released enough of the same values")
    rows = [_range(name, values) for name, values in known.items()]
    everything = [value for values in known.values() for value in values]
    low, high = min(0.0, *everything), max(1.0, *everything)
    panel = Panel(
        Scale(max(low, -1.0), min(high, 1.5), 0, 1), "Correlation of meanings", {0.0: "nothing shared"}
    )
    body, height = dot_plot(rows, (Series("mean", "circle", PALETTE[0]),), panel)
    how = (
        "Correlation between two sites of what all concepts say about the kinds of cells: dot, the mean over pairs "
        "of sites; bar, the lowest to the highest pair. Sites with few patients agree less because their own values "
        "are uncertain: two halves of a site show by how much, and “noise taken off” corrects for it (Spearman 1904; "
        "by chance it may exceed 1). Below them what no agreement, or an untrained dictionary, would give."
    )
    picture = svg.canvas("attenuation", HALF, height, body, title, how, marks)
    header = ("What is compared", "Mean", "Lowest", "Highest", "n")
    return Figure("attenuation", title, how, picture, header, _ranges(known))


def _range(name: str, values: Sequence[float]) -> Dots:
    middle = sum(values) / len(values) if values else None
    return Dots(name, {"mean": middle}, (min(values), max(values)) if len(values) > 1 else None)


def _ranges(known: Mapping[str, Sequence[float]]) -> list[list[str]]:
    """Mean, lowest, highest and number of pairs (of sites, for halves)."""
    rows = []
    for name, values in known.items():
        what = "sites" if name == HALVES else "pairs"
        shown = [sum(values) / len(values), min(values), max(values)] if values else []
        cells = [decimal(value, 2) for value in shown] or ["not assessed"] * 3
        rows.append([name, *cells, f"{len(values)} {what}"])
    return rows
