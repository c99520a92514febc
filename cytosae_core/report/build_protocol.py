"""report.json: the plan that was signed, what was done otherwise, the log's entries, experts, controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..canonical import canonical_json, parse_json
from .evidence import Evidence, Json, rounded
from .ratings import review

Report = Mapping[str, Any]


def protocol(e: Evidence) -> Json:
    """The plan as JSON, the protocol's digest, the open stage, and deviations."""
    plan: Json = dict(parse_json(canonical_json(asdict(e.study.plan))))
    return {
        **plan,
        "sha256": e.study.digest,
        "stage": e.result.stage or e.study.stage or None,
        "deviations": [
            {name: item.get(name, "") for name in ("at", "what", "why")} for item in e.result.deviations
        ],
    }


def integrity(e: Evidence) -> Json:
    """Entries of the coordinator's log for what arrived, and the log's head after the last of them."""
    leaves = {
        site: {kind: sorted(places) for kind, places in sorted(kinds.items())}
        for site, kinds in sorted(e.result.leaves.items())
    }
    if e.result.log is None or not leaves:
        return {"status": "not_logged", "log_size": None, "root": None, "leaves": {}}
    size, root = e.result.log
    return {"status": "logged", "log_size": size, "root": root, "leaves": leaves}


def experts(e: Evidence) -> Json:
    """How far experts agree on what concepts show, over all sites; votes of fewer than three at a site stay there."""
    part: Json = {
        "raters": None, "sites": sorted(e.raters), "ac1": {"value": None, "interval": None, "n": {"concepts": 0}},
        **dict.fromkeys(("kappa", "alpha", "artefact", "unnamed")),
    }  # fmt: skip
    if e.votes is None:
        return {"status": "not_assessed", "reason": "no expert review was held", **part}
    if not e.raters:
        return {"status": "suppressed", "reason": "no concept had three raters at one site", **part}
    found = review(e.votes, seed=e.study.seed)
    ends = [rounded(found.low), rounded(found.high)]
    part |= {name: rounded(getattr(found, name)) for name in ("kappa", "alpha", "artefact", "unnamed")}
    part |= {"raters": sum(e.raters.values())}
    part["ac1"] = {
        "value": rounded(found.ac1), "interval": None if None in ends else ends, "n": {"concepts": found.concepts},
    }  # fmt: skip
    return {"status": "estimated", "reason": None, **part}


CONTROL_TEXT = {
    "raw embeddings": "The same probe on the encoder's own features: what concepts are compared with.",
    "same site": "A probe of half of a site's own patients on the other half: the gap is what is lost between sites.",
    "shuffled labels": "The same computation with labels in random order: what chance gives.",
    "colour histogram": "A probe that sees colours only: what stain and camera alone can do.",
    "dictionary before training": "The same for the dictionary that the study started from.",
    "random dictionary": "The same for random rows.",
    "random rows": "The same for random rows.",
    "trained on all images in one place": "What pooling the images would give; only known in simulations.",
    "two halves of one site": "The same test on two halves of one site, where there is nothing to find.",
    "chance": "What guessing gives.",
}


def controls(report: Report) -> list[Json]:
    """Every negative control beside the number that it belongs to, then those that were not run."""
    found: list[Json] = []
    for part in report["headlines"]:
        for item in part["controls"]:
            found.append({**item, "beside": part["id"], "sentence": CONTROL_TEXT[item["name"]]})
    for name, place in (("PCA with as many numbers", "pca"), ("dictionaries of single sites", "local_only")):
        given = report["comparators"][place]
        found.append(
            {"name": name, "value": _mean(given, place), "beside": "fvu", "sentence": _sentence(place)}
        )
    return found


def _sentence(place: str) -> str:
    if place == "pca":
        return "FVU of principal components of the pooled tokens; only known in simulations."
    return "FVU of a dictionary of one site at the other sites; only known in simulations."


def _mean(given: Any, place: str) -> float | None:
    if not given:
        return None
    values = list(given.values())
    if place == "local_only":
        values = [value for site, row in given.items() for other, value in row.items() if other != site]
    known = [value for value in values if value is not None]
    return float(f"{sum(known) / len(known):.4g}") if known else None
