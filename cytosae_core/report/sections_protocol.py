"""The report's sections on what was agreed and done: protocol (R1), sites (R2), models (R3), integrity (R5),
checklist (R18), deviations (R19)."""

from __future__ import annotations

from collections.abc import Sequence

from .figures_acquisition import appearance
from .figures_flow import flow
from .figures_study import acquisition_rows
from .figures_timeline import timeline
from .page import TableCell, absent, bullets, details, facts, known, pair, section, table, words
from .provenance import dictionary_facts, encoder_facts, study_facts
from .text import (
    REPORTED,
    Json,
    clean,
    entries,
    lines,
    mapping,
    number,
    precise,
    status,
    stopped,
    suppressed,
    units_word,
    whole,
)

Marks = Sequence[str]
SELECTIONS = {
    "loso": "chosen anew for every site that is left out, from the other sites only",
    "listed": "only those named in the protocol",
}
COVERED = {"yes": "yes", "part": "in part", "no": "NO"}
ASKED = {"at_least": "at least", "at_most": "at most"}


def protocol(report: Json, marks: Marks) -> str:
    """R1: what the study asks, for what use, and what was agreed before the first number."""
    plan = mapping(report.get("protocol"))
    use = (
        "For research on whether concepts of a vision transformer mean the same in several hospitals. Nothing here "
        "may guide the care of a patient, and it is no evidence of conformity with any regulation."
    )
    parts = [words("p", use)]
    if not plan:
        return section("R1", "Intended use and protocol", _R1, *parts, absent("no protocol is in the report"))
    hypothesis = clean(plan.get("hypothesis") or "")
    said = (
        words("p", f"Hypothesis: {hypothesis}") if hypothesis else absent("the protocol states no hypothesis")
    )
    return section(
        "R1", "Intended use and protocol", _R1, *parts, said, _endpoints(report, plan), facts(_plan(plan))
    )


_R1 = "What is asked, for what use, and what was agreed and signed before any site computed a number?"


def _endpoints(report: Json, plan: Json) -> str:
    found = {clean(item.get("id")): item for item in entries(report.get("headlines"))}
    rows = []
    for item in entries(plan.get("endpoints")):
        headline = found.get(clean(item.get("name")), {})
        asked = ASKED.get(str(headline.get("direction")), "threshold")
        reached = _reached(headline.get("passes"))
        name = clean(headline.get("name") or item.get("name"))
        kind = "primary" if item.get("primary") is True else "secondary"
        rows.append([name, kind, f"{asked} {precise(number(item.get('threshold')))}", reached])
    header = ("Number that decides", "Rank", "Agreed", "95 % interval")
    return table(header, rows, "Endpoints") if rows else absent("the protocol names no endpoint")


def _reached(passes: object) -> str:
    return "reached" if passes is True else "not reached" if passes is False else "not decided"


def _plan(plan: Json) -> list[tuple[str, TableCell]]:
    fdr, rule = number(plan.get("fdr")), clean(plan.get("multiplicity") or "")
    stages = [clean(item.get("name")) for item in entries(plan.get("stages"))]
    return [
        ("Concepts", known(SELECTIONS.get(str(plan.get("selection")), ""), "not recorded")),
        ("Concepts named beforehand", ", ".join(lines(plan.get("concepts"))) or "none"),
        ("Fewest units per class and site", known(whole(number(plan.get("support"))), "not recorded")),
        ("Fewest sites to conclude", known(whole(number(plan.get("min_sites"))), "not recorded")),
        (
            "Many concepts at once",
            known(f"{rule}, false discovery rate {fdr:g}" if rule and fdr else rule, "not recorded"),
        ),
        ("Stages", ", ".join(stages) or "one, with all sites"),
        ("Open stage", clean(plan.get("stage") or "") or "none was named"),
        ("Protocol, SHA-256", known(clean(plan.get("sha256") or ""), "not recorded")),
    ]


def sites(report: Json, marks: Marks) -> str:
    """R2: who took part, with what images, from which microscope."""
    header, rows = acquisition_rows(report)
    taken = (
        table(header, rows, "How pictures were taken")
        if rows
        else absent("no site told how pictures were taken")
    )
    return section(
        "R2",
        "Sites and data",
        f"Who took part, with how many {units_word(report)} and images, from which microscopes, with which labels?",
        class_table(report),
        pair(flow(report, marks)),
        words("h3", "Acquisition"),
        _folded(taken, len(rows)),
        pair(appearance(report, marks)),
        words("h3", "Labels"),
        _label_maps(report),
        words("h3", "Overlap with the encoder's training images"),
        absent("the report does not know which images the encoder was trained on"),
        words("h3", "Periods, patients' age and sex"),
        absent("sites do not release them"),
    )


def _folded(made: str, rows: int) -> str:
    return details(f"All {rows} sites", made) if rows > 30 else made


def class_table(report: Json) -> str:
    """Images and units per kind and site; hatched where too few stand behind the number."""
    return _class_counts(report, "classes", "Images") + _class_counts(
        report, "class_units", "Patients or slides"
    )


