"""Figures between sites: transfer to an unseen site, telling sites apart, bytes that left."""

from __future__ import annotations

from collections.abc import Sequence

from . import svg
from .figure import (
    FULL,
    HALF,
    NAME,
    ROW,
    Dots,
    Figure,
    Missing,
    Panel,
    dot_plot,
    dot_rows,
    dot_table,
    name_width,
    row_names,
)
from .marks import Series, legend
from .svg import GREY, INK, MUTED, PALETTE, PAPER, Scale
from .text import (
    Json,
    byte_size,
    clean,
    compact,
    decimal,
    entries,
    mapping,
    mean,
    number,
    numbers,
    short,
    whole,
)

VIEWS = (
    Series("standardised codes", "circle", PALETTE[0]),
    Series("raw codes", "square", PALETTE[1], filled=False),
    Series("raw embeddings", "triangle", PALETTE[2], filled=False),
    Series("shuffled labels", "cross", MUTED),
    Series("colour histogram", "diamond", PALETTE[3], filled=False),
    Series("same site", "square", INK),
)
MANY_SITES = 24  # rows of a figure; of more sites those that matter most, the table has all
SPACES = (("raw", "Raw codes"), ("standardised", "Standardised codes"), ("embedding", "Raw embeddings"))
APART = Series("against each other site (mean; bar: lowest to highest)", "circle", PALETTE[0])
WITHIN = Series("two halves of the same site (control)", "diamond", INK, filled=False)
KIND_COLOURS = (*PALETTE[:7], GREY)
PAIRS_LISTED = 120
KINDS = {
    "hello": "who and how many",
    "moments": "mean and scale",
    "begin": "quality at the start",
    "round": "dictionary changes",
    "second": "noised moments",
    "third": "noised moments, once more",
    "sum_keys": "keys for masks",
    "sum_shares": "shares of keys",
    "sum_masked": "masked moments",
    "sum_confirm": "who is in a sum",
    "sum_unmask": "masks taken off",
    "describe": "concept statistics",
    "score": "test results",
    "refused": "refusals",
}
HALO = {"stroke": PAPER, "stroke_width": 4, "paint_order": "stroke", "stroke_linejoin": "round"}


