"""Figures of the study itself: bytes by round, the funnel of states, drift of every site from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import svg
from .figure import HALF, Dots, Figure, Missing, Panel, dot_plot, dot_table
from .figures_bounds import SAID, Lower, arrows, at_least, gaps, lower_bounds
from .figures_data import Concepts, state_word
from .marks import Series
from .svg import GREY, HOLD, MUTED, PALETTE, Scale
from .text import Json, byte_size, clean, decimal, entries, lines, mapping, number, precise, short, whole

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "bar")
SHOWN = 24  # sites in a drift figure; the table has all
STATE_HELP = {
    "not_assessed": "fewer than three sites could say",
    "candidate": "seen at three sites or more",
    "recurring": "found again in dictionaries that sites trained on their own",
    "named": "recognised by experts",
    "provisional": "the same meaning everywhere, with too few sites to conclude",
    "generalising": "expected to hold at a hospital that was not in the study",
    "validated": "generalising, and every other check passed",
}


def bytes_by_round(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """F11: bytes that arrived in every round, all sites together."""
    title = "Bytes by round, all sites together"
    found = [(whole(number(r.get("round"))), number(r.get("bytes"))) for r in entries(report.get("rounds"))]
    known = [(name or "?", size) for name, size in found if size is not None]
    if not known:
        return Missing(title, "no round of training was recorded")
    top, bottom, left, right = 26.0, 190.0, 44.0, HALF - 12.0
    up = Scale(0, svg.nice_ceiling(max(max(size for _, size in known) / 1e6, 1e-6)), bottom, top)
    parts = [svg.y_axis(up, left, right, "Megabytes")]
    pitch = (right - left) / len(known)
    every = max(1, round(len(known) / 12))
    for index, (name, size) in enumerate(known):
        x, y = left + pitch * index, up(size / 1e6)
        box = svg.rect(x + pitch * 0.12, y, pitch * 0.76, bottom - y, PALETTE[0])
        parts.append(svg.hover(box, f"round {name}: {byte_size(size)}"))
        if index % every == 0:
            parts.append(svg.label(x + pitch / 2, bottom + 15, name, fill=MUTED, text_anchor="middle"))
    parts.append(svg.label((left + right) / 2, bottom + 31, "Round", text_anchor="middle"))
    how = (
        "Messages of training, all sites together, round by round. Which fields they may hold stands in the list "
        "below; a privacy budget (epsilon) exists only under the profile dp."
    )
    picture = svg.canvas("bytes-rounds", HALF, bottom + 38, "".join(parts), title, how, marks)
    rows = [[name, byte_size(size)] for name, size in known]
    return Figure("bytes-rounds", title, how, picture, ("Round", "Bytes"), rows)


def states(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """F14: how many concepts came how far."""
    title, concepts = "How far concepts came", Concepts(report)
    counts = concepts.counts("state")
    if not sum(counts.values()):
        return Missing(title, "no concept has a state")
    reached, total = {}, 0
    for name in reversed(counts):
        total += counts[name]
        reached[name] = total
    left, top, most = 96.0, 10.0, max(counts.values())
    scale, parts = Scale(0, most, left, HALF - 64), []
    for index, (name, count) in enumerate(counts.items()):
        y = top + 24 * index
        parts.append(svg.label(left - 8, y + 13, state_word(name), text_anchor="end"))
        colour = GREY if name == "not_assessed" else HOLD
        if count:
            parts.append(svg.rect(left, y, max(scale(count) - left, 2.0), 17, colour))
        text = whole(float(count)) if count else "none"
        parts.append(
            svg.label((scale(count) if count else left) + 7, y + 13, text, fill=None if count else MUTED)
        )
    how = (
        "Every concept stands once, at the state that its checks allow, weakest on top. A check that was not made "
        "stops a concept just as one that failed: see the cards."
    )
    said = "; ".join(f"{state_word(name)}: {count}" for name, count in counts.items())
    picture = svg.canvas("states", HALF, top + 24 * len(counts) + 4, "".join(parts), title, said, marks)
    rows = [
        [state_word(n), whole(float(c)), whole(float(reached[n])), STATE_HELP.get(n, "")]
        for n, c in counts.items()
    ]
    return Figure(
        "states", title, how, picture, ("State", "Concepts", "This state or better", "What it means"), rows
    )


def drift_sites(report: Json) -> dict[str, Json]:
    """What the report says of every site's drift."""
    given = mapping(mapping(report.get("drift")).get("sites"))
    return {clean(site): mapping(entry) for site, entry in given.items()}


