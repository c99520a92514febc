"""The report's sections on the dictionary and its concepts: quality (R6), catalogue (R7), failures (R15).
Every number has its sentence."""

from __future__ import annotations

from collections.abc import Sequence

from .browse import catalogue
from .cards import cards, failure_rows, gate_counts
from .figures import by_round, comparators
from .figures_agreement import planted
from .figures_concepts import concept_map, verdicts_by_target
from .figures_data import said_reason
from .figures_study import states
from .page import (
    Measure,
    TableCell,
    absent,
    beside,
    bullets,
    details,
    figure,
    known,
    measures,
    pair,
    section,
    table,
    tag,
    words,
)
from .text import (
    REPORTED,
    Json,
    clean,
    decimal,
    entries,
    lines,
    mapping,
    number,
    percent,
    status,
    suppressed,
    whole,
)

Marks = Sequence[str]
SITE_NUMBERS = (
    "Site",
    "Units to train",
    "Units to test",
    "FVU about the site's own mean",
    "FVU of random rows",
    "Concepts per patch",
    "Never used",
    "Messages sent",
)


def against(*controls: tuple[str, str]) -> str:
    """What a number has to be compared with."""
    said = [f"{name} {value}" for name, value in controls if value]
    return f"Compare: {'; '.join(said)}." if said else ""


def concepts(report: Json, marks: Marks) -> str:
    """R7: every concept, how far it came, and why not further."""
    intro = (
        "A concept is one row of the shared dictionary: a pattern that the vision transformer sees. It holds when it "
        "speaks of the same kind of cell wherever it could be tested; it does not hold when sites disagree, or when "
        "the hospital rather than the cell can be read from it. Both are shown alike."
    )
    counts = verdicts_by_target(report)
    by_kind = (
        table(["Kind of cell", "Concepts that hold", "that do not hold"], counts, right=1) if counts else ""
    )
    return section(
        "R7",
        "All concepts",
        intro,
        beside(states(report, marks), _checks(report)),
        cards(report),
        figure(concept_map(report, marks)),
        details("How many concepts speak of which kind of cell", by_kind) if by_kind else "",
        tag("section", words("h3", "Find a concept") + catalogue(report), id="find"),
        figure(planted(report, marks)),
    )


def _checks(report: Json) -> str:
    rows = gate_counts(report)
    if not rows:
        return tag("div", words("h3", "Checks") + absent("the report holds no checks of concepts"))
    made = table(("Check", "Pass", "Fail", "Not assessed"), rows, "What concepts were checked for", right=1)
    note = (
        "A concept rises only as far as the checks that were made allow; a check that was not made stops it. “Same "
        "side everywhere” and “expected at a new site” also ask that q, its p-value corrected for testing many "
        "concepts, lies below the agreed false discovery rate (R12)."
    )
    return tag("div", made + words("p", note, class_="small"))


def failures(report: Json, marks: Marks) -> str:
    """R15: concepts that did not hold, ranked."""
    rows = failure_rows(report)
    header = ("Concept", "Speaks of", "Mean AUROC", "Prediction interval", "Why it did not hold")
    given = lines(report.get("failures"))
    if rows:
        said = table(header, rows, f"The {len(rows)} strongest concepts that did not hold")
    elif isinstance(report.get("failures"), list) and not given:
        said = words("p", "No concept disagreed between sites or failed the shortcut checks.")
    else:
        said = absent("the report does not list them")
    return section(
        "R15",
        "Failures and negative results",
        "Which concepts looked strong somewhere and did not hold? A strong concept that fails is what to learn from.",
        said,
        words("h3", "Numbers that missed their threshold"),
        _missed(report),
    )


def _missed(report: Json) -> str:
    """Headlines that did not pass."""
    given = entries(report.get("headlines"))
    if not given:
        return absent("no headline was recorded")
    missed = [clean(item.get("name") or item.get("id")) for item in given if item.get("passes") is False]
    if missed:
        return bullets(
            [f"{name}: the worse end of its 95 % interval does not reach the threshold." for name in missed]
        )
    return words("p", "No number that has a threshold and an interval missed it.")


