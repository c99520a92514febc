"""The pages of a comparison of data-set statistics: data sets, use of concepts, class meaning."""

from __future__ import annotations

from collections.abc import Sequence

from . import svg
from .figure import HALF, Dots, Figure, Missing, Panel, dot_plot, dot_table
from .figures_agreement import firing_agreement
from .marks import Series
from .page import (
    Measure,
    TableCell,
    absent,
    beside,
    figure,
    known,
    measures,
    pair,
    section,
    table,
    tag,
    words,
)
from .svg import MUTED, PALETTE, Scale
from .text import Json, clean, decimal, entries, lines, mapping, mean, number, percent, whole

Marks = Sequence[str]
WORDS = {
    "rho_freq_core": "How often, core concepts (rank correlation)",
    "rho_freq_all": "How often, all concepts (rank correlation)",
    "rho_mean_core": "How strongly, core concepts (rank correlation)",
    "rho_mean_all": "How strongly, all concepts (rank correlation)",
    "rho_entropy_core": "How class-specific, core concepts (rank correlation)",
    "rho_entropy_all": "How class-specific, all concepts (rank correlation)",
    "jaccard_core": "Shared core (overlap)",
    "jaccard_f1": "Shared concepts active in over 1 % of images (overlap)",
    "top100": "Shared among the 100 strongest",
    "top1000": "Shared among the 1,000 strongest",
}
USE = ("jaccard_core", "top1000", "top100", "jaccard_f1")
OVERLAPS = (
    Series("shared core", "circle", PALETTE[0]),
    Series("1,000 strongest", "square", PALETTE[1], filled=False),
    Series("100 strongest", "triangle", PALETTE[2], filled=False),
    Series("active in over 1 %", "diamond", PALETTE[3], filled=False),
)
MEANING = (Series("same class", "circle", PALETTE[0]), Series("by chance", "cross", MUTED))


def datasets_table(report: Json) -> str:
    """Which data sets, and how much of the dictionary they use."""
    header = [
        "Data set",
        "Images",
        "Never active",
        "In over 1 % of images",
        "Concepts per image",
        "Core",
        "In core",
    ]
    rows: list[list[TableCell]] = []
    for name, facts in mapping(report.get("sites")).items():
        value = {key: number(item) for key, item in mapping(facts).items()}
        shown = [
            *(whole(value.get(key)) for key in ("images", "never_active", "f_gt_1pct", "image_l0", "core")),
            f"{100 * share:.2f} %" if (share := value.get("mass_in_core")) is not None else "",
        ]
        rows.append([clean(name), *(known(item, "not recorded") for item in shown)])
    caption = "The data sets, and how much of the dictionary each one uses"
    how = "Core: mean activation over active images above 0.001. “In core”: share of all activation."
    return table(header, rows, caption, right=1) + f'<p class="small">{how}</p>'


def use(report: Json, marks: Marks) -> str:
    """Are the same concepts in use?"""
    intro = (
        "A concept is one row of the frozen dictionary. Are the same rows active on cells of other hospitals, "
        "equally often and equally strongly?"
    )
    return section(
        "use",
        "Are the same concepts in use?",
        intro,
        measures(_use_measures(report)),
        pair(firing_agreement(report, marks), overlaps(report, marks)),
        _pair_table(report),
    )


def _use_measures(report: Json) -> list[Measure]:
    part = mapping(report.get("statistics"))
    given = entries(part.get("controls"))
    shuffled = decimal(mean([number(item.get("shuffled")) for item in given]), 2)
    ceiling = decimal(mean([number(item.get("ceiling")) for item in given]), 2)
    values = {key: mean([_value(pair, key) for pair in entries(part.get("pairs"))]) for key in WORDS}
    return [
        Measure(
            "How often core concepts occur",
            decimal(values["rho_freq_core"], 2),
            "Rank correlation between two data sets, mean over pairs: 1 = common and rare in the same order.",
            f"All concepts {decimal(values['rho_freq_all'], 2)}; with concepts shuffled {shuffled}; best possible "
            f"with these numbers of images {ceiling}.",
        ),
        Measure(
            "Shared core",
            percent(values["jaccard_core"]),
            "Concepts in the core of both, of those in the core of either.",
            f"Among the 100 strongest {percent(values['top100'])}.",
        ),
        Measure(
            "How strongly core concepts fire",
            decimal(values["rho_mean_core"], 2),
            "Rank correlation of mean activation over active images.",
        ),
        Measure(
            "How class-specific concepts are",
            decimal(values["rho_entropy_core"], 2),
            "Rank correlation of the label entropy of the ten strongest images.",
            reason="no two data sets have label entropies",
        ),
    ]


def _value(entry: Json, key: str) -> float | None:
    return number(mapping(entry.get(key)).get("value"))


