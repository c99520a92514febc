"""report.json from a study's result: every number from released values, every gap with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..canonical import sha256_hex
from ..config import StudyConfig
from .agreement import matched_cosine
from .build_abstention import abstention
from .build_acquisition import acquisition, drift, missing
from .build_agreement import agreement_part, measure_agreement
from .build_concepts import concepts, failures, planted
from .build_headlines import headlines
from .build_heterogeneity import heterogeneity
from .build_protocol import controls, experts, integrity, protocol
from .build_sites import egress_part, loso, site_part, site_predictability
from .build_transfer import calibration, matrix, subgroups
from .build_verdict import verdict
from .checklist import checklist
from .concept_table import concept_table
from .evidence import Evidence, Json, mean_of
from .inputs import Comparators, StudyResult, quality_dict, total_fvu
from .replication import replication
from .words import answer, findings, how_to_check, limits, not_assessed

URN = "urn:cytosae:report:v2"


def build_report(
    study: StudyConfig, result: StudyResult, comparators: Comparators | None = None, **facts: Any
) -> Mapping[str, Any]:
    """report.json as JSON values. `facts`: encoder_depth, canary_tolerance.

    Per-site values of a large study (`columns.is_large`) are written to `result.scratch`; see `server/study.py`.
    """
    return build(Evidence(study, result, comparators, **facts))


def build(e: Evidence, *, stability: Json | None = None) -> Json:
    """The whole report. `stability`: of a second federation that ran before, where it is not computed from `e`."""
    with ThreadPoolExecutor(1) as pool:  # both read the same tables; numpy lets threads run side by side
        pending = pool.submit(measure_agreement, e)
        table, agreed = concept_table(e), pending.result()
    held = replication(e, table)
    report: Json = {
        "urn": URN,
        "title": f"Cross-site concept report: {e.study.name}",
        "status": "simulation" if e.study.simulation else "real",
        "watermarks": watermarks(e),
        "question": e.study.question,
        "study": study_part(e),
        "protocol": protocol(e),
        "integrity": integrity(e),
        "encoder": encoder_part(e),
        "dictionary": dictionary_part(e),
        "sites": {site: site_part(e, site) for site in e.study.sites},
        "overall": overall(e),
        "rounds": rounds(e),
        "comparators": comparator_part(e),
        "agreement": agreement_part(e, agreed, held),
        "site_predictability": site_predictability(e),
        "stability": stability or second_seed(e),
        "loso": loso(e),
        "headlines": headlines(e, agreed, held),
        "matrix": matrix(e),
        "calibration": calibration(e),
        "abstention": abstention(e),
        "subgroups": subgroups(e),
        "acquisition": acquisition(e),
        "heterogeneity": heterogeneity(e, table),
        "drift": drift(e),
        "missing": missing(e),
        "experts": experts(e),
        "concepts": concepts(e, table),
        "planted": planted(e),
        "egress": egress_part(e),
    }
    return conclude(report, e)


def conclude(report: Json, e: Evidence) -> Json:
    """What is said of the numbers: made from the report's own values."""
    report["failures"] = failures(report["concepts"])
    report["controls"] = controls(report)
    report["checklist"] = checklist(report)
    report["verdict"] = verdict(report, e.study.plan)
    report["limits"] = limits(report)
    report["not_assessed"] = not_assessed(report)
    report["how_to_check"] = how_to_check(report)
    report["findings"] = findings(report)
    report["answer"] = answer(report)
    return report


def watermarks(e: Evidence) -> list[str]:
    """What must stand on every page."""
    marks = ["SIMULATED SITES"] if e.study.simulation else []
    if any(facts.get("policy") == "public-data" for facts in e.result.facts.values()):
        marks.append("DISCLOSURE CONTROL OFF")
    return marks


def study_part(e: Evidence) -> Json:
    """What was agreed before the first number."""
    training = e.study.training
    return {
        "name": e.study.name,
        "kind": e.study.kind,
        "profile": e.study.profile,
        "seed": e.study.seed,
        "simulation": e.study.simulation,
        "protocol_sha256": e.study.digest,
        "rounds": training.rounds if e.study.kind == "train" and e.study.profile != "dp" else 0,
        "local_steps": training.local_steps,
        "aggregation": training.aggregation,
        "min_units": e.study.min_units,
        "targets": list(e.study.targets),
    }


def encoder_part(e: Evidence) -> Json:
    """Encoder and the golden-cell check."""
    encoder = e.study.encoder
    digests = sorted({facts.get("encoder_digest", "") for facts in e.result.facts.values()})
    return {
        "name": encoder.name,
        "layer": encoder.layer,
        "depth": e.depth,
        "steps": list(encoder.steps),
        "digest": digests[0] if len(digests) == 1 else None,
        "canary_max_difference": e.result.canary_difference,
        "canary_tolerance": e.tolerance,
    }


def dictionary_part(e: Evidence) -> Json:
    """The final dictionary."""
    config = e.study.dictionary
    return {
        "model": config.model,
        "n": config.n,
        "k": config.k,
        "d": e.study.encoder.d,
        "init": config.init,
        "init_sha256": config.digest,
        "sha256": sha256_hex(np.ascontiguousarray(e.result.final).tobytes()),
    }


def overall(e: Evidence) -> Json:
    """Means over sites; every site counts the same."""
    totals = {
        which: mean_of([e.quality(which, site).get("fvu") for site in e.study.sites])
        for which in ("final", "init", "random")
    }
    pooled = e.comparators.pooled_total if e.comparators else None
    federated = totals["final"]
    final = [e.quality("final", site) for site in e.sites]
    return {
        "federated_fvu": federated,
        "pooled_fvu": pooled,
        "ratio": federated / pooled if federated is not None and pooled else None,
        "fvu_init": totals["init"],
        "fvu_random": totals["random"],
        "l0": mean_of([quality["l0"] for quality in final]),
        "dead_fraction": mean_of([quality["dead_fraction"] for quality in final]),
    }


def rounds(e: Evidence) -> list[Json]:
    """Quality of the dictionary that each round started from."""
    return [
        {
            "round": record.round,
            "fvu": total_fvu(record.quality),
            "sites": {site: quality_dict(values)["fvu"] for site, values in record.quality.items()},
            "bytes": record.bytes,
            "faults": record.faults,
        }
        for record in e.result.rounds
    ]


def comparator_part(e: Evidence) -> Json:
    """FVU per site of everything the federated dictionary is compared with."""
    given = e.comparators or Comparators()
    return {
        "pooled": given.pooled or None,
        "local_only": given.local_only or None,
        "pca": given.pca or None,
        "init": {site: e.quality("init", site).get("fvu") for site in e.sites},
        "random": {site: e.quality("random", site).get("fvu") for site in e.sites},
    }


def second_seed(e: Evidence) -> Json | None:
    """Agreement with a second federation that differs in its seed, beside the value before training."""
    if e.comparators is None or e.comparators.other_seed is None:
        return None
    other, other_first = e.comparators.other_seed
    end = matched_cosine(e.result.final, other)
    start = matched_cosine(e.result.first, other_first)
    excess = (end.mean() - start.mean()) / (1 - start.mean()) if start.mean() < 1 else None
    return {
        "seeds": [e.study.seed, e.comparators.other_seed_number],
        "mcc": float(end.mean()),
        "mcc_init": float(start.mean()),
        "excess": None if excess is None else float(excess),
        "share_above_0.7": float((end > 0.7).mean()),
        "share_above_0.7_init": float((start > 0.7).mean()),
    }