def quality(report: Json, marks: Marks) -> str:
    """R6: how well does the dictionary describe the cells?"""
    intro = "Meaning is worth little if the dictionary misses most of what is in the picture. How much does it miss?"
    return section(
        "R6",
        "How well does the dictionary describe the cells?",
        intro,
        measures(_quality_measures(report)),
        details("More numbers of each site", _site_numbers(report)),
        pair(by_round(report, marks), comparators(report, marks)),
        words("h3", "The same dictionary from another seed?"),
        measures(_stability(report)),
    )


def _quality_measures(report: Json) -> list[Measure]:
    overall, dictionary = mapping(report.get("overall")), mapping(report.get("dictionary"))
    value = {name: number(item) for name, item in overall.items()}
    pooled = said_reason(report, "pooled", "only possible where one machine holds all images")
    size = number(dictionary.get("n"))
    return [
        Measure(
            "Unexplained share (FVU)",
            decimal(value.get("federated_fvu")),
            "Share of the information in the pictures that the dictionary fails to explain; lower is better.",
            against(
                ("before training", decimal(value.get("fvu_init"))),
                ("random rows", decimal(value.get("fvu_random"))),
                ("trained on all images in one place", decimal(value.get("pooled_fvu"))),
            ),
            "no site reported it",
        ),
        Measure(
            "Price of not pooling the images",
            f"× {decimal(value.get('ratio'))}" if value.get("ratio") is not None else "",
            "Unexplained share divided by that of training on all images in one place; 1 = no loss.",
            reason=pooled,
        ),
        Measure(
            "Concepts per patch (L0)",
            decimal(value.get("l0"), 1),
            "How many concepts describe one small patch of a picture; fewer are easier to read.",
            f"Of {size:,.0f} in the dictionary." if size else "",
            "no site reported it",
        ),
        Measure(
            "Concepts never used",
            percent(value.get("dead_fraction")),
            "Share of the dictionary that no picture of a site uses, averaged over sites; lower is better.",
            reason="no site reported it",
        ),
    ]


def _site_numbers(report: Json) -> str:
    """Numbers of every site that the first screen leaves out."""
    rows: list[list[TableCell]] = []
    for name, facts in mapping(report.get("sites")).items():
        site = mapping(facts)
        reason = suppressed(report) if status(site) == REPORTED else status(site)
        value = {key: number(item) for key, item in site.items()}
        shown = [
            *(whole(value.get(key)) for key in ("train_units", "test_units")),
            *(decimal(value.get(key)) for key in ("fvu_own_mean", "fvu_random")),
            decimal(value.get("l0"), 1),
            percent(value.get("dead_fraction")),
            whole(value.get("messages_out")),
        ]
        rows.append([clean(name), *(known(item, reason) for item in shown)])
    return table(SITE_NUMBERS, rows, right=1) if rows else absent("no site is recorded")


def _stability(report: Json) -> list[Measure]:
    part = {name: number(item) for name, item in mapping(report.get("stability")).items()}
    why = said_reason(report, "stability", "no second federation with another seed was run")
    apart = part.get("excess") is not None and (part["excess"] or 0) < 0
    return [
        Measure(
            "Same concepts from another seed",
            decimal(part.get("mcc"), 2),
            "Similarity of each concept to its twin in a second federation with another seed; 1 = identical."
            + (" Training moved the two runs apart." if apart else ""),
            against(("before training", decimal(part.get("mcc_init"), 2))),
            why,
        ),
        Measure(
            "Concepts found again (similarity above .7)",
            percent(part.get("share_above_0.7")),
            "Share of concepts with such a twin. What agreed before training says nothing about the cells.",
            against(("before training", percent(part.get("share_above_0.7_init")))),
            why,
        ),
    ]
