"""The report's verdict, from the numbers that the other checks recompute. Rules: docs/auditor.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..verify.verdict import Broken
from .meta import MIN_SITES
from .numbers import Numbers

READABLE = 0.68  # a cell's site is told this often: named as a limit
MOST = 3
BASELINES = (
    "raw embeddings", "colour histogram", "shuffled labels", "dictionary before training", "random dictionary",
    "random rows",
)  # fmt: skip


def check_verdict(numbers: Numbers) -> str:
    """State, sentence, reason, worst site and the strongest limits of the primary endpoint."""
    plan, primary = numbers.protocol["plan"], numbers.report["headlines"][0]
    asked = next(item for item in plan["endpoints"] if item["primary"])
    if primary["id"] != asked["name"]:
        raise Broken("Not about the endpoint that the protocol calls primary.", "report.json headlines/0/id")
    state = _state(primary, plan["min_sites"])
    numbers.same("verdict/state", state)
    numbers.same("verdict/sentence", _sentence(primary, state, plan["min_sites"]))
    numbers.same("verdict/reason", _reason(primary, state, plan["min_sites"]))
    numbers.same("verdict/worst_site", _worst(primary))
    numbers.same("verdict/caveats", [text for text, applies in _limits(numbers, primary) if applies][:MOST])
    return f"The verdict on {primary['id']} follows from its numbers: {state.replace('_', ' ')}."


def _state(primary: Mapping[str, Any], min_sites: int) -> str:
    sites = len(primary["sites"])
    if sites < MIN_SITES:
        return "not_estimable"
    if sites < min_sites:
        return "provisional"
    low, high = primary["prediction"]
    higher = primary["direction"] == "at_least"
    reached = low >= primary["threshold"] if higher else high <= primary["threshold"]
    return "generalises" if reached else "does_not_generalise"


def _sentence(primary: Mapping[str, Any], state: str, min_sites: int) -> str:
    name, sites = primary["name"], len(primary["sites"])
    if state == "not_estimable":
        return f"No answer: {name[0].lower()}{name[1:]} could not be estimated from {sites} sites."
    start = {
        "generalises": "Yes: it holds in a hospital that was not part of the study.",
        "does_not_generalise": "Not shown: a new hospital may fall on the wrong side of the threshold.",
        "provisional": f"Provisional, with {sites} of the {min_sites} sites that a conclusion needs.",
    }[state]
    low, high = map(_words, primary["prediction"])
    asked = f"{primary['direction'].replace('_', ' ')} {_words(primary['threshold'])}"
    found = f"{name}: {_words(primary['value'])} on average of {sites} sites;"
    return f"{start} {found} a new hospital is expected between {low} and {high} (asked: {asked})."


def _reason(primary: Mapping[str, Any], state: str, min_sites: int) -> str:
    if state == "not_estimable":
        return str(primary["reason"] or f"fewer than {MIN_SITES} sites have the primary endpoint")
    if state == "provisional":
        return f"{len(primary['sites'])} sites have the primary endpoint; the plan asks for {min_sites}"
    end = "low" if primary["direction"] == "at_least" else "high"
    said = "reaches" if state == "generalises" else "does not reach"
    return f"the {end} end of the prediction interval {said} the threshold that was agreed before"


def _worst(primary: Mapping[str, Any]) -> dict[str, Any] | None:
    sites = primary["sites"]
    if not sites:
        return None
    sign = 1 if primary["direction"] == "at_least" else -1
    site = min(sites, key=lambda name: sign * sites[name]["value"])
    return {"site": site, "endpoint": primary["id"], "value": sites[site]["value"]}


def _words(value: float | None) -> str:
    """Two decimals; three where two would say 0.00 or 1.00 of a value that is neither to three."""
    if value is None:
        return "unknown"
    away = min(abs(value), abs(abs(value) - 1))
    text = f"{value:.{3 if 0.0005 <= away < 0.005 else 2}f}"
    return text[1:] if text[0] == "-" and not text.strip("-0.") else text.replace("-", "\u2212")


def _baseline(primary: Mapping[str, Any]) -> str:
    """The best control without a trained dictionary, where it does as well."""
    sign = 1 if primary["direction"] == "at_least" else -1
    known = [item for item in primary["controls"] if item["name"] in BASELINES and item["value"] is not None]
    best = max(known, key=lambda item: sign * item["value"], default=None)
    if best is None or primary["value"] is None or sign * best["value"] < sign * primary["value"]:
        return ""
    return f"No gain shown: {best['name']} gives {_words(best['value'])}, the dictionary {_words(primary['value'])}."


def _limits(numbers: Numbers, primary: Mapping[str, Any]) -> Sequence[tuple[str, bool]]:
    """What can be held against the verdict, the strongest first, and whether it applies."""
    report, protocol, sites = numbers.report, numbers.protocol, len(primary["sites"])
    changes = len(report["protocol"]["deviations"])
    alarms = [site for site, entry in report["drift"]["sites"].items() if entry["alarms"]]
    units = sorted({site["unit"] for site in report["sites"].values() if site["unit"]})
    told = next((part["value"] for part in report["headlines"] if part["id"] == "site_readable"), None) or 0.0
    alike = _baseline(primary)
    recurs = report["concepts"]["gate_values"]["recurrence"]
    return (
        ("Simulated sites on one machine: nothing here is evidence about patients.", protocol["simulation"]),
        (
            f"{sites} sites could say: too few to tell how much hospitals differ.",
            sites < protocol["plan"]["min_sites"],
        ),
        (alike, bool(alike)),
        (
            f"Counted by {', '.join(units).replace('_', ' ')}, not by patient: numbers may be too certain.",
            units not in ([], ["patient"]),
        ),
        (f"{changes} deviation{'s' if changes != 1 else ''} from the protocol.", changes > 0),
        (f"Drift beyond the limit, compared with the other sites: {', '.join(alarms)}.", bool(alarms)),
        (f"A cell's site can be told from its concepts ({told:.2f}; .50 is chance).", told > READABLE),
        ("No site trained a dictionary of its own: recurrence was not assessed.", set(recurs) <= {-1}),
        ("No expert has judged these concepts.", report["experts"]["status"] != "estimated"),
        (
            "The dictionary saw unlabelled images of every site, also of the one that was left out.",
            protocol["kind"] == "train",
        ),
        ("Concepts were compared with kinds of cells, not with what happens to patients.", True),
        ("Numbers are exploratory: no size of the study was calculated beforehand.", True),
    )
