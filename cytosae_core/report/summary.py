"""The first screen: the question, the answer, three findings, concepts that hold and that do not, sites and bytes."""

from __future__ import annotations

from collections.abc import Sequence

from .figures_concepts import VERDICT_COLOURS, chosen, concept_sites, strip, verdict_bar, verdict_counts
from .page import TableCell, absent, details, known, table, tag, words
from .text import (
    REPORTED,
    Json,
    byte_size,
    clean,
    decimal,
    entries,
    escape,
    lines,
    mapping,
    number,
    status,
    suppressed,
    unit_word,
    units_word,
    whole,
)

LISTED = 6  # concepts per card; the map further down shows more

SECTIONS = (
    ("concepts", "Concepts"),
    ("transfer", "Transfer"),
    ("quality", "Quality"),
    ("left", "What left"),
    ("limits", "Limits"),
    ("check", "How to check"),
)
DOTS = (
    "One dot per site: AUROC, the chance that cells of this kind show more of the concept than other cells."
)
COMPARED = (("use", "Use"), ("meaning", "Meaning"), ("limits", "Limits"), ("check", "How to check"))
MEANINGS = {
    "holds": "speak of the same kind of cell, on the same side of chance, at every site that could say.",
    "differs": "speak clearly at one site at least, and not, or the other way round, at another.",
    "no class meaning": "occur, but tell no kind of cell apart anywhere",
    "too few patients": "were seen at fewer than three sites with enough {units} behind them",
}


def opening(report: Json) -> str:
    """Title line, question, answer and findings."""
    title, question = (
        clean(report.get("title") or "Cross-site concept report"),
        clean(report.get("question") or ""),
    )
    findings = "".join(words("li", item) for item in lines(report.get("findings")))
    answer = report.get("answer")
    parts = [
        words("h1", question or title),
        words("p", answer, class_="lead") if answer else absent("the report has no answer to its question"),
        tag("ol", findings, class_="findings") if findings else absent("no findings were recorded"),
    ]
    return "".join(parts)


def glance(report: Json) -> str:
    """Concepts that hold beside concepts that do not, with equal weight; all others as counts."""
    counts = verdict_counts(report)
    if not sum(counts.values()):
        return words("h2", "Which concepts hold across sites") + absent("no site released what concepts mean")
    cards = _card(report, "holds", "hold across sites") + _card(report, "differs", "do not hold")
    return tag("div", cards, class_="pair") + funnel(report)


def _card(report: Json, verdict: str, name: str) -> str:
    sites, count = concept_sites(report), verdict_counts(report)[verdict]
    head = tag("p", f"{whole(count)}{words('small', f'concepts {name}')}", class_="count")
    parts = [head, words("p", f"They {MEANINGS[verdict]}")]
    shown = chosen(report, verdict, LISTED)
    if shown:
        parts.append(_strips(shown, sites, verdict))
    if count > len(shown):
        parts.append(words("p", f"The {len(shown)} strongest of {whole(count)}. {DOTS}"))
    return tag("div", "".join(parts), class_=f"card {verdict}")


def _strips(concepts: Sequence[Json], sites: Sequence[str], verdict: str) -> str:
    header = ("Concept", "speaks of", "less ← .5 → more")
    rows = [tag("tr", "".join(words("th", name, scope="col") for name in header))]
    for index, concept in enumerate(concepts):
        name, target = words("td", concept.get("id", "")), words("td", concept.get("target") or "no class")
        rows.append(tag("tr", name + target + tag("td", strip(concept, sites, f"s-{verdict}-{index}"))))
    return tag("table", "".join(rows), class_="strips")


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


def sites_table(report: Json) -> str:
    """Which sites, how many units and images, how well described, what left."""
    facts = {clean(name): mapping(site) for name, site in mapping(report.get("sites")).items()}
    if not facts:
        return words("h2", "The sites") + absent("no site is recorded")
    header = ["Site", "Counted", "Images", "Unexplained (FVU)", "Before training", "Left the hospital"]
    rows = [_site_row(name, site, suppressed(report)) for name, site in facts.items()]
    title = "The sites, how well the dictionary describes their cells, and what left them"
    how = (
        "FVU: share of the information in a site's images that the dictionary fails to explain; lower is better. "
        "“Before training” is the same number for the dictionary that the study started from."
    )
    return table(header, rows, title, right=1) + words("p", how, class_="small") + class_table(report)


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


def class_table(report: Json) -> str:
    """Cells per kind and site; hatched where too few stand behind the number."""
    facts = {
        clean(name): mapping(mapping(site).get("classes"))
        for name, site in mapping(report.get("sites")).items()
    }
    names = list(dict.fromkeys(clean(label) for classes in facts.values() for label in classes))
    if not names:
        return ""
    rows: list[list[TableCell]] = []
    for name, classes in facts.items():
        counts = {clean(label): number(count) for label, count in classes.items()}
        rows.append([name, *(known(whole(counts.get(label)), suppressed(report)) for label in names)])
    return details("Images per kind of cell and site", table(["Site", *names], rows, right=1))


def masthead(report: Json) -> str:
    """Title, kind of study and where to find what."""
    study = mapping(report.get("study"))
    kind = {
        "train": "dictionary trained together",
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
