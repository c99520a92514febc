"""The first screen (R0): verdict, headline, worst site, what left, integrity, caveats; then concepts and sites."""

from __future__ import annotations

from collections.abc import Sequence

from . import svg
from .figures_concepts import VERDICT_COLOURS, strip, verdict_bar, verdict_counts
from .figures_data import Concepts, caveats, concept_sites, headline_named, primary_of, why
from .figures_forest import mini
from .page import Gap, TableCell, absent, details, facts, known, table, tag, words
from .text import (
    REPORTED,
    Json,
    byte_size,
    chance,
    clean,
    decimal,
    ends,
    entries,
    escape,
    lines,
    mapping,
    number,
    precise,
    span,
    status,
    stopped,
    suppressed,
    unit_word,
    units_word,
    whole,
)

USE = "Research use; not a medical device; not a conformity assessment."
STATES = {
    "generalises": "Expected to hold in a new hospital",
    "does_not_generalise": "Not shown to hold in a new hospital",
    "provisional": "Provisional: too few sites to conclude",
    "not_estimable": "No answer: not estimable",
}
# Paths in a box of 20 x 20: tick, cross, half moon, dash.
ICONS = {
    "generalises": "M5.5 10.5l3.2 3.2l6-7",
    "does_not_generalise": "M6.5 6.5l7 7m0-7l-7 7",
    "provisional": "M10 4.5v11M10 4.5a5.5 5.5 0 0 1 0 11",
    "not_estimable": "M6 10h8",
}
SECTIONS: tuple[tuple[str, str], ...] = (
    ("R1", "Protocol"),
    ("R2", "Sites"),
    ("R4", "What left"),
    ("R7", "Concepts"),
    ("R8", "Transfer"),
    ("R15", "Failures"),
    ("R17", "Limits"),
    ("R21", "How to check"),
)
LISTED = 6  # concepts per card; the map further down shows more

DOTS = (
    "One dot per site: AUROC, the chance that cells of this kind show more of the concept than other cells. Pale "
    "bar: prediction interval for a new hospital."
)
POOLED = "Dot: AUROC pooled over sites. Pale bar: prediction interval for a new hospital."
COMPARED: tuple[tuple[str, str], ...] = (
    ("use", "Use"),
    ("meaning", "Meaning"),
    ("limits", "Limits"),
    ("check", "How to check"),
)
MEANINGS = {
    "holds": "speak of the same kind of cell, on the same side of chance, at every site that could say.",
    "differs": "speak clearly at one site at least, and not, or the other way round, at another.",
    "no class meaning": "occur, but tell no kind of cell apart anywhere",
    "too few patients": "were seen at fewer than three sites with enough {units} behind them",
}


def opening(report: Json) -> str:
    """Question, answer and findings: the first screen of a comparison of statistics."""
    answer = report.get("answer")
    said = words("p", answer, class_="lead") if answer else absent("the report has no answer to its question")
    return _question(report) + said + _findings(report)


def _question(report: Json) -> str:
    title = clean(report.get("title") or "Cross-site concept report")
    return words("h1", clean(report.get("question") or "") or title)


def _findings(report: Json) -> str:
    found = "".join(words("li", item) for item in lines(report.get("findings")))
    return tag("ol", found, class_="findings") if found else absent("no findings were recorded")


def use() -> str:
    """What this page may be used for."""
    return words("p", USE, class_="use")


def verdict_state(report: Json) -> str:
    """One of `STATES`; empty when the report has none."""
    state = mapping(report.get("verdict")).get("state")
    return state if isinstance(state, str) and state in STATES else ""


def cover(report: Json) -> str:
    """Question, verdict, the primary number, worst site, what left, integrity, caveats, findings."""
    key = tag("div", _headline(report) + _beside(report), class_="key")
    found = words("h2", "In short") + _rest(report) + _findings(report)
    return _question(report) + _verdict(report) + key + _caveats(report) + found


def icon(state: str) -> str:
    """The verdict's symbol, in the colour of the text around it."""
    ring = svg.el("circle", cx=10, cy=10, r=9, fill="none")
    path = svg.el("path", d=ICONS[state], fill="none")
    return (
        '<svg aria-hidden="true" viewBox="0 0 20 20" width="20" height="20" stroke="currentColor" stroke-width="1.8">'
        f"{ring}{path}</svg>"
    )


def _verdict(report: Json) -> str:
    part, state = mapping(report.get("verdict")), verdict_state(report)
    if not state:
        return absent("the report has no verdict")
    where = " (simulated sites)" if report.get("status") == "simulation" else ""
    head = tag("p", icon(state) + words("span", STATES[state] + where), class_="state")
    sentence = words("p", part.get("sentence") or "No sentence was recorded.", class_="lead")
    reason = clean(part.get("reason") or "")
    why_ = words("p", stopped(reason[:1].upper() + reason[1:]), class_="small") if reason else ""
    return tag("div", head + sentence + why_, class_=f"verdict {state}")


