"""report.json: the verdict on the primary endpoint, in one sentence, the site that did worst, three limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..plan import PlanConfig
from .build_headlines import reaches
from .evidence import Json
from .meta import MIN_SITES
from .text import precise

BASELINES = (
    "raw embeddings", "colour histogram", "shuffled labels", "dictionary before training", "random dictionary",
    "random rows",
)  # fmt: skip
STATES = ("generalises", "does_not_generalise", "provisional", "not_estimable")


def verdict(report: Mapping[str, Any], plan: PlanConfig) -> Json:
    """The verdict from the report's headlines (primary first) and its other parts."""
    primary = report["headlines"][0]
    state = verdict_state(primary, plan.min_sites)
    return {
        "state": state,
        "sentence": sentence(primary, state, plan.min_sites),
        "reason": _reason(primary, state, plan.min_sites),
        "worst_site": worst_site(primary),
        "caveats": caveats(report, plan),
    }


def verdict_state(primary: Mapping[str, Any], min_sites: int) -> str:
    """The state that the primary endpoint gives: see docs/report.md.

    `generalises` needs `min_sites` sites and the worse end of the prediction interval at the threshold or beyond.
    """
    sites = primary["n"]["sites"]
    if primary["status"] != "estimated" or sites < MIN_SITES:
        return "not_estimable"
    if sites < min_sites:
        return "provisional"
    return "generalises" if reaches(primary, "prediction") else "does_not_generalise"


def worst_site(primary: Mapping[str, Any]) -> Json | None:
    """The site with the worst value of an endpoint; None when no site has one."""
    sites = primary["sites"]
    if not sites:
        return None
    pick = min if primary["direction"] == "at_least" else max
    site = pick(sites, key=lambda name: sites[name]["value"])
    return {"site": site, "endpoint": primary["id"], "value": sites[site]["value"]}


def sentence(primary: Mapping[str, Any], state: str, min_sites: int) -> str:
    """The verdict for somebody who reads nothing else."""
    name, sites = primary["name"], primary["n"]["sites"]
    if state == "not_estimable":
        return f"No answer: {name[0].lower()}{name[1:]} could not be estimated from {sites} sites."
    value, ends = _shown(primary["value"]), " and ".join(_shown(end) for end in primary["prediction"])
    asked = (
        f"{'at least' if primary['direction'] == 'at_least' else 'at most'} {_shown(primary['threshold'])}"
    )
    new = f"a new hospital is expected between {ends} (asked: {asked})."
    found = f"{name}: {value} on average of {sites} sites; {new}"
    return {
        "generalises": f"Yes: it holds in a hospital that was not part of the study. {found}",
        "does_not_generalise": f"Not shown: a new hospital may fall on the wrong side of the threshold. {found}",
        "provisional": f"Provisional, with {sites} of the {min_sites} sites that a conclusion needs. {found}",
    }[state]


def _reason(primary: Mapping[str, Any], state: str, min_sites: int) -> str:
    if state == "not_estimable":
        return str(primary["reason"] or f"fewer than {MIN_SITES} sites have the primary endpoint")
    if state == "provisional":
        return f"{primary['n']['sites']} sites have the primary endpoint; the plan asks for {min_sites}"
    end = "low" if primary["direction"] == "at_least" else "high"
    said = "reaches" if state == "generalises" else "does not reach"
    return f"the {end} end of the prediction interval {said} the threshold that was agreed before"


def _shown(value: float | None) -> str:
    return "unknown" if value is None else precise(value)


def caveats(report: Mapping[str, Any], plan: PlanConfig) -> list[str]:
    """The three strongest limits: the first that apply, in this order."""
    found = [text for text, applies in _caveats(report, plan) if applies]
    return found[:3]


def _caveats(report: Mapping[str, Any], plan: PlanConfig) -> Sequence[tuple[str, bool]]:
    primary, states = report["headlines"][0], report["concepts"]["gate_values"]
    sites, changes = primary["n"]["sites"], report["protocol"]["deviations"]
    alarms = [site for site, entry in report["drift"]["sites"].items() if entry["alarms"]]
    units = {site["unit"] for site in report["sites"].values() if site["unit"]}
    readable = next((part for part in report["headlines"] if part["id"] == "site_readable"), None)
    alike = baseline(primary)
    told = readable["value"] if readable and readable["value"] is not None else 0.0
    return (
        ("Simulated sites on one machine: nothing here is evidence about patients.",
         report["status"] == "simulation"),
        (f"{sites} sites could say: too few to tell how much hospitals differ.", sites < plan.min_sites),
        (alike, bool(alike)),
        (
            f"Counted by {', '.join(sorted(units)).replace('_', ' ')}, not by patient: numbers may be too certain.",
            bool(units) and units != {"patient"},
        ),
        (f"{len(changes)} deviation{'s' if len(changes) != 1 else ''} from the protocol.", bool(changes)),
        (f"Drift beyond the limit, compared with the other sites: {', '.join(alarms)}.", bool(alarms)),
        (f"A cell's site can be told from its concepts ({told:.2f}; .50 is chance).", told > 0.68),
        ("No site trained a dictionary of its own: recurrence was not assessed.", _never(states, "recurrence")),
        ("No expert has judged these concepts.", report["experts"]["status"] != "estimated"),
        ("The dictionary saw unlabelled images of every site, also of the one that was left out.",
         report["study"]["kind"] == "train"),
        ("Concepts were compared with kinds of cells, not with what happens to patients.", True),
        ("Numbers are exploratory: no size of the study was calculated beforehand.", True),
    )  # fmt: skip


def baseline(primary: Mapping[str, Any]) -> str:
    """The best control without a trained dictionary, where it does as well as the primary endpoint; else nothing."""
    sign = 1 if primary["direction"] == "at_least" else -1
    known = [item for item in primary["controls"] if item["name"] in BASELINES and item["value"] is not None]
    best = max(known, key=lambda item: sign * item["value"], default=None)
    if best is None or primary["value"] is None or sign * best["value"] < sign * primary["value"]:
        return ""
    return f"No gain shown: {best['name']} gives {_shown(best['value'])}, the dictionary {_shown(primary['value'])}."


def _never(gates: Mapping[str, list[int]], name: str) -> bool:
    return all(value == -1 for value in gates.get(name, []))
