"""The report's sections on new hospitals: transfer (R8), calibration (R9), subgroups (R10), robustness (R11), missing
data (R12), drift (R13), baselines (R16)."""

from __future__ import annotations

from collections.abc import Sequence

from .figures import local_only
from .figures_agreement import attenuation, firing_agreement, meaning_agreement
from .figures_coverage import abstention
from .figures_data import headline_named, headlines, why
from .figures_forest import forest, influence, subgroup_forest
from .figures_scatter import heterogeneity, shortcuts
from .figures_sites import loso, predictability
from .figures_study import alarms, drift, explained_rows
from .figures_transfer import calibration, calibration_rows, cross_matrix, pooled_rows, subgroup_parts
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
    words,
)
from .sections import against
from .text import (
    Json,
    chance,
    clean,
    decimal,
    ends,
    entries,
    lines,
    mapping,
    mean,
    number,
    numbers,
    percent,
    precise,
    span,
    stopped,
    whole,
)

Marks = Sequence[str]


def transfer(report: Json, marks: Marks) -> str:
    """R8: does it hold at a hospital never seen?"""
    intro = (
        "Does what was found hold in a hospital that was not part of it, and how much do hospitals differ?"
    )
    found = headlines(report)
    plots = [forest(item, marks, f"forest-{index}", index == 0) for index, item in enumerate(found)]
    classes = lines(mapping(report.get("loso")).get("classes"))
    said = words("p", f"Kinds of cells: {', '.join(classes)}.", class_="small") if classes else ""
    return section(
        "R8",
        "Does it hold at a hospital never seen?",
        intro,
        _headline_table(found),
        pair(*plots) if plots else "",
        _left_out(report),
        said,
        pair(loso(report, marks), heterogeneity(report, marks)),
        figure(cross_matrix(report, marks)),
        measures([_agreement(report)], "measures one"),
        pair(attenuation(report, marks), meaning_agreement(report, marks), firing_agreement(report, marks)),
    )


def _headline_table(found: Sequence[Json]) -> str:
    """All headlines with everything that belongs to a pooled number."""
    if not found:
        return absent("no headline was recorded")
    rows: list[list[TableCell]] = []
    for item in found:
        value, count = number(item.get("value")), mapping(item.get("n"))
        passes, reason = number(item.get("probability_new_site")), why(item)
        rows.append(
            [
                clean(item.get("name") or item.get("id"))
                + (" (primary)" if item.get("primary") is True else ""),
                known(precise(value), reason),
                known(span(ends(item.get("interval"))), reason),
                known(span(ends(item.get("prediction"))), reason),
                known(chance(passes), "no threshold, or too few sites"),
                known(decimal(number(item.get("tau2")), 3), reason),
                known(
                    percent(number(item.get("i2"))), "sites gave no errors" if value is not None else reason
                ),
                f"{whole(number(count.get('sites'))) or '0'} / {whole(number(count.get('units'))) or '?'}",
            ]
        )
    header = (
        "Number", "Value", "95 % interval", "A new hospital", "Passes there", "tau²", "I²", "Sites / units",
    )  # fmt: skip
    made = table(header, rows, "The numbers that decide", right=1)
    return made + words("p", _POOLED, class_="small") + _headline_details(found)


_POOLED = (
    "Pooled over sites by random effects (REML, Hartung-Knapp-Sidik-Jonkman) on a scale without ends; “A new "
    "hospital” is the 95 % prediction interval, “Passes there” the probability that one more hospital reaches the "
    "threshold. With 3 to 5 sites these intervals are wide by construction."
)


