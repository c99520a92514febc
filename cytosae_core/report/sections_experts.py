"""R14: what experts say that concepts show, and how far they agree (figure F10)."""

from __future__ import annotations

from collections.abc import Sequence

from . import svg
from .figure import HALF, Dots, Figure, Missing, Panel, dot_plot, dot_table
from .figures_data import Concepts
from .marks import Series
from .page import Measure, TableCell, absent, details, figure, known, measures, section, table, words
from .svg import PALETTE, Scale
from .text import Json, clean, decimal, ends, lines, mapping, number, percent, span, whole

Marks = Sequence[str]
SHOWN, LISTED = 24, 200
NAMED, NAMERS = 0.6, 3
AGREE = Series("agreement beyond chance", "circle", PALETTE[0])
HOW = (
    "For every concept that experts looked at: how far they chose the same term, beyond chance (1 = all the same, "
    "0 = no more than chance). Dashed: from here on, with three raters and a feature of the cell, it has a name."
)
HELD = (
    "Experts look at reference cells of one concept at a time (`cytosae concepts gallery --review-sheet`) and choose "
    "a term from a closed list; `review.csv` goes into the site's folder. Only counts of terms leave, and only where "
    "three raters or more voted."
)
UNNAMED = "Until then no concept here has a name, only the kind of cell that it speaks of."


def experts(report: Json, marks: Marks) -> str:
    """R14: did experts recognise the concepts?"""
    part = mapping(report.get("experts"))
    held = words("p", HELD, class_="small")
    if part.get("status") != "estimated":
        reason = clean(part.get("reason") or "the report does not mention a review")
        return section(
            "R14", "Review by experts", "", absent(reason), held, words("p", UNNAMED, class_="small")
        )
    concepts = Concepts(report)
    rated = _rated(concepts)
    return section(
        "R14",
        "Review by experts",
        "Do people who know blood cells see one feature in a concept's cells, and the same one?",
        measures(_numbers(part)),
        figure(agreement(concepts, rated, marks)),
        _table(report, concepts, rated),
        held,
    )


def _rated(concepts: Concepts) -> list[int]:
    """Places of the concepts that experts looked at, most agreed first."""
    found = [place for place in range(concepts.count) if concepts.value("review_raters", place)]
    return sorted(found, key=lambda place: (-(concepts.value("review_agreement", place) or -2.0), place))


def _numbers(part: Json) -> list[Measure]:
    ac1 = mapping(part.get("ac1"))
    inside = span(ends(ac1.get("interval")))
    count = whole(number(mapping(ac1.get("n")).get("concepts"))) or "0"
    kappa = decimal(number(part.get("kappa")), 2) or "not estimable"
    unnamed = percent(number(part.get("unnamed"))) or "?"
    return [
        Measure("Agreement (Gwet's AC1)", decimal(number(ac1.get("value")), 2) or "not estimable",
                f"95 % interval {inside or 'not estimable'}, over {count} concepts"),
        Measure("Raters", whole(number(part.get("raters"))) or "not told",
                f"at {', '.join(lines(part.get('sites'))) or 'no site'}"),
        Measure("Krippendorff's alpha", decimal(number(part.get("alpha")), 2) or "not estimable",
                f"Fleiss' kappa {kappa}"),
        Measure("Seen as artefact", percent(number(part.get("artefact"))) or "not told",
                f"of all votes; {unnamed} could not name it"),
    ]  # fmt: skip


def agreement(concepts: Concepts, rated: Sequence[int], marks: Marks) -> Figure | Missing:
    """F10: agreement of every concept that experts looked at."""
    title = "How far experts agree"
    known_ = [place for place in rated if concepts.value("review_agreement", place) is not None]
    if not known_:
        return Missing(title, "no concept was looked at by two raters or more")
    rows = [
        Dots(_named(concepts, place), {AGREE.name: concepts.value("review_agreement", place)})
        for place in known_
    ]
    panel = Panel(Scale(-0.2, 1, 0, 1), "agreement beyond chance", {NAMED: "named from here"})
    body, height = dot_plot(rows[:SHOWN], [AGREE], panel)
    how = HOW + (f" The {SHOWN} with most agreement; the table has all." if len(rows) > SHOWN else "")
    picture = svg.canvas("experts", HALF, height, body, title, how, marks)
    return Figure("experts", title, how, picture, *dot_table(rows[:LISTED], [AGREE], "Concept"))


def _named(concepts: Concepts, place: int) -> str:
    return f"{concepts.id(place)} {concepts.name('review_term', place)}".strip()


def _table(report: Json, concepts: Concepts, rated: Sequence[int]) -> str:
    rows: list[list[TableCell]] = []
    for place in rated[:LISTED]:
        value = concepts.value("review_agreement", place)
        said = concepts.gate("naming", place)
        rows.append(
            [
                concepts.id(place),
                known(concepts.name("review_term", place), "no term has most votes"),
                known(concepts.name("target", place), "no meaning"),
                whole(concepts.value("review_raters", place)),
                known(decimal(value, 2), "one rater"),
                {1: "named", 0: "no name"}.get(said, f"fewer than {NAMERS} raters"),
            ]
        )
    header = ("Concept", "What most see", "Kind of cell", "Votes", "Agreement", "Result")
    more = f"; the first {LISTED}" if len(rated) > LISTED else ""
    return details(f"{len(rated)} concepts that experts looked at{more}", table(header, rows, right=3))
