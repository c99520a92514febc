"""Concept cards: everything known of one concept, its checks by name, and what was not assessed."""

from __future__ import annotations

from collections.abc import Sequence

from .figures_concepts import strip
from .figures_data import FAIL, OPEN, PASS, Concepts, concept_sites, gate_word, state_word
from .page import Gap, TableCell, absent, facts, known, tag, words
from .states import SITE_SHARE
from .text import (
    Json,
    chance,
    compact,
    decimal,
    escape,
    lines,
    mapping,
    percent,
    precise,
    span,
    stopped,
    whole,
)

CARDS = 4  # of the strongest, and of the failures
SYMBOLS = {PASS: ("✓", "pass", "passes"), FAIL: ("✗", "fail", "FAILS"), OPEN: ("–", "open", "")}


def strongest(concepts: Concepts, failures: Sequence[int]) -> list[int]:
    """The first concepts in the report's order that have a state above candidate or a verdict, without failures."""
    stopped_here = set(failures)
    found: list[int] = []
    for place in range(concepts.count):
        if len(found) == CARDS:
            break
        far = concepts.name("state", place) not in ("", "not_assessed", "candidate")
        if place not in stopped_here and (far or concepts.name("verdict", place) == "holds"):
            found.append(place)
    return found


def failed(report: Json, concepts: Concepts) -> list[int]:
    """Concepts that did not hold, in the report's ranking."""
    return concepts.at(lines(report.get("failures")))


def cards(report: Json) -> str:
    """Cards of the strongest concepts beside cards of the failures, as many and as large."""
    concepts = Concepts(report)
    bad = failed(report, concepts)
    good = strongest(concepts, bad)
    sites = concept_sites(report)
    left = _column(
        "The strongest", "no concept came further than candidate", good, concepts, sites, "card-strong"
    )
    right = _column(
        "The failures", "the report lists no failure", bad[:CARDS], concepts, sites, "card-failed"
    )
    return tag("div", left + right, class_="pair")


def _column(
    title: str, reason: str, places: Sequence[int], concepts: Concepts, sites: Sequence[str], key: str
) -> str:
    made = [card(concepts, place, sites, f"{key}-{index}") for index, place in enumerate(places)]
    return tag("div", words("h3", title) + ("".join(made) or absent(reason)))


def card(concepts: Concepts, place: int, sites: Sequence[str], key: str) -> str:
    """One concept: name, meaning, numbers with their controls, checks."""
    state, verdict = concepts.name("state", place), concepts.name("verdict", place)
    said = f"{concepts.name('target', place) or 'no class'} · {state_word(state) or 'no state'}"
    title = tag("h4", escape(concepts.id(place)) + words("small", said))
    bad = verdict == "differs" or bool({"shortcut", "confound"} & set(concepts.failed(place)))
    body = title + words("p", _sentence(concepts, place)) + strip(concepts, place, sites, key)
    body += facts(_numbers(concepts, place)) + _gates(concepts, place)
    return tag("article", body, class_="concept failed" if bad else "concept")


def _sentence(concepts: Concepts, place: int) -> str:
    """What the concept says, in words."""
    estimate, count = concepts.value("estimate", place), whole(concepts.value("sites", place))
    name = concepts.name("target", place)
    if estimate is None or not name:
        return f"Not assessed: it could not be pooled over three sites ({count or 'no'} sites could say)."
    more = "more" if estimate >= 0.5 else "less"
    pooled = f"AUROC {precise(estimate)} pooled over {count or 'an unknown number of'} sites"
    inside = span(concepts.interval("", place))
    new = span(concepts.interval("prediction_", place))
    said = f"Cells of kind {name} show {more} of it ({pooled}, 95 % interval {inside or 'not estimable'})"
    return stopped(f"{said}; at a new hospital {new or 'not estimable'}")


def _numbers(concepts: Concepts, place: int) -> list[tuple[str, TableCell]]:
    value = {name: concepts.value(name, place) for name in _NAMES}
    i2, tau2 = value["i2"], value["tau2"]
    spread = f"tau² {decimal(tau2, 2)}, I² {percent(i2)}" if tau2 is not None and i2 is not None else ""
    return [
        ("New site agrees", known(chance(value["probability_new_site"]), "fewer than 3 sites")),
        ("Sites differ by", known(spread, "fewer than 3 sites")),
        ("Many tests at once", known(_pair("q", value["q"]), "fewer than 3 sites")),
        ("Found again", _recurrence(value)),
        ("Between hospitals", _between(value)),
        ("Hospital told", _beside(value["site_accuracy"], value["site_null"], "two halves of one site")),
        ("Light, focus, size", _confound(concepts, place)),
        ("Cell size removed", known(_pair("AUROC", value["adjusted"]), "only for kinds of cells")),
        ("Taking it away", _ablation(value)),
        ("Held at sites left out", known(percent(value["replicated"]), "its meaning was not clear at all others")),
        ("In how many patches", known(percent(value["firing_rate"]), "withheld")),
        ("Experts", _experts(concepts, place, value)),
        ("Row digest", known(_text(concepts, "digest", place), "not recorded")),
    ]  # fmt: skip


