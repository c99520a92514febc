"""A new site against a finished study's prediction intervals: report.json and its page. numpy only.

Every endpoint of the new site is computed as for a site of the study, with all finished sites as "the others". A
prediction interval says where a further site's true value is expected; the site's own standard error comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..config import StudyConfig
from ..plan import ENDPOINTS, reaches
from .build_agreement import measure_agreement
from .concept_table import concept_table
from .endpoints import site_values
from .evidence import Evidence, Json, rounded
from .inputs import StudyResult
from .page import bullets, section, table, tag, words
from .replication import replication
from .style import CSS
from .text import escape

URN = "urn:cytosae:admission:v1"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
USE = "Research use; not a medical device."
MIN_SITES = 3
TWO_SIDED = 1.96
DIFFERENT = {
    "transfer": "The probe is made from all finished sites; in the study each was tested with one site fewer.",
    "transfer_gain": "Both probes are made from all finished sites; in the study from one site fewer.",
    "replication": "Meanings are those that are clear at all finished sites; in the study at all but one.",
    "agreement": "With the mean of all finished sites; in the study with the mean of the others.",
    "fvu": "The dictionary is the finished one.",
    "site_readable": "Against each finished site (of many sites: its neighbours), as in the study.",
}
TRAINED = (
    "It was trained with the finished sites' images and without the new site's: expect it to do worse here."
)


def admission_report(
    study: StudyConfig, result: StudyResult, finished: Mapping[str, Any], report_sha256: str
) -> Json:
    """The admission's report.json.

    Args:
        study: the admission's protocol; its last site is the new one.
        result: tables and counts of all sites, scores of the new one.
        finished: report.json of the finished study, and its SHA-256.
    """
    site, evidence = study.sites[-1], Evidence(study, result)
    found = measure_agreement(evidence)
    held = replication(evidence, concept_table(evidence))
    given = {part["id"]: part for part in finished["headlines"]}
    names = [name for name in given if name in ENDPOINTS]
    endpoints = []
    for name in names:
        values = site_values(evidence, name, found, held)
        own = {
            "value": values.value.get(site), "se": values.error.get(site), "units": values.units.get(site),
            "missing": values.missing.get(site), "withheld": site in values.withheld,
        }  # fmt: skip
        endpoints.append(endpoint(given[name], own, trained=finished["study"]["kind"] == "train"))
    report: Json = {
        "urn": URN,
        "title": f"Site {site} against the study {finished['study']['name']}",
        "status": "simulation" if study.simulation else "real",
        "site": site,
        "protocol_sha256": study.digest,
        "finished": {
            "study": finished["study"]["name"], "kind": finished["study"]["kind"],
            "protocol_sha256": finished["protocol"]["sha256"], "report_sha256": report_sha256,
            "sites": list(study.sites[:-1]),
        },
        "endpoints": endpoints,
        "canary_difference": rounded(result.canary_difference),
        "unit": result.facts.get(site, {}).get("unit"),
        "policy": result.facts.get(site, {}).get("policy"),
        "left": {kind: {"messages": n, "bytes": size} for kind, (n, size) in result.received.get(site, {}).items()},
        "withheld_values": sum(result.suppressed.get(site, {}).values()),
    }  # fmt: skip
    return {**report, "verdict": verdict(report), "limits": limits(report)}


def endpoint(headline: Mapping[str, Any], own: Mapping[str, Any], *, trained: bool) -> Json:
    """One endpoint of the new site beside the finished study's headline."""
    prediction, value, error = headline["prediction"], own["value"], own["se"]
    state, reason, within = "not_estimable", None, None
    if value is None:
        state, reason = "suppressed" if own["withheld"] else "not_assessed", own["missing"] or "no value"
    elif prediction is None:
        count = headline["n"]["sites"]
        reason = f"the finished study has no prediction interval: {count} of at least {MIN_SITES} sites have a value"
    else:
        low, high = prediction
        state = "inside" if low <= value <= high else "below" if value < low else "above"
        if error and not math.isnan(error):
            within = bool(low - TWO_SIDED * error <= value <= high + TWO_SIDED * error)
    threshold = headline["threshold"]
    compared = DIFFERENT[headline["id"]] + (f" {TRAINED}" if trained and headline["id"] == "fvu" else "")
    return {
        "id": headline["id"], "name": headline["name"], "unit": headline["unit"], "primary": headline["primary"],
        "status": state, "reason": reason, "value": rounded(value), "se": rounded(error), "units": own["units"],
        "prediction": prediction, "inside_with_error": within,
        "finished": {"value": headline["value"], "interval": headline["interval"], "n": headline["n"]},
        "threshold": threshold, "direction": headline["direction"],
        "reaches": None if threshold is None or value is None else reaches(headline["id"], value, threshold),
        "compared": compared,
    }  # fmt: skip


