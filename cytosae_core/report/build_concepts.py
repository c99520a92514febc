"""report.json: what concepts mean at each site, whether sites agree, and what chance would give."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from ..canonical import sha256_hex
from .agreement import (
    RECOVERED_MEAN,
    RECOVERED_WORST,
    Verdict,
    effect_correlation,
    rank_correlation,
    recovered,
    verdicts,
)
from .agreement import (
    replication as replicate,
)
from .evidence import Evidence, Json, mean_of, rounded
from .meta import meta_auroc


def agreement(e: Evidence) -> Json:
    """Do sites agree on how often concepts fire and on what they mean?"""
    firing, meaning = [], []
    for a, b in combinations(range(len(e.sites)), 2):
        names = {"a": e.sites[a], "b": e.sites[b]}
        rho, count = rank_correlation(e.rates[a], e.rates[b])
        firing.append({**names, "rho": rho, "n": count})
        meaning.append({**names, **_meaning(e, a, b)})
    return {
        "firing_rate": firing,
        "auroc": meaning,
        "reliability": {site: rounded(e.small[site]["reliability"][0]) for site in e.sites},
        "replication": replication(e),
        "holds_shuffled": _holds_by_chance(e),
    }


def _holds_by_chance(e: Evidence) -> int:
    """How many concepts would hold if labels were shuffled at every site."""
    if not e.sites:
        return 0
    shuffled = e.stack("final", "auroc_shuffled") - 0.5
    return sum(verdict.verdict == "holds" for verdict in verdicts(shuffled, e.errors))


def _meaning(e: Evidence, a: int, b: int) -> Json:
    shuffled = e.stack("final", "auroc_shuffled") - 0.5
    r, count = effect_correlation(e.effects[a], e.effects[b], e.errors[a], e.errors[b])
    null, _ = effect_correlation(e.effects[a], shuffled[b], e.errors[a], e.errors[b])
    controls: Json = {}
    for which in ("init", "random"):
        if which in e.result.describe:
            effects, errors = e.stack(which, "auroc") - 0.5, e.stack(which, "auroc_se")
            controls[which], _ = effect_correlation(effects[a], effects[b], errors[a], errors[b])
    return {"r": r, "null": null, "n": count, **controls}


def replication(e: Evidence) -> dict[str, Json]:
    """Per held-out site: concept-class pairs chosen on the others, and how many hold there."""
    shuffled = e.stack("final", "auroc_shuffled") - 0.5
    out = {}
    for index, site in enumerate(e.sites):
        pairs, held = replicate(e.effects, index)
        null_effects = e.effects.copy()
        null_effects[index] = shuffled[index]
        null_pairs, null_held = replicate(null_effects, index)
        out[site] = {
            "pairs": pairs,
            "replicated": held,
            "share": held / pairs if pairs else None,
            "null": null_held / null_pairs if null_pairs else None,
        }
    return out


def concepts(e: Evidence) -> list[Json]:
    """One entry per dictionary row, strongest verdicts first."""
    order = sorted(range(len(e.verdicts)), key=lambda row: _rank(e.verdicts[row]))
    return [_concept(e, row, e.verdicts[row]) for row in order]


def _rank(verdict: Verdict) -> tuple[int, float]:
    place = ("holds", "differs", "no class meaning", "too few patients").index(verdict.verdict)
    return place, -abs(verdict.mean - 0.5) if not np.isnan(verdict.mean) else 0.0


def _concept(e: Evidence, row: int, verdict: Verdict) -> Json:
    column = max(verdict.target, 0)
    auroc: Json = {}
    for index, site in enumerate(e.sites):
        value, se = e.effects[index, row, column], e.errors[index, row, column]
        known = not np.isnan(value) and verdict.target >= 0
        auroc[site] = {"value": round(float(value) + 0.5, 4), "se": rounded(se)} if known else None
    return {
        "id": f"c{row:04d}",
        "row": row,
        "digest": sha256_hex(np.ascontiguousarray(e.result.final[row]).tobytes())[:16],
        "target": e.study.targets[verdict.target] if verdict.target >= 0 else None,
        "auroc": auroc,
        "firing_rate": {site: rounded(e.rates[index][row]) for index, site in enumerate(e.sites)},
        "mean_auroc": rounded(verdict.mean),
        "sites_assessed": verdict.sites,
        "verdict": verdict.verdict,
        "meta": _meta(auroc),
    }


def _meta(auroc: Json) -> Json:
    """Meta-analysis of the values as they are shown."""
    shown = [entry for entry in auroc.values() if entry is not None]
    return meta_auroc([entry["value"] for entry in shown], [entry["se"] for entry in shown])


def planted(e: Evidence) -> list[Json] | None:
    """Ground truth of phantoms: is there a concept, chosen on other sites, that reads each attribute?"""
    if not e.study.statistics.attributes or len(e.sites) < 2:
        return None
    shuffled = e.stack("final", "auroc_shuffled") - 0.5
    first = e.stack("init", "auroc") - 0.5 if "init" in e.result.describe else None
    offset = len(e.study.statistics.classes)
    out = []
    for index, attribute in enumerate(e.study.statistics.attributes):
        held, row = recovered(e.effects, offset + index)
        null, _ = recovered(shuffled, offset + index)
        start = recovered(first, offset + index)[0] if first is not None else []
        known = [value for value in held if value is not None]
        out.append(
            {
                "attribute": attribute.name,
                "concept": f"c{row:04d}" if row >= 0 else None,
                "auroc": dict(zip(e.sites, held, strict=True)),
                "held_out_mean": mean_of(held),
                "null": mean_of(null),
                "init": mean_of(start),
                "recovered": bool(known)
                and float(np.mean(known)) >= RECOVERED_MEAN
                and min(known) >= RECOVERED_WORST,
            }
        )
    return out
