"""The report's sentences, made from its numbers: findings, answer, limits, what was not assessed."""

from __future__ import annotations

from typing import Any

import numpy as np

from .rows import concept_count, state_counts, verdict_counts

Json = dict[str, Any]
# Controls as build_headlines.py names them.
SHUFFLED, BEFORE, RANDOM = "shuffled labels", "dictionary before training", "random dictionary"


NOBODY = (
    "No concept could be judged across sites: no class is shared by three sites with enough units. Agreement between "
    "two sites is shown below."
)


def findings(report: Json) -> list[str]:
    """Three main findings: reconstruction, meaning across sites, what left."""
    return [_reconstruction(report), _meaning(report), _departure(report)]


def _number(value: float | None, digits: int = 3) -> str:
    return "not assessed" if value is None else f"{value:.{digits}f}"


def _reconstruction(report: Json) -> str:
    overall = report["overall"]
    if overall["federated_fvu"] is None:
        return "No site released how much of the variance the dictionary leaves unexplained (FVU)."
    which = "shared" if report["study"]["kind"] == "train" else "frozen"
    text = (
        f"The {which} dictionary leaves {_number(overall['federated_fvu'])} of the variance unexplained (FVU)"
    )
    if overall["ratio"] is not None:
        text += (
            f", {overall['ratio']:.3f} times the {overall['pooled_fvu']:.3f} of a dictionary trained on all "
            "images in one place"
        )
    if overall["fvu_init"] is not None:
        text += f"; before training it was {overall['fvu_init']:.3f}"
    return text + "."


def _meaning(report: Json) -> str:
    counts, total = verdict_counts(report), concept_count(report)
    if counts.get("too few patients", 0) == total:
        return NOBODY
    share = _replicated(report)
    text = (
        f"{counts['holds']:,} of {total:,} concepts mean the same class or feature at every site that could say "
        f"({report['agreement']['holds_shuffled']} with shuffled labels); "
        f"{counts['differs']:,} speak clearly at some site and not at another"
    )
    if share is not None:
        known = [
            f"{value:.0%} {said}"
            for name, said in ((SHUFFLED, "with shuffled labels"), (RANDOM, "for a random dictionary"))
            if (value := _control(report, name)) is not None
        ]
        control = f" ({', '.join(known)})" if known else ""
        text += (
            f". Meanings chosen at the other sites held at the site left out in {share:.0%} of cases{control}"
        )
    return f"{text}. {_climbed(report)}"


def _replicated(report: Json) -> float | None:
    """Mean share of meanings that held at the site left out."""
    shares = [entry["share"] for entry in report["agreement"]["replication"].values()]
    known = [share for share in shares if share is not None]
    return float(np.mean(known)) if known else None


def _control(report: Json, name: str) -> float | None:
    """What stands beside the share of meanings that held."""
    found = [part["controls"] for part in report["headlines"] if part["id"] == "replication"]
    return next((item["value"] for part in found for item in part if item["name"] == name), None)


def _climbed(report: Json) -> str:
    """How far concepts came, in states."""
    states = state_counts(report)
    best = sum(states.get(name, 0) for name in ("generalising", "validated"))
    if best:
        return f"{best} passed every check that was made for a hospital not in the study."
    if states.get("provisional"):
        return f"{states['provisional']} agree everywhere, which with so few sites is provisional."
    return "None passed every check that was made for a hospital not in the study."


def _departure(report: Json) -> str:
    sizes = [entry["bytes"] for entry in report["egress"]["sites"].values()]
    if not sizes:
        return "Nothing left any site."
    what = "dictionary rows and statistics" if report["study"]["kind"] == "train" else "statistics"
    if report["study"]["profile"] == "dp":
        what = "sums over patients with noise"
    return (
        f"No raw image left a site. Each site sent {np.mean(sizes) / 1e6:.1f} MB on average, all of it {what} of the "
        "kinds listed below."
    )