def _headline_details(found: Sequence[Json]) -> str:
    rows = []
    for item in found:
        places = [whole(number(leaf.get("index"))) for leaf in entries(item.get("leaves"))]
        shown = [text for text in places if text]
        tests = [decimal(number(item.get(key)), 2) or "none" for key in ("q", "h2")]
        tests += [percent(number(item.get("i2_q"))) or "none", whole(number(item.get("df"))) or "none"]
        entries_ = ", ".join(shown[:60]) + (f" and {len(shown) - 60} more" if len(shown) > 60 else "")
        rows.append([clean(item.get("name") or item.get("id")), *tests, entries_ or "not logged"])
    header = ("Number", "Q", "H²", "I² from Q", "df", "Entries of the coordinator's log")
    return details("Tests of heterogeneity, and the log entries behind each number", table(header, rows))


def _agreement(report: Json) -> Measure:
    found = entries(mapping(report.get("agreement")).get("auroc"))
    values = {key: mean([number(item.get(key)) for item in found]) for key in ("r", "null", "init", "random")}
    return Measure(
        "Agreement of meanings between two sites",
        decimal(values["r"], 2),
        "Correlation of what all concepts say about the kinds of cells: 1 = the same, 0 = nothing shared.",
        against(
            ("with shuffled labels", decimal(values["null"], 2)),
            ("dictionary before training", decimal(values["init"], 2)),
            ("random dictionary", decimal(values["random"], 2)),
        ),
        "no two sites released enough of the same values",
    )


def _apart(report: Json) -> Measure:
    part = mapping(report.get("site_predictability"))
    pairs = entries(part.get("pairs"))
    null = [numbers(item).get("standardised") for item in mapping(part.get("same_site_null")).values()]
    return Measure(
        "Telling two hospitals apart",
        decimal(mean([number(item.get("standardised")) for item in pairs]), 2),
        "From standardised codes within one kind of cell: .50 is a coin toss (good), 1 is always (bad).",
        against(
            ("two halves of one site", decimal(mean(null), 2)),
            ("raw embeddings", decimal(mean([number(item.get("embedding")) for item in pairs]), 2)),
        ),
        str(part.get("reason") or "no two sites share a kind of cell"),
    )


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


def calibrated(report: Json, marks: Marks) -> str:
    """R9: do probabilities hold at each site?"""
    rows, pooled = calibration_rows(report), pooled_rows(report)
    header = ("Site", "Class", "Slope", "SE", "Intercept", "Observed", "Expected", "Brier", "ECE", "O:E")
    pooled_header = ("Class", "ln(O:E)", "95 % interval", "A new hospital", "Sites")
    reason = "fewer than three sites released observed and expected shares of a class"
    return section(
        "R9",
        "Calibration",
        "When the classifier that never saw a hospital says 80 %, is it right in 80 of 100 cases there?",
        pair(*calibration(report, marks)),
        pair(abstention(report, marks)),
        words("h3", "Observed against expected, pooled over sites"),
        table(pooled_header, pooled, right=1) if pooled else absent(reason),
        details("All numbers of calibration", table(header, rows, right=2)) if rows else "",
    )


def subgroups(report: Json, marks: Marks) -> str:
    """R10: does it work as well with a property as without?"""
    parts = subgroup_parts(report)
    intro = (
        "Does it work as well for cells or patients with a property as for those without? Shown is the difference, "
        "with its interval; a difference within one group alone proves nothing."
    )
    if not parts:
        return section("R10", "Subgroups and fairness", intro, absent("the protocol names no subgroup"))
    plots = [subgroup_forest(part, marks, index) for index, part in enumerate(parts)]
    return section("R10", "Subgroups and fairness", intro, pair(*plots))


def robustness(report: Json, marks: Marks) -> str:
    """R11: can the hospital be read from concepts, and what do differences go with?"""
    rows = explained_rows(report)
    reason = clean(mapping(report.get("heterogeneity")).get("reason") or "the report has no such analysis")
    said = (
        table(("Differs between sites", "Share of the spread that goes with it", "Concepts"), rows, right=1)
        if rows
        else absent(reason)
    )
    return section(
        "R11",
        "Robustness: stain, microscope, hospital",
        "Is it the cell that a concept sees, or the stain, the camera, the hospital?",
        beside(shortcuts(report, marks), measures([_apart(report)], "measures one")),
        figure(predictability(report, marks)),
        words("h3", "What goes with the differences between sites?"),
        said,
    )