def loso(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """Balanced accuracy at sites whose labels were left out, per view, with the chance line."""
    title, part = "Naming the cells of an unseen site", mapping(report.get("loso"))
    views = {clean(name): numbers(values) for name, values in mapping(part.get("views")).items()}
    known = [value for values in views.values() for value in values.values() if value is not None]
    if not known:
        return Missing(title, "fewer than two sites share labelled classes with enough units")
    series = [item for item in VIEWS if item.name in views]
    sites = list(dict.fromkeys(site for values in views.values() for site in values))
    rows = [Dots(site, {name: values.get(site) for name, values in views.items()}) for site in sites]
    every, cut = rows, len(rows) > MANY_SITES
    if cut:
        rows = sorted(rows, key=lambda row: (row.values.get(series[0].name) or 0.0, row.name))[:MANY_SITES]
    means = {name: mean(list(values.values())) for name, values in views.items()}
    last = Dots("Mean over sites", means, strong=True)
    rows = [*rows, last]
    chance = number(part.get("chance"))
    guides = {} if chance is None else {chance: f"chance {compact(chance)}"}
    body, height = dot_plot(
        rows, series, Panel(Scale(0, 1, 0, 1), "Balanced accuracy, higher is better", guides)
    )
    how = (
        "For each site a simple classifier was built from the labels of all the other sites, then asked to name this "
        "site's cells. 1 = all kinds named correctly. Crosses (shuffled labels) and the dashed line show guessing. "
        "Codes are worth having if they come close to the raw embeddings (triangles), because codes can be read. "
        "Same site: a classifier of half of the site's own patients, on the other half; the gap is lost on the way."
    ) + (f" The {MANY_SITES} sites with the lowest accuracy; the table has all." if cut else "")
    picture = svg.canvas("loso", HALF, height, body, title, how, marks)
    return Figure("loso", title, how, picture, *dot_table([*every, last], series, "Site left out"))


def _apart(report: Json) -> tuple[list[str], dict[str, dict[str, list[float]]]]:
    """Sites, and per view and site the recalls against every other site."""
    values: dict[str, dict[str, list[float]]] = {key: {} for key, _ in SPACES}
    sites: dict[str, None] = {}
    for pair in entries(mapping(report.get("site_predictability")).get("pairs")):
        for side in ("a", "b"):
            site = clean(pair.get(side))
            sites.setdefault(site)
            for key, _ in SPACES:
                value = number(pair.get(key))
                if value is not None:
                    values[key].setdefault(site, []).append(value)
    return list(sites), values


def predictability(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """How well two sites can be told apart within a class, beside two halves of one site; three panels."""
    title, part = "Can one tell which hospital a cell is from?", mapping(report.get("site_predictability"))
    sites, values = _apart(report)
    known = [value for table in values.values() for group in table.values() for value in group]
    if not known:
        return Missing(title, clean(part.get("reason") or "no two sites share a class with enough units"))
    null = {clean(site): numbers(table) for site, table in mapping(part.get("same_site_null")).items()}
    controls = [value for table in null.values() for value in table.values() if value is not None]
    low = min([0.4, *known, *controls])
    every = len(sites)
    if every > MANY_SITES:
        told = {site: mean(list(values["standardised"].get(site, []))) or 0.0 for site in sites}
        sites = sorted(sites, key=lambda site: (-told[site], site))[:MANY_SITES]
    left = name_width(sites)
    names, used = legend((APART, WITHIN), left, 8, FULL - left)
    top, each = used + 34, (FULL - left - 10) / 3
    parts, bottom = [names], top
    for index, (key, name) in enumerate(SPACES):
        rows = [_apart_row(site, values[key].get(site, []), null.get(site, {}).get(key)) for site in sites]
        scale = Scale(low, 1, left + index * each + 10, left + (index + 1) * each - 22)
        drawn, bottom = dot_rows(
            rows, (APART, WITHIN), Panel(scale, "Share told correctly", {0.5: "coin toss"}), top
        )
        parts += [svg.label(scale.start, top - 22, name, font_weight="bold"), drawn]
        parts.append(row_names(rows, left - 6, top) if index == 0 else "")
    how = (
        "Within one kind of cell, how often can a simple rule tell which of two hospitals a cell comes from? .5 is a "
        "coin toss: nothing of the hospital (stain, camera, patients) is left in the features; 1 is always. Filled "
        "dots should lie close to the open diamonds, which are two random halves of one and the same site."
    ) + (f" The {MANY_SITES} sites told best, of {every}; the table has all." if every > MANY_SITES else "")
    picture = svg.canvas("predict", FULL, bottom, "".join(parts), title, how, marks)
    return Figure("predict", title, how, picture, *_apart_table(report, null), wide=True)


def _apart_row(site: str, values: list[float], null: float | None) -> Dots:
    span = (min(values), max(values)) if values else None
    return Dots(site, {APART.name: mean(list(values)), WITHIN.name: null}, span)


def _apart_table(report: Json, null: dict[str, dict[str, float | None]]) -> tuple[list[str], list[list[str]]]:
    pairs = entries(mapping(report.get("site_predictability")).get("pairs"))
    rows = []
    if len(pairs) <= PAIRS_LISTED:
        named = [([clean(pair.get("a")), clean(pair.get("b"))], pair) for pair in pairs]
        rows = [[*names, *(_share(number(pair.get(key))) for key, _ in SPACES)] for names, pair in named]
    else:
        sites, values = _apart(report)
        rows = [
            [site, "all others, mean", *(_share(mean(list(values[key].get(site, [])))) for key, _ in SPACES)]
            for site in sites
        ]
    rows += [
        [site, "itself, two halves", *(_share(table.get(key)) for key, _ in SPACES)]
        for site, table in null.items()
    ]
    return ["Site", "Against", *(name for _, name in SPACES)], rows


def _share(value: float | None) -> str:
    return decimal(value, 2) or "not assessed: too few units or no shared class"


def kinds(report: Json) -> list[str]:
    """Kinds of messages in the order of the first site that sent them."""
    found: dict[str, None] = {}
    for site in mapping(mapping(report.get("egress")).get("sites")).values():
        for kind in mapping(mapping(site).get("by_kind")):
            found.setdefault(kind)
    return list(found)


def kind_name(kind: str) -> str:
    """A kind of message with what it carries."""
    return f"{short(kind, NAME)}: {KINDS[kind]}" if kind in KINDS else short(kind, NAME)


def bytes_left(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """Bytes that left each site, stacked by kind of message."""
    title, sites = "What left each hospital, in bytes", mapping(mapping(report.get("egress")).get("sites"))
    if not sites:
        return Missing(title, "the report does not record what left")
    names, sent = kinds(report), {site: mapping(facts) for site, facts in sites.items()}
    colours = {kind: KIND_COLOURS[min(index, len(KIND_COLOURS) - 1)] for index, kind in enumerate(names)}
    series = [Series(kind_name(kind), "square", colours[kind]) for kind in names]
    table = _bytes_table(sent, names)
    every = len(sent)
    if every > MANY_SITES:
        most_first = sorted(sent, key=lambda site: (-(number(sent[site].get("bytes")) or 0.0), clean(site)))
        sent = {site: sent[site] for site in most_first[:MANY_SITES]}
    left = name_width([clean(site) for site in sent])
    key, top = legend(series, left, 8, FULL - left)
    most = max((number(facts.get("bytes")) or 0.0 for facts in sent.values()), default=0.0)
    scale = Scale(0, svg.nice_ceiling(max(most, 1.0) / 1e6), left, FULL - 176)
    top += 6
    bottom = top + ROW * len(sent)
    parts = [key, svg.x_axis(scale, top, bottom, "Megabytes sent over the whole study")]
    for index, (site, facts) in enumerate(sent.items()):
        parts.append(_bar(site, facts, colours, scale, top + ROW * (index + 0.5)))
    how = (
        "One bar per site, split by kind of message; the total and the number of messages stand at its end. Thin "
        "slices are hard to see: the table has every kind. Bytes do not say how much can be learned from them: the "
        "list of fields below does."
    ) + (
        f" The {MANY_SITES} sites that sent most, of {every}; the table has all."
        if every > MANY_SITES
        else ""
    )
    picture = svg.canvas("bytes", FULL, bottom + 38, "".join(parts), title, how, marks)
    return Figure("bytes", title, how, picture, *table, wide=True)


def _bar(site: str, facts: Json, colours: dict[str, str], scale: Scale, y: float) -> str:
    parts = [svg.label(scale.start - 10, y + 4, short(site, NAME), text_anchor="end")]
    total = 0.0
    for kind, entry in mapping(facts.get("by_kind")).items():
        size = number(mapping(entry).get("bytes")) or 0.0
        start, stop = scale(total / 1e6), scale((total + size) / 1e6)
        drawn = svg.rect(start, y - 7, stop - start, 14, colours[kind])
        parts.append(svg.hover(drawn, f"{site}, {kind}: {byte_size(size)}"))
        total += size
    messages = number(facts.get("messages"))
    text = f"{byte_size(number(facts.get('bytes')))} in {whole(messages) or 'an unknown number of'} messages"
    return "".join([*parts, svg.label(scale(total / 1e6) + 7, y + 4, text, **HALO)])


def _bytes_table(sent: dict[str, Json], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for site, facts in sent.items():
        by_kind = {kind: mapping(entry) for kind, entry in mapping(facts.get("by_kind")).items()}
        cells = [
            f"{byte_size(number(by_kind[kind].get('bytes')))} ({whole(number(by_kind[kind].get('count')))})"
            if kind in by_kind
            else "none"
            for kind in names
        ]
        rows.append([clean(site), byte_size(number(facts.get("bytes"))), *cells])
    return ["Site", "Total", *(f"{kind_name(kind)} (messages)" for kind in names)], rows