def answer(report: Json) -> str:
    """One paragraph that answers the study's question, with its uncertainty: the verdict, then what it rests on."""
    reported = [name for name, site in report["sites"].items() if site["status"] == "reported"]
    if len(reported) < 3:
        return f"Not estimable: {len(reported)} sites reported, at least 3 are needed."
    parts = [report["verdict"]["sentence"], _held(report, len(reported)), _classifier(report)]
    if report["status"] == "simulation":
        parts.append("This was a simulation on one machine: nothing here is evidence about patients.")
    return " ".join(part for part in parts if part)


def _held(report: Json, reported: int) -> str:
    counts, total = verdict_counts(report), concept_count(report)
    if counts.get("too few patients", 0) == total:
        return NOBODY
    shuffled = report["agreement"]["holds_shuffled"]
    return (
        f"{reported} sites reported. {counts['holds']:,} of {total:,} concepts held at every site that could say "
        f"({shuffled:,} with shuffled labels). {_climbed(report)}"
    )


def _classifier(report: Json) -> str:
    views = report["loso"]["views"]
    codes, raw = (_mean_view(views.get(name, {})) for name in ("standardised codes", "raw embeddings"))
    if codes is None or raw is None:
        return ""
    chance = _number(report["loso"]["chance"], 2)
    sites = sum(value is not None for value in views["standardised codes"].values())
    return (
        f"A classifier built from the other sites' concept averages named the cells of a site it had never seen with "
        f"balanced accuracy {codes:.2f}, plain mean of {sites} sites (raw embeddings {raw:.2f}, chance {chance})."
    )


def _mean_view(view: dict[str, float | None]) -> float | None:
    known = [value for value in view.values() if value is not None]
    return float(np.mean(known)) if known else None


def _agreement(report: Json, name: str) -> float | None:
    known = [pair[name] for pair in report["agreement"]["auroc"] if pair.get(name) is not None]
    return float(np.mean(known)) if known else None


def limits(report: Json) -> list[str]:
    """What this report does not show."""
    units = sorted({site["unit"] for site in report["sites"].values() if site["unit"]})
    lines = [
        f"The unit of counting is: {', '.join(units) or 'unknown'}. Cells are never counted as independent.",
        *_seen(report),
        "Codes are not better class features than raw embeddings; both are shown.",
        "FVU says how much of the features is reproduced, not whether a concept makes medical sense"
        + ("." if report["experts"]["status"] == "estimated" else "; no expert has judged these concepts."),
    ]
    trained, control = _agreement(report, "r"), _agreement(report, "random")
    if trained is not None and control is not None and trained <= control:
        lines.append(
            f"Two sites agree on what concepts mean no more ({trained:.2f}) than for a random dictionary "
            f"({control:.2f}): training made concepts sharper, not more alike between sites."
        )
    held, as_good = _replicated(report), []
    for name, said in ((RANDOM, "a random dictionary"), (BEFORE, "the dictionary before training")):
        control = _control(report, name)
        if held is not None and control is not None and held <= control:
            as_good.append(f"{said} ({control:.0%})")
    if held is not None and as_good:
        lines.append(
            f"Meanings hold at a site left out no more often ({held:.0%}) than those of {' or '.join(as_good)}: "
            "that they hold is not owed to the dictionary's training."
        )
    if report["study"]["profile"] == "masked":
        lines.append(
            "Protection of dictionary updates is heuristic (masked); no epsilon applies. Membership tests by "
            "somebody who holds the features of a cell remain possible."
        )
    if report["study"]["profile"] == "dp":
        lines.append(
            "Standard errors of statistics include the privacy noise. Numbers that it drowns are not told, so small "
            "classes and rare concepts are missing by construction."
        )
    if report["dictionary"]["init"] == "public-kmeans":
        lines.append(
            "Agreement between seeds is mostly that of the shared public start; see the value before training."
        )
    elif report["dictionary"]["init"] == "random":
        lines.append("Rows started at random: on real cells this costs 10-14 % FVU against a public start.")
    if any(site["relay_isolation"] == "none" for site in report["sites"].values()):
        lines.append("Relay isolation: none (agent and relay shared one user; for development only).")
    return lines