def drift(report: Json, marks: Sequence[str]) -> tuple[Figure | Missing, Figure | Missing]:
    """How far pictures (PSI) and description (FVU ratio) of every site lie from the mean of the others."""
    sites, limits = drift_sites(report), mapping(mapping(report.get("drift")).get("alarms"))
    psi = {site: {clean(k): number(v) for k, v in mapping(e.get("psi")).items()} for site, e in sites.items()}
    ratios = {site: {"ratio": number(entry.get("fvu_ratio"))} for site, entry in sites.items()}
    return (
        _drift("psi", "Do pictures differ from the other sites'?", psi, number(limits.get("psi")) or 0.25,
               ("Population stability index (PSI)", _PSI), marks, lower_bounds(report), gaps(report)),
        _drift("fvu-ratio", "Is a site described worse than the others?", ratios,
               number(limits.get("fvu_ratio")) or 1.25, ("FVU here over FVU at the others", _FVU), marks),
    )  # fmt: skip


_PSI = (
    "How far the distribution of brightness, saturation, focus and cell size at a site lies from the mean of the "
    "other sites; 0: the same, above the dashed line: an alarm. Compared are sites, not times."
)
_FVU = (
    "Unexplained share at a site divided by the mean of the others: 1 is the same, above the dashed line: the "
    "dictionary fits this hospital's cells clearly worse."
)


def _drift(
    key: str, title: str, found: dict[str, dict[str, float | None]], alarm: float, words: tuple[str, str],
    marks: Sequence[str], lower: Lower | None = None, reasons: Mapping[tuple[str, str], str] | None = None,
) -> Figure | Missing:  # fmt: skip
    names = list(dict.fromkeys(name for table in found.values() for name in table))
    worst = {
        site: max((v for v in table.values() if v is not None), default=-1.0) for site, table in found.items()
    }
    if all(value < 0 for value in worst.values()):
        return Missing(title, "no site released what this needs, or withheld some of it")
    shown = (
        list(found) if len(found) <= SHOWN else sorted(found, key=lambda site: (-worst[site], site))[:SHOWN]
    )
    series = [Series(name, SHAPES[i % 6], PALETTE[i % 8], filled=i < 2) for i, name in enumerate(names)]
    low = 0.0 if key == "psi" else min(0.5, *(value for value in worst.values() if value >= 0))
    high = svg.nice_ceiling(max(alarm * 1.4, *worst.values()))
    rows = [Dots(site, found[site]) for site in shown]
    panel = Panel(Scale(low, high, 0, 1), words[0], {alarm: f"alarm {svg.tick_text(alarm)}"})
    body, height = dot_plot(rows, series if len(series) > 1 else series[:1], panel)
    how = words[1] + (SAID if lower else "")
    how += f" The {SHOWN} sites that differ most; the table has all." if len(found) > SHOWN else ""
    body += arrows(rows, series, panel, lower or {})
    picture = svg.canvas(key, HALF, height, body, title, how, marks)
    header, table = dot_table([Dots(site, values) for site, values in found.items()], series, "Site")
    return Figure(key, title, how, picture, header, at_least(header, table, lower or {}, reasons or {}))


def alarms(report: Json) -> list[str]:
    """Sites with drift beyond the limits, in words."""
    said = []
    for site, entry in drift_sites(report).items():
        found = lines(entry.get("alarms"))
        if found:
            said.append(f"{site}: {', '.join(found)}")
    return said


def acquisition_rows(report: Json) -> tuple[list[str], list[list[str]]]:
    """One row per site: how pictures were taken, and mean and SD of light, focus and size."""
    sites = {clean(site): mapping(entry) for site, entry in mapping(report.get("acquisition")).items()}
    cards = {site: mapping(entry.get("card")) for site, entry in sites.items()}
    facts = {site: mapping(entry.get("facts")) for site, entry in sites.items()}
    names = list(dict.fromkeys(key for card in cards.values() for key in card))
    measured = list(dict.fromkeys(key for table in facts.values() for key in table))
    header = [
        "Site",
        *(clean(name).replace("_", " ") for name in names),
        *(f"{clean(n)}, mean (SD)" for n in measured),
    ]
    rows = []
    for site in sites:
        said = [short(cards[site].get(name) or "", 60) or "not told" for name in names]
        rows.append([site, *said, *(_mean_sd(mapping(facts[site].get(name))) for name in measured)])
    return header, rows


def _mean_sd(entry: Json) -> str:
    middle, spread = number(entry.get("mean")), number(entry.get("sd"))
    if middle is None:
        return "withheld"
    return precise(middle) + (f" ({decimal(spread, 2)})" if spread is not None else "")


def explained_rows(report: Json) -> list[list[str]]:
    """Per covariate, the share of the spread between sites that goes with it."""
    rows = []
    for item in entries(mapping(report.get("heterogeneity")).get("explained")):
        share = number(item.get("share"))
        count = whole(number(item.get("concepts"))) or "unknown"
        rows.append(
            [
                clean(item.get("covariate")),
                "not estimable" if share is None else f"{100 * share:.0f} %",
                count,
            ]
        )
    return rows