def verdict(report: Mapping[str, Any]) -> Json:
    """In one sentence: what the primary endpoint says, and how many endpoints agree."""
    primary = next((part for part in report["endpoints"] if part["primary"]), report["endpoints"][0])
    known = [part for part in report["endpoints"] if part["status"] in ("inside", "below", "above")]
    inside = sum(part["status"] == "inside" for part in known)
    name, site = primary["name"][0].lower() + primary["name"][1:], report["site"]
    if primary["status"] not in ("inside", "below", "above"):
        sentence = f"No answer for {site}: {name} {_why(primary)}."
    else:
        low, high = primary["prediction"]
        sentence = (
            f"{site} lies {primary['status']} the range where the finished study expects a new site ({name}: "
            f"{primary['value']:.2f}; expected {low:.2f} to {high:.2f})."
        )
        if primary["status"] != "inside":
            sentence += f" That is the {'good' if good_side(primary) else 'bad'} side."
        if primary["status"] != "inside" and primary["inside_with_error"]:
            sentence += (
                " Its own standard error (1.96 times) reaches into the range: too few patients to tell."
            )
    state = primary["status"] if primary["status"] == "inside" or primary in known else "not_estimable"
    return {
        "state": "outside" if state in ("below", "above") else state, "sentence": sentence,
        "inside": inside, "endpoints": len(known),
    }  # fmt: skip


def good_side(part: Mapping[str, Any]) -> bool:
    """Whether an endpoint that is outside its range is better than expected."""
    return bool((part["status"] == "above") == (part["direction"] == "at_least"))


def _why(part: Mapping[str, Any]) -> str:
    return f"cannot be compared ({part['reason']})"


def limits(report: Mapping[str, Any]) -> list[str]:
    """What this comparison cannot show."""
    count = len(report["finished"]["sites"])
    out = ["Simulated sites on one machine: nothing here is evidence about patients."]
    return (out if report["status"] == "simulation" else []) + [
        f"The ranges rest on {count} sites: with fewer than 10 they are wide, and a site inside may still differ.",
        "Inside the range means: like the study's sites. Whether that is good enough says the threshold.",
        "One look at one site. Several new sites belong into a study of their own, planned before.",
    ]


def render_admission(report: Mapping[str, Any]) -> str:
    """The page of one admission: a pure function of its report.json."""
    band = (
        words("div", "SIMULATED SITES", class_="band", role="note")
        if report["status"] == "simulation"
        else ""
    )
    head = tag(
        "head",
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        + words("title", report["title"])
        + f"<style>{CSS}</style>",
    )
    mast = tag(
        "div", words("b", "CytoSAE Federation") + words("span", report["protocol_sha256"]), class_="masthead"
    )
    lead = words("p", report["verdict"]["sentence"], class_="lead")
    count = (
        f"{report['verdict']['inside']} of {report['verdict']['endpoints']} endpoints lie inside their range."
    )
    top = tag("section", words("h1", report["title"]) + lead + words("p", count), class_="first")
    sheet = tag("main", mast + top + _endpoints(report) + _left(report) + _checked(report), class_="sheet")
    return f'<!DOCTYPE html>\n<html lang="en">{head}{tag("body", band + sheet)}</html>\n'


STATES = {"inside": "inside", "below": "BELOW the range", "above": "ABOVE the range"}


def _endpoints(report: Mapping[str, Any]) -> str:
    rows = []
    for part in report["endpoints"]:
        state = STATES.get(part["status"]) or f"{part['status'].replace('_', ' ')}: {part['reason']}"
        if part["status"] in ("below", "above") and part["inside_with_error"]:
            state += ", within its own error"
        count = part["finished"]["n"]["sites"]
        rows.append(
            [
                part["name"] + (" (primary)" if part["primary"] else ""),
                _number(part["value"]) + (f" (SE {_number(part['se'])})" if part["se"] is not None else ""),
                "unknown" if part["units"] is None else f"{part['units']:,}",
                " to ".join(map(_number, part["prediction"])) if part["prediction"] else "none",
                f"{_number(part['finished']['value'])} ({count} sites)", state, _threshold(part), part["compared"],
            ]
        )  # fmt: skip
    unit = (report["unit"] or "unit").replace("_", " ")
    header = [
        "Endpoint", report["site"], f"{unit}s behind it", "Expected at a new site", "Mean of the study",
        "Where it lies", "Threshold", "What is compared",
    ]  # fmt: skip
    intro = "A prediction interval says where the true value of a further site is expected, 19 times in 20."
    return section("endpoints", "Number by number", intro, table(header, rows))


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:.3f}"


def _threshold(part: Mapping[str, Any]) -> str:
    if part["threshold"] is None:
        return "none agreed"
    word = "at least" if part["direction"] == "at_least" else "at most"
    reached = {True: "reached", False: "not reached", None: "unknown"}[part["reaches"]]
    return f"{word} {part['threshold']:g}: {reached}"


def _left(report: Mapping[str, Any]) -> str:
    rows = [[kind, str(item["messages"]), f"{item['bytes']:,}"] for kind, item in report["left"].items()]
    note = words(
        "p", f"{report['withheld_values']:,} values were withheld by the site. Policy: {report['policy']}."
    )
    return section(
        "left", "What left the new site", "", table(["Step", "Messages", "Bytes"], rows, right=1), note
    )


def _checked(report: Mapping[str, Any]) -> str:
    finished = report["finished"]
    items = [
        f"Finished study: {finished['study']}, kind {finished['kind']}, sites {', '.join(finished['sites'])}.",
        f"Its protocol: {finished['protocol_sha256']}.",
        f"Its report: {finished['report_sha256']}, as the coordinator's log or the sites' replies give it.",
        f"Golden cells of the new site differ from the finished sites' by {report['canary_difference']} at most.",
    ]
    limits_part = section("limits", "Limits", "", bullets(report["limits"]))
    foot = tag("footer", f"{words('b', USE)} This page loads nothing from anywhere and runs no script.")
    return limits_part + section("checked", "What was checked", "", bullets(items)) + foot