def _seen(report: Json) -> list[str]:
    """What the dictionary and the choice of concepts had seen of the sites."""
    found = []
    if report["study"]["profile"] == "dp":
        return ["The public dictionary saw no site. Concepts were chosen before this study."]
    if report["study"]["kind"] == "train":
        found.append(
            "The dictionary saw unlabelled images of every site, the left-out one included; only labels were left "
            "out."
        )
    else:
        found.append(
            "On which images the frozen dictionary was trained is not known here. If cells of these sites were among "
            "them, the numbers are too good."
        )
    return [
        *found,
        "Concepts were not registered in advance: their q-values are corrected for all concepts and classes, their "
        "intervals are not.",
    ]


def not_assessed(report: Json) -> list[Json]:
    """Every part without a number, with its reason."""
    gaps: list[Json] = []
    if report["overall"]["pooled_fvu"] is None:
        gaps.append({"item": "pooled training", "reason": "only possible where one machine holds all images"})
    if report["stability"] is None:
        gaps.append({"item": "stability between seeds", "reason": "no second federation was run"})
    if report["site_predictability"]["reason"]:
        gaps.append({"item": "site-predictability", "reason": report["site_predictability"]["reason"]})
    if report["planted"] is None:
        gaps.append({"item": "recovery of planted concepts", "reason": "only phantoms have known concepts"})
    for name, site in report["sites"].items():
        if site["status"] != "reported":
            gaps.append({"item": f"site {name}", "reason": site["status"]})
    gaps += [
        {"item": part["name"], "reason": part["reason"]}
        for part in report["headlines"]
        if part["status"] != "estimated"
    ]
    gaps += [
        {"item": f"subgroup {part['name']}", "reason": part["reason"]}
        for part in report["subgroups"]
        if part["status"] != "estimated"
    ]
    for item, part in (
        ("calibration", report["calibration"]),
        ("accuracy when it may abstain", report["abstention"]),
        ("what heterogeneity goes with", report["heterogeneity"]),
        ("expert agreement", report["experts"]),
    ):
        if part["reason"]:
            gaps.append({"item": item, "reason": part["reason"]})
    if not report["subgroups"]:
        gaps.append({"item": "subgroups", "reason": "the protocol names none"})
    gaps += [
        {"item": f"check of concepts: {name}", "reason": GATE_REASONS[name]} for name in _idle_gates(report)
    ]
    return gaps


GATE_REASONS = {
    "support": "no site could say",
    "recurrence": "sites trained no dictionaries of their own (statistics.recurrence_steps)",
    "naming": "no expert review was held",
    "consistency": "fewer than 3 sites could say",
    "prediction": "fewer than 3 sites could say",
    "shortcut": "the hospital could be ruled out for no concept: too few sites, or no class means of halves",
    "confound": "no site released light, focus and cell size",
    "ablation": "no site released what taking a concept away changes",
    "held_out": "no meaning was clear at all sites but one",
}


def _idle_gates(report: Json) -> list[str]:
    """Checks that were made for no concept."""
    return [
        name for name, values in report["concepts"]["gate_values"].items() if all(v == -1 for v in values)
    ]


def how_to_check(report: Json) -> list[str]:
    """What an auditor can do with the run folder."""
    return [
        f"The protocol's SHA-256 is {report['study']['protocol_sha256']}; it is in every signed message.",
        "`cytosae study bundle` puts everything that this report rests on into one folder: logs, signed replies, "
        "policies, keys.",
        "`cytosae audit verify BUNDLE --keys KEYS.json` checks every signature, log and receipt offline and computes "
        "the numbers again; `cytosae audit replay BUNDLE` redoes the rounds and draws this page again.",
    ]