def _headline(report: Json) -> str:
    """The primary number with interval and prediction interval, and its small picture."""
    part = primary_of(report)
    if not part:
        return tag(
            "div",
            words("p", "Primary number", class_="name") + absent("no headline was recorded"),
            class_="headline",
        )
    name = words("p", f"Primary number: {clean(part.get('name') or part.get('id'))}", class_="name")
    value = number(part.get("value"))
    if value is None:
        return tag("div", name + absent(why(part)), class_="headline")
    interval, prediction = ends(part.get("interval")), ends(part.get("prediction"))
    small = f"95 % interval {span(interval)}" if interval else f"no interval: {why(part)}"
    shown = tag("p", escape(precise(value)) + words("small", small), class_="value")
    new = (
        f"A new hospital: {span(prediction)} (95 % prediction interval)."
        if prediction
        else (f"A new hospital: not estimable ({why(part).removeprefix('not estimable: ')}).")
    )
    return tag("div", name + shown + words("p", f"{new} {_counted(part)}", class_="small") + _mini(report, part),
               class_="headline")  # fmt: skip


def _counted(part: Json) -> str:
    count = mapping(part.get("n"))
    sites, units = whole(number(count.get("sites"))), whole(number(count.get("units")))
    said = f"From {sites or 'an unknown number of'} sites, {units or 'an unknown number of'} units."
    threshold, asked = number(part.get("threshold")), {"at_least": "at least", "at_most": "at most"}
    if threshold is not None:
        said += (
            f" Agreed beforehand: {asked.get(str(part.get('direction')), 'threshold')} {precise(threshold)}."
        )
    return said


def _mini(report: Json, part: Json) -> str:
    picture = tag("div", mini(part, lines(report.get("watermarks"))), class_="plot")
    key = "Short lines: sites. Diamond: their pooled value with its interval. Bar: where a new hospital is expected."
    return picture + words("p", key, class_="small")


def _beside(report: Json) -> str:
    items: list[tuple[str, TableCell]] = [
        ("Worst site", _worst(report)),
        ("A new site passes", _passes(report)),
        ("What left", _left(report)),
        ("Integrity", _integrity(report)),
        ("Sites", _sites_said(report)),
    ]
    return tag("div", facts(items))


def _worst(report: Json) -> TableCell:
    worst = mapping(mapping(report.get("verdict")).get("worst_site"))
    value = number(worst.get("value"))
    if value is None:
        return Gap("no site has the primary number")
    part = headline_named(report, str(worst.get("endpoint")))
    return (
        f"{clean(worst.get('site'))}: {precise(value)} ({clean(part.get('unit') or worst.get('endpoint'))})"
    )


def _passes(report: Json) -> TableCell:
    part = primary_of(report)
    return known(
        chance(number(part.get("probability_new_site"))), "needs a threshold and three or more sites"
    )


def _left(report: Json) -> TableCell:
    sites = mapping(mapping(report.get("egress")).get("sites"))
    sizes = [size for entry in sites.values() if (size := number(mapping(entry).get("bytes"))) is not None]
    if not sizes:
        return Gap("the report does not record what left")
    trained = mapping(report.get("study")).get("kind") == "train"
    what = "statistics and dictionary rows" if trained else "statistics only"
    if mapping(report.get("study")).get("profile") == "dp":
        what = "sums over patients with noise, and statistics made from them"
    return f"{byte_size(sum(sizes))} from {len(sizes)} sites, {what}; no raw image"


def _integrity(report: Json) -> TableCell:
    part = mapping(report.get("integrity"))
    if part.get("status") == "logged":
        size = whole(number(part.get("log_size")))
        return (
            f"what arrived is in the coordinator's log ({size or 'unknown number of'} entries); to check: R21"
        )
    if part.get("status") == "not_logged":
        return "NOT logged: no log of messages belongs to this report"
    return Gap("the report does not say whether messages were logged")


def _sites_said(report: Json) -> TableCell:
    sites = [mapping(site) for site in mapping(report.get("sites")).values()]
    if not sites:
        return Gap("no site is recorded")
    reported = sum(status(site) == REPORTED for site in sites)
    kind = {"simulation": "simulated on one machine", "real": "real"}.get(str(report.get("status")), "")
    return f"{reported} of {len(sites)} reported" + (f"; {kind}" if kind else "")


def _caveats(report: Json) -> str:
    found = "".join(words("li", item) for item in caveats(report))
    head = words("h2", "Three things to know first", class_="caveats")
    return head + (tag("ol", found, class_="findings") if found else absent("no caveats were recorded"))


def _rest(report: Json) -> str:
    """The answer without the verdict's sentence, which stands above."""
    answer = clean(report.get("answer") or "")
    sentence = clean(mapping(report.get("verdict")).get("sentence") or "")
    rest = answer.removeprefix(sentence).strip()
    return words("p", rest) if rest else ""


def glance(report: Json) -> str:
    """Concepts that hold beside concepts that do not, with equal weight; all others as counts."""
    counts = verdict_counts(report)
    head = words("h2", "Which concepts hold, and which do not")
    if not sum(counts.values()):
        return head + absent("no site released what concepts mean")
    cards = _card(report, "holds", "hold across sites") + _card(report, "differs", "do not hold")
    return head + tag("div", cards, class_="pair") + funnel(report)