def _pair_table(report: Json) -> str:
    """Every statistic of every pair with its interval."""
    pairs = entries(mapping(report.get("statistics")).get("pairs"))
    header = ["Statistic", *(f"{clean(item.get('a'))} – {clean(item.get('b'))}" for item in pairs)]
    rows = [[text, *(_interval(item, key) for item in pairs)] for key, text in WORDS.items()]
    return table(header, rows, "All pairs: value and 95 % interval over concepts", right=1)


def _interval(entry: Json, key: str) -> TableCell:
    value, ends = _value(entry, key), mapping(entry.get(key)).get("ci")
    if value is None or not isinstance(ends, list) or len(ends) != 2:
        return known("", "not available in these files")
    return f"{decimal(value)} [{decimal(number(ends[0]))}, {decimal(number(ends[1]))}]"


def overlaps(report: Json, marks: Marks) -> Figure | Missing:
    """Dot plot of the overlaps of every pair."""
    title, pairs = "How many concepts are shared?", entries(mapping(report.get("statistics")).get("pairs"))
    if not pairs:
        return Missing(title, "fewer than two data sets were given")
    rows = [
        Dots(
            f"{clean(item.get('a'))} – {clean(item.get('b'))}",
            {series.name: _value(item, key) for series, key in zip(OVERLAPS, USE, strict=True)},
        )
        for item in pairs
    ]
    how = (
        "Each row is a pair of data sets; 1 = all shared, 0 = none. The core (filled) is what carries nearly all "
        "activation; the strongest 100 or 1,000 change more from hospital to hospital, since class mix differs."
    )
    body, height = dot_plot(rows, OVERLAPS, Panel(Scale(0, 1, 0, 1), "Share of concepts in both"))
    picture = svg.canvas("overlaps", HALF, height, body, title, how, marks)
    return Figure("overlaps", title, how, picture, *dot_table(rows, OVERLAPS, "Pair"))


def meaning(report: Json, marks: Marks) -> str:
    """Do concepts speak of the same class?"""
    intro = (
        "A concept speaks of the class that fills most of its ten strongest images. Does it speak of the same class "
        "in another data set? Only concepts with a clear response in both, and classes that both have, are compared."
    )
    parts = []
    for item in entries(mapping(mapping(report.get("statistics"))).get("meaning")):
        parts.append(beside(_meaning_figure(item, marks), _class_table(item)))
    if not parts:
        parts.append(
            figure(Missing("Agreement of class meaning", "no two data sets with named, shared classes"))
        )
    return section("meaning", "Do they speak of the same class?", intro, *parts)


def _meaning_figure(item: Json, marks: Marks) -> Figure | Missing:
    title = f"{clean(item.get('a'))} – {clean(item.get('b'))}: same class?"
    pure, both = mapping(item.get("pure")), mapping(item.get("pure_both"))
    chance = number(item.get("chance"))
    given = (
        ("all that respond", item.get("n"), item.get("agree"), chance),
        ("pure in the first", pure.get("n"), pure.get("agree"), None),
        ("pure in both", both.get("n"), both.get("agree"), None),
    )
    rows = [
        Dots(name, {MEANING[0].name: number(agree), MEANING[1].name: by_chance}, note=whole(number(count)))
        for name, count, agree, by_chance in given
    ]
    how = (
        "Share of concepts that speak of the same class in both data sets: of all that respond in both, of those "
        "whose ten strongest images are almost of one class in the first, and in both. Cross: agreement by chance."
    )
    body, height = dot_plot(rows, MEANING, Panel(Scale(0, 1, 0, 1), "Share of concepts that agree"))
    key = f"meaning-{clean(item.get('a'))}-{clean(item.get('b'))}"
    picture = svg.canvas(key, HALF, height, body, title, how, marks)
    header, cells = dot_table(rows, MEANING, "Concepts")
    rows_out = [[*line, row.note] for line, row in zip(cells, rows, strict=True)]
    return Figure(key, title, how, picture, [*header, "Number"], rows_out)


def _class_table(item: Json) -> str:
    rows: list[list[TableCell]] = []
    for name, entry in mapping(item.get("classes")).items():
        count, agree = number(mapping(entry).get("n")), number(mapping(entry).get("agree"))
        rows.append([clean(name), known(whole(count), "none"), known(percent(agree), "no such concept")])
    first, second = clean(item.get("a")), clean(item.get("b"))
    header = ["Class", f"Concepts pure in {first}", f"Same class in {second}"]
    return tag("div", table(header, rows, "Class by class", right=1))


def gaps(report: Json) -> str:
    """What a comparison does not show, and what was not assessed, with reasons."""
    limits = lines(report.get("limits"))
    missing = [
        [str(item.get("item") or "?"), str(item.get("reason") or "no reason was given")]
        for item in entries(report.get("not_assessed"))
    ]
    shown = "".join(words("li", item) for item in limits)
    return section(
        "limits",
        "What this report does not show",
        "",
        f'<ul class="plain">{shown}</ul>' if shown else absent("no limits were recorded"),
        words("h3", "Not assessed"),
        table(["Item", "Reason"], missing)
        if missing
        else words("p", "The report lists nothing.", class_="small"),
    )
