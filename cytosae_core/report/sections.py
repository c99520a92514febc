"""The report's sections on results: concepts, transfer, quality, planted concepts. Every number has its sentence."""

from __future__ import annotations

from collections.abc import Sequence

from .figures import by_round, comparators, local_only
from .figures_agreement import firing_agreement, meaning_agreement, planted
from .figures_concepts import concept_map, mean_replication, verdicts_by_target
from .figures_sites import loso, predictability
from .page import (
    Measure,
    TableCell,
    absent,
    beside,
    details,
    figure,
    known,
    measures,
    pair,
    section,
    table,
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
    mean,
    number,
    numbers,
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


def reason_for(report: Json, item: str, otherwise: str) -> str:
    """The report's own reason for a missing item, else a general one."""
    for entry in entries(report.get("not_assessed")):
        if item in str(entry.get("item", "")) and entry.get("reason"):
            return str(entry["reason"])
    return otherwise


def _against(*controls: tuple[str, str]) -> str:
    said = [f"{name} {value}" for name, value in controls if value]
    return f"Compare: {'; '.join(said)}." if said else ""


def concepts(report: Json, marks: Marks) -> str:
    """Do concepts mean the same at every site?"""
    intro = (
        "A concept is one row of the shared dictionary: a pattern that the vision transformer sees. It holds when it "
        "speaks of the same kind of cell wherever it could be tested, and does not hold when sites disagree."
    )
    counts = verdicts_by_target(report)
    by_kind = (
        table(["Kind of cell", "Concepts that hold", "that do not hold"], counts, right=1) if counts else ""
    )
    return section(
        "concepts",
        "Do concepts mean the same at every site?",
        intro,
        measures([_replication(report), _agreement(report)]),
        _left_out(report),
        figure(concept_map(report, marks)),
        details("How many concepts speak of which kind of cell", by_kind) if by_kind else "",
        pair(meaning_agreement(report, marks), firing_agreement(report, marks)),
    )


def _replication(report: Json) -> Measure:
    share, null, sites = mean_replication(report)
    return Measure(
        "Meanings that held at the site left out",
        percent(share),
        "For each site: of all meanings that looked clear at the other sites, the share that is seen there too.",
        _against(("with shuffled labels", percent(null)), ("sites averaged", str(sites) if sites else "")),
        "no meaning was clear at all the other sites, or too few sites could say",
    )


def _agreement(report: Json) -> Measure:
    found = entries(mapping(report.get("agreement")).get("auroc"))
    values = {key: mean([number(item.get(key)) for item in found]) for key in ("r", "null", "init", "random")}
    return Measure(
        "Agreement of meanings between two sites",
        decimal(values["r"], 2),
        "Correlation of what all concepts say about the kinds of cells: 1 = the same, 0 = nothing shared.",
        _against(
            ("with shuffled labels", decimal(values["null"], 2)),
            ("dictionary before training", decimal(values["init"], 2)),
            ("random dictionary", decimal(values["random"], 2)),
        ),
        "no two sites released enough of the same values",
    )


def transfer(report: Json, marks: Marks) -> str:
    """Does it work at a site never seen, and can sites be told apart?"""
    intro = "Are concepts of use in a hospital whose labels were never seen, and how much of the hospital is in them?"
    known_cells = planted(report, marks)
    classes = lines(mapping(report.get("loso")).get("classes"))
    said = words("p", f"Kinds of cells: {', '.join(classes)}.", class_="small") if classes else ""
    return section(
        "transfer",
        "Do they transfer to a hospital never seen?",
        intro,
        measures(_transfer_measures(report)),
        said,
        pair(loso(report, marks), known_cells),
        figure(predictability(report, marks)),
    )


def _transfer_measures(report: Json) -> list[Measure]:
    part = mapping(report.get("loso"))
    views = {
        name: mean(list(numbers(values).values())) for name, values in mapping(part.get("views")).items()
    }
    pairs = entries(mapping(report.get("site_predictability")).get("pairs"))
    null = [
        numbers(item).get("standardised")
        for item in mapping(mapping(report.get("site_predictability")).get("same_site_null")).values()
    ]
    return [
        Measure(
            "Balanced accuracy at a site left out",
            decimal(views.get("standardised codes"), 2),
            "Share of cells named correctly from concepts alone, each kind counting the same; 1 = all.",
            _against(
                ("raw embeddings", decimal(views.get("raw embeddings"), 2)),
                ("shuffled labels", decimal(views.get("shuffled labels"), 2)),
                ("chance", decimal(number(part.get("chance")), 2)),
            ),
            "fewer than two sites share labelled kinds of cells",
        ),
        Measure(
            "Telling two hospitals apart",
            decimal(mean([number(item.get("standardised")) for item in pairs]), 2),
            "From standardised codes within one kind of cell: .50 is a coin toss (good), 1 is always (bad).",
            _against(
                ("two halves of one site", decimal(mean(null), 2)),
                ("raw embeddings", decimal(mean([number(item.get("embedding")) for item in pairs]), 2)),
            ),
            str(
                mapping(report.get("site_predictability")).get("reason")
                or "no two sites share a kind of cell"
            ),
        ),
    ]


def quality(report: Json, marks: Marks) -> str:
    """How well does the dictionary describe the cells?"""
    intro = "Meaning is worth little if the dictionary misses most of what is in the picture. How much does it miss?"
    return section(
        "quality",
        "How well does the dictionary describe the cells?",
        intro,
        measures(_quality_measures(report)),
        details("More numbers of each site", _site_numbers(report)),
        pair(by_round(report, marks), comparators(report, marks)),
        beside(local_only(report, marks), measures(_stability(report), "measures one")),
    )


def _quality_measures(report: Json) -> list[Measure]:
    overall, dictionary = mapping(report.get("overall")), mapping(report.get("dictionary"))
    value = {name: number(item) for name, item in overall.items()}
    pooled = reason_for(report, "pooled", "only possible where one machine holds all images")
    size = number(dictionary.get("n"))
    return [
        Measure(
            "Unexplained share (FVU)",
            decimal(value.get("federated_fvu")),
            "Share of the information in the pictures that the dictionary fails to explain; lower is better.",
            _against(
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


def _left_out(report: Json) -> str:
    """Replication of meanings, one row per site left out."""
    rows: list[list[TableCell]] = []
    for name, entry in mapping(mapping(report.get("agreement")).get("replication")).items():
        value = numbers(entry)
        reason = "no meaning was clear at all the other sites"
        counts = [known(whole(value.get(key)), "not recorded") for key in ("pairs", "replicated")]
        rows.append(
            [clean(name), *counts, *(known(percent(value.get(key)), reason) for key in ("share", "null"))]
        )
    header = ["Site left out", "Meanings clear elsewhere", "Held here", "Share", "With shuffled labels"]
    return details("Site by site: meanings that held", table(header, rows, right=1)) if rows else ""


def _stability(report: Json) -> list[Measure]:
    part = {name: number(item) for name, item in mapping(report.get("stability")).items()}
    why = reason_for(report, "stability", "no second federation with another seed was run")
    apart = part.get("excess") is not None and (part["excess"] or 0) < 0
    return [
        Measure(
            "Same concepts from another seed",
            decimal(part.get("mcc"), 2),
            "Similarity of each concept to its twin in a second federation with another seed; 1 = identical."
            + (" Training moved the two runs apart." if apart else ""),
            _against(("before training", decimal(part.get("mcc_init"), 2))),
            why,
        ),
        Measure(
            "Concepts found again (similarity above .7)",
            percent(part.get("share_above_0.7")),
            "Share of concepts with such a twin. What agreed before training says nothing about the cells.",
            _against(("before training", percent(part.get("share_above_0.7_init")))),
            why,
        ),
    ]


def gaps(report: Json) -> str:
    """What the report does not show, and what was not assessed, with reasons."""
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