def missing(report: Json, marks: Marks) -> str:
    """R12: what is missing, does one site decide, how were many tests handled?"""
    rows: list[list[TableCell]] = []
    for site, given in mapping(report.get("missing")).items():
        part = mapping(given)
        counts = [(key, whole(number(part.get(key)))) for key in _COUNTED]
        faults = "; ".join(lines(part.get("faults"))) or "none"
        withheld = known(whole(number(part.get("withheld_values"))), "not recorded")
        told = [known(text, _untold(part, key)) for key, text in counts]
        rows.append([clean(site), *told, withheld, faults])
    made = (
        table(_MISSING, rows, "What is missing, site by site", right=1)
        if rows
        else absent("no site is recorded")
    )
    return section(
        "R12",
        "Missing data, sensitivity, multiplicity",
        "What is not there, does the answer hang on one site, and how were many tests at once handled?",
        details(f"What is missing at {len(rows)} sites", made) if len(rows) > 30 else made,
        pair(influence(report, marks)),
        words("h3", "Many concepts tested at once"),
        _multiplicity(report),
        words("h3", "Size of the study"),
        absent("no size was calculated beforehand; read the width of the intervals"),
    )


_MISSING = (
    "Site", "Images listed", "Unreadable", "Images used", "Outside the classes", "Values withheld",
    "Steps that failed",
)  # fmt: skip
_COUNTED = ("listed", "unreadable", "stored", "outside_classes")


def _untold(part: Json, key: str) -> str:
    """Why a count of images is not there."""
    said = clean(part.get("listed_reason") or "") if key in ("listed", "unreadable") else ""
    return said or "not told"


def _multiplicity(report: Json) -> str:
    plan = mapping(report.get("protocol"))
    rule, fdr = clean(plan.get("multiplicity") or ""), number(plan.get("fdr"))
    if rule == "benjamini-hochberg" and fdr is not None:
        return words(
            "p", f"False discovery rate held at {fdr:g} over all concepts and classes (Benjamini-Hochberg)."
        )
    if rule == "none":
        return words("p", "No correction was agreed: single concepts are exploratory.")
    return absent("the protocol names no rule")


def drifted(report: Json, marks: Marks) -> str:
    """R13: does a site differ from the others?"""
    found = alarms(report)
    known_ = bool(mapping(mapping(report.get("drift")).get("sites")))
    said = (
        bullets(found)
        if found
        else words("p", "No site differs beyond the limits, where it could be computed.")
    )
    return section(
        "R13",
        "Drift",
        "Does a site's material differ from the others' more than was agreed as harmless?",
        pair(*drift(report, marks)),
        words("h3", "Alarms"),
        said if known_ else absent("no site released what this needs"),
        words("h3", "Change over time"),
        absent("images carry no dates; only sites are compared with each other"),
    )


def baselines(report: Json, marks: Marks) -> str:
    """R16: what else gives these numbers?"""
    rows: list[list[TableCell]] = []
    for item in entries(report.get("controls")):
        beside_ = headline_named(report, str(item.get("beside")))
        rows.append(
            [
                clean(item.get("name")),
                known(precise(number(item.get("value"))), "not run"),
                clean(beside_.get("name") or item.get("beside")),
                known(precise(number(beside_.get("value"))), "no value"),
                stopped(clean(item.get("sentence"))),
            ]
        )
    header = ("Control", "Value", "Beside", "Its value", "What it is")
    return section(
        "R16",
        "Baselines and negative controls",
        "What would chance, colour alone, or another dictionary give? A number means nothing without this.",
        table(header, rows) if rows else absent("the report has no controls"),
        figure(local_only(report, marks)),
    )