_NAMES = (
    "probability_new_site", "i2", "tau2", "q", "recurrence", "recurrence_sites", "recurrence_init", "recurrence_null",
    "site_share", "site_share_high",
    "site_share_null", "site_accuracy", "site_null", "adjusted", "ablation", "ablation_rank",
    "replicated", "firing_rate", "review_raters", "review_agreement",
)  # fmt: skip


def _experts(concepts: Concepts, place: int, value: Json) -> TableCell:
    if not value["review_raters"]:
        return Gap("no expert looked at it")
    name = concepts.name("review_term", place) or "no term has most votes"
    return f"{name} ({whole(value['review_raters'])} votes, agreement {decimal(value['review_agreement'], 2) or '?'})"


def _pair(name: str, value: float | None) -> str:
    return "" if value is None else f"{name} {precise(value)}"


def _between(value: Json) -> TableCell:
    """The number that the check "not the hospital" looks at."""
    share, null, high = (value[name] for name in ("site_share", "site_share_null", "site_share_high"))
    if share is None or null is None:
        return Gap("too few sites released what it needs")
    most = "" if high is None else f", may be {percent(high)}"
    return (
        f"{percent(max(share, 0.0))}{most} of its spread within a kind of cell (hospitals exchanged: "
        f"{percent(max(null, 0.0))}; limit {percent(SITE_SHARE)})"
    )


def _beside(value: float | None, control: float | None, name: str) -> TableCell:
    if value is None:
        return Gap("no site released it")
    return f"{percent(value)} of images" + (f" ({name}: {percent(control)})" if control is not None else "")


def _recurrence(value: Json) -> TableCell:
    if value["recurrence"] is None:
        return Gap("sites trained no dictionaries of their own")
    said = f"at {whole(value['recurrence_sites']) or '?'} sites, cosine {compact(value['recurrence'])}"
    controls = [("before training", value["recurrence_init"]), ("by chance", value["recurrence_null"])]
    shown = [f"{name} {compact(number)}" for name, number in controls if number is not None]
    return said + (f" ({', '.join(shown)})" if shown else "")


def _confound(concepts: Concepts, place: int) -> TableCell:
    value, of = concepts.value("confound", place), concepts.value("confound_of", place)
    if value is None:
        return Gap("no site released light, focus and cell size")
    index = int(of) if of is not None else -1
    name = concepts.facts[index] if 0 <= index < len(concepts.facts) else "the strongest"
    return f"correlation {decimal(value, 2)} with {name}"


def _ablation(value: Json) -> TableCell:
    if value["ablation"] is None:
        return Gap("no site released it")
    rank = value["ablation_rank"]
    said = f"lowers its class's margin by {percent(value['ablation'])}"
    return said + (f"; more than {percent(rank)} of similar concepts" if rank is not None else "")


def _text(concepts: Concepts, name: str, place: int) -> str:
    column = concepts.columns.get(name, [])
    return str(column[place]) if place < len(column) and isinstance(column[place], str) else ""


def _gates(concepts: Concepts, place: int) -> str:
    if not concepts.gates:
        return absent("no check of this concept is in the report")
    items, skipped = [], []
    for name in concepts.gates:
        symbol, kind, word = SYMBOLS[concepts.gate(name, place)]
        if name == "shortcut" and kind == "open" and concepts.value("site_share_high", place) is not None:
            items.append(words("li", f"– {gate_word(name)}: too few sites to rule it out", class_=kind))
        elif kind == "open":
            skipped.append(gate_word(name))
        else:
            mark = words("b", symbol, aria_hidden="true")
            items.append(tag("li", f"{mark}{escape(gate_word(name))}: {escape(word)}", class_=kind))
    if skipped:
        items.append(words("li", f"– not assessed: {', '.join(skipped)}", class_="open"))
    return tag("ul", "".join(items), class_="gates", aria_label="Checks")


def failure_rows(report: Json) -> list[list[str]]:
    """Every concept that did not hold, ranked, with the reason."""
    concepts = Concepts(report)
    rows = []
    for place in failed(report, concepts):
        rows.append(
            [
                concepts.id(place),
                concepts.name("target", place) or "none",
                precise(concepts.value("mean", place)) or "none",
                span(concepts.interval("prediction_", place)) or "not estimable",
                _reason(concepts, place),
            ]
        )
    return rows


def _reason(concepts: Concepts, place: int) -> str:
    said = ["sites disagree on what it means"] if concepts.name("verdict", place) == "differs" else []
    words_ = {
        "shortcut": "the hospital can be read from it",
        "confound": "it follows light, focus or cell size",
    }
    said += [text for gate, text in words_.items() if concepts.gate(gate, place) == FAIL]
    return "; ".join(said) or "listed by the report without a reason"


def gate_counts(report: Json) -> list[list[str]]:
    """Of every check: how many concepts pass, fail, and were not assessed."""
    part = mapping(mapping(report.get("concepts")).get("gate_values"))
    rows = []
    for name in Concepts(report).gates:
        values = part.get(name)
        given = values if isinstance(values, list) else []
        counts = [sum(value == wanted for value in given) for wanted in (PASS, FAIL, OPEN)]
        rows.append([gate_word(name), *(f"{count:,}" for count in counts)])
    return rows