def _class_counts(report: Json, key: str, what: str) -> str:
    given = {
        clean(name): mapping(mapping(site).get(key)) for name, site in mapping(report.get("sites")).items()
    }
    names = list(dict.fromkeys(clean(label) for classes in given.values() for label in classes))
    if not names:
        return absent(f"no site released {what.lower()} per kind of cell")
    rows: list[list[TableCell]] = []
    for name, classes in given.items():
        counts = {clean(label): number(count) for label, count in classes.items()}
        rows.append([name, *(known(whole(counts.get(label)), suppressed(report)) for label in names)])
    made = table(["Site", *names], rows, f"{what} per kind of cell and site (rounded by the sites)", right=1)
    return _folded(made, len(rows))


def _label_maps(report: Json) -> str:
    given = {clean(k): mapping(v).get("label_map") for k, v in mapping(report.get("acquisition")).items()}
    known_ = {site: clean(value) for site, value in given.items() if value}
    if not known_:
        return absent("no site named the version of its map from local names to the study's classes")
    rows = [[site, known_.get(site, "not told")] for site in given]
    return _folded(table(("Site", "Map of local names to classes"), rows), len(rows))


def models(report: Json, marks: Marks) -> str:
    """R3: encoder, dictionary, seeds, software."""
    return section(
        "R3",
        "Models",
        "Which vision transformer sees the cells, which dictionary names its patterns, and how was it trained?",
        facts([*study_facts(report), *encoder_facts(report), *dictionary_facts(report)]),
        words("h3", "Computing time and energy"),
        absent("sites do not report them"),
    )


def integrity(report: Json, marks: Marks) -> str:
    """R5: is every number traceable to a signed message, and which sites dropped out?"""
    part, why = (
        mapping(report.get("integrity")),
        "Can every number be traced to a signed message, and did sites drop out?",
    )
    if not part:
        said = absent("the report does not say whether messages were logged")
        return section("R5", "Integrity of the federation", why, said, _faults(report))
    logged = part.get("status") == "logged"
    said = (
        "Messages that arrived are entries of the coordinator's log, in the order of arrival, under one root that a "
        "changed message would change. R21 says how to check it."
        if logged
        else "NOT logged: no log of messages belongs to this report, so its numbers cannot be traced."
    )
    items: list[tuple[str, TableCell]] = [
        ("Entries in the log", known(whole(number(part.get("log_size"))), "there is no log")),
        ("Root of the log", known(clean(part.get("root") or ""), "there is no log")),
    ]
    return section(
        "R5",
        "Integrity of the federation",
        why,
        words("p", said),
        facts(items),
        pair(timeline(report, marks)),
        _leaves(part),
        _faults(report),
    )


def _leaves(part: Json) -> str:
    rows = []
    for site, kinds in mapping(part.get("leaves")).items():
        for kind, places in mapping(kinds).items():
            found = [whole(number(item)) for item in places] if isinstance(places, list) else []
            rows.append([clean(site), clean(kind), ", ".join(item for item in found if item)])
    if not rows:
        return absent("no entries of the log are named")
    made = table(("Site", "Message", "Entries of the coordinator's log"), rows)
    return details("Where every site's messages stand in the log", made)


def _faults(report: Json) -> str:
    rows = [
        [clean(name), stopped(status(mapping(site)))]
        for name, site in mapping(report.get("sites")).items()
        if status(mapping(site)) != REPORTED
    ]
    head = words("h3", "Sites that dropped out")
    if not mapping(report.get("sites")):
        return head + absent("no site is recorded")
    return head + (
        table(("Site", "What happened"), rows) if rows else words("p", "No site: all of them reported.")
    )


def checklist(report: Json, marks: Marks) -> str:
    """R18: which section speaks to which item of a reporting standard."""
    rows: list[list[TableCell]] = []
    for item in entries(report.get("checklist")):
        said = [clean(item.get(key) or "") for key in ("standard", "item", "section")]
        rows.append([*said, known(COVERED.get(str(item.get("covered")), ""), "not stated")])
    return section(
        "R18",
        "Checklist of reporting standards",
        "Which section speaks to which item? “Yes” means that this report covers it, not that a standard is met.",
        table(("Standard", "Item", "Section", "Covered"), rows)
        if rows
        else absent("the report has no checklist"),
    )


def deviations(report: Json, marks: Marks) -> str:
    """R19: what was done otherwise than agreed."""
    plan = mapping(report.get("protocol"))
    rows = [
        [clean(item.get(key) or "") or "not stated" for key in ("at", "what", "why")]
        for item in entries(plan.get("deviations"))
    ]
    if rows:
        said = table(("When", "What was done otherwise", "Why"), rows)
    elif plan:
        said = words("p", "No deviation was recorded.")
    else:
        said = absent("no protocol is in the report")
    return section(
        "R19", "Deviations from the protocol", "What was done otherwise than agreed, when and why?", said
    )


def limits(report: Json, marks: Marks) -> str:
    """R17: what the report does not show, and everything that was not assessed."""
    found = lines(report.get("limits"))
    missing: list[list[TableCell]] = [
        [str(item.get("item") or "?"), known(clean(item.get("reason") or ""), "no reason was given")]
        for item in entries(report.get("not_assessed"))
    ]
    return section(
        "R17",
        "Limits and threats to validity",
        "What does this report not show?",
        bullets(found) if found else absent("no limits were recorded"),
        words("h3", "Not assessed"),
        table(["Item", "Reason"], missing)
        if missing
        else words("p", "The report lists nothing.", class_="small"),
    )