def _card(report: Json, verdict: str, name: str) -> str:
    concepts = Concepts(report)
    found = concepts.places("verdict", verdict)
    count = len(found)
    head = tag("p", f"{count:,}{words('small', f'concepts {name}')}", class_="count")
    parts = [head, words("p", f"They {MEANINGS[verdict]}")]
    shown = found[:LISTED]
    if shown:
        parts.append(_strips(concepts, shown, concept_sites(report), verdict))
    if count > len(shown):
        dots = DOTS if concepts.with_sites else POOLED
        parts.append(words("p", f"The {len(shown)} strongest of {count:,}. {dots}"))
    return tag("div", "".join(parts), class_=f"card {verdict}")


def _strips(concepts: Concepts, shown: Sequence[int], sites: Sequence[str], verdict: str) -> str:
    header = ("Concept", "speaks of", "less ← .5 → more")
    head = tag("thead", tag("tr", "".join(words("th", name, scope="col") for name in header)))
    rows = []
    for index, place in enumerate(shown):
        name = words("th", concepts.id(place), scope="row")
        target = words("td", concepts.name("target", place) or "no class")
        rows.append(
            tag("tr", name + target + tag("td", strip(concepts, place, sites, f"s-{verdict}-{index}")))
        )
    return tag("table", head + tag("tbody", "".join(rows)), class_="strips")


def funnel(report: Json) -> str:
    """All concepts as one bar, and every count with its meaning."""
    items, total = [], 0
    for name, count in verdict_counts(report).items():
        colour, total = VERDICT_COLOURS[name], total + count
        style = {"style": f"background:{colour}"} if colour else {}
        swatch = tag("span", class_="swatch" if colour else "swatch hatched", **style)
        text = MEANINGS[name].format(units=units_word(report)) if name not in ("holds", "differs") else ""
        shown = {"holds": "hold", "differs": "do not hold", "too few patients": "not assessed"}.get(
            name, name
        )
        said = f"{swatch}{words('b', whole(count))} {escape(shown)}{escape(': they ' + text) if text else ''}"
        items.append(tag("li", said))
    lead = words("p", f"All {whole(total)} concepts of the dictionary:", class_="small")
    return tag("div", lead + verdict_bar(report) + tag("ul", "".join(items)), class_="funnel")


SITES_SHOWN = 30


def sites_table(report: Json) -> str:
    """Which sites, how many units and images, how well described, what left."""
    sites = {clean(name): mapping(site) for name, site in mapping(report.get("sites")).items()}
    if not sites:
        return words("h2", "The sites") + absent("no site is recorded")
    header = ["Site", "Counted", "Images", "Unexplained (FVU)", "Before training", "Left the hospital"]
    rows = [_site_row(name, site, suppressed(report)) for name, site in sites.items()]
    title = "The sites, how well the dictionary describes their cells, and what left them"
    how = (
        "FVU: share of the information in a site's images that the dictionary fails to explain; lower is better. "
        "“Before training” is the same number for the dictionary that the study started from."
    )
    head = words("h2", "The sites")
    if len(rows) <= SITES_SHOWN:
        return head + table(header, rows, title, right=1) + words("p", how, class_="small")
    rest = details(f"The other {len(rows) - SITES_SHOWN} sites", table(header, rows[SITES_SHOWN:], right=1))
    return head + table(header, rows[:SITES_SHOWN], title, right=1) + rest + words("p", how, class_="small")


def _site_row(name: str, site: Json, few: str) -> list[TableCell]:
    state = status(site)
    reason = few if state == REPORTED else state
    counted = whole(number(site.get("units")))
    start = reason if number(site.get("fvu")) is None else "not measured"
    return [
        name if state == REPORTED else f"{name} ({state})",
        known(f"{counted} {unit_word(site.get('unit'))}" if counted else "", reason),
        known(whole(number(site.get("images"))), reason),
        known(decimal(number(site.get("fvu"))), reason),
        known(decimal(number(site.get("fvu_init"))), start),
        known(byte_size(number(site.get("bytes_out"))), "not recorded"),
    ]


def masthead(report: Json) -> str:
    """Title, kind of study and where to find what."""
    study = mapping(report.get("study"))
    private = study.get("profile") == "dp"
    kind = {
        "train": "public dictionary, concepts added" if private else "dictionary trained together",
        "validate": "frozen dictionary, metrics only",
        "compare": "frozen dictionary, statistics of data sets",
    }
    sections = COMPARED if study.get("kind") == "compare" else SECTIONS
    said = [
        kind.get(str(study.get("kind")), ""),
        f"{len(entries([*mapping(report.get('sites')).values()]))} "
        + ("data sets" if study.get("kind") == "compare" else "sites"),
        f"{whole(number(study.get('rounds')))} rounds" if number(study.get("rounds")) else "",
    ]
    about = words("span", " · ".join(item for item in said if item))
    nav = " · ".join(words("a", name, href=f"#{key}") for key, name in sections)
    title = words("b", report.get("title") or "Cross-site concept report")
    return tag(
        "header",
        tag("span", f"{title} · {about}") + tag("nav", nav, aria_label="Sections"),
        class_="masthead",
    )
