"""report.json from a study's result: every number from released values, every gap with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import egress
from ..canonical import sha256_hex
from ..config import COUNTS, PROBES, VIEWS, StudyConfig
from ..policy import SitePolicy, named_policy
from .agreement import (
    RECOVERED_MEAN,
    RECOVERED_WORST,
    Verdict,
    effect_correlation,
    matched_cosine,
    rank_correlation,
    recovered,
    replication,
    verdicts,
)
from .inputs import Comparators, StudyResult, quality_dict, total_fvu
from .words import answer, findings, how_to_check, limits, not_assessed

Array = NDArray[Any]
Json = dict[str, Any]
URN = "urn:cytosae:report:v1"


class ReportBuilder:
    """Collects the parts of report.json. All methods are pure functions of what the builder was given."""

    def __init__(
        self,
        study: StudyConfig,
        result: StudyResult,
        comparators: Comparators | None = None,
        *,
        encoder_depth: int = 12,
        canary_tolerance: float = 0.0,
    ) -> None:
        self.study, self.result, self.comparators = study, result, comparators
        self.depth, self.tolerance = encoder_depth, canary_tolerance
        self.final = result.describe.get("final", {})
        self.sites = [site for site in study.sites if site in self.final]
        self.effects = self._stack("final", "auroc") - 0.5
        self.errors = self._stack("final", "auroc_se")
        self.rates = self._column("firing_rate", study.dictionary.n)
        self.small = {site: self._small(site) for site in self.sites}
        self.verdicts = verdicts(self.effects, self.errors) if len(self.sites) else []

    def _stack(self, which: str, name: str) -> Array:
        tables = self.result.describe.get(which, {})
        shape = (self.study.dictionary.n, len(self.study.targets))
        parts = [tables[site][name] if site in tables else np.full(shape, np.nan) for site in self.sites]
        return np.stack(parts).astype(np.float64) if parts else np.zeros((0, *shape))

    def _column(self, name: str, size: int) -> Array:
        parts = [self.final[site][name] for site in self.sites]
        return np.stack(parts) if parts else np.zeros((0, size))

    def _small(self, site: str) -> dict[str, Array]:
        table = self.final[site]
        return {name: table[name] for name in ("reliability", "same_site_null") if name in table}

    def build(self) -> Json:
        """The whole report."""
        report: Json = {
            "urn": URN,
            "title": f"Cross-site concept report: {self.study.name}",
            "watermarks": self.watermarks(),
            "question": self.study.question,
            "study": self.study_part(),
            "encoder": self.encoder_part(),
            "dictionary": self.dictionary_part(),
            "sites": {site: self.site_part(site) for site in self.study.sites},
            "overall": self.overall(),
            "rounds": self.rounds(),
            "comparators": self.comparator_part(),
            "agreement": self.agreement(),
            "site_predictability": self.site_predictability(),
            "stability": self.stability(),
            "loso": self.loso(),
            "concepts": self.concepts(),
            "planted": self.planted(),
            "egress": self.egress_part(),
        }
        report["limits"] = limits(report)
        report["not_assessed"] = not_assessed(report)
        report["how_to_check"] = how_to_check(report)
        report["findings"] = findings(report)
        report["answer"] = answer(report)
        return report

    def watermarks(self) -> list[str]:
        """What must stand on every page."""
        marks = ["SIMULATED SITES"] if self.study.simulation else []
        if any(facts.get("policy") == "public-data" for facts in self.result.facts.values()):
            marks.append("DISCLOSURE CONTROL OFF")
        return marks

    def study_part(self) -> Json:
        """What was agreed before the first number."""
        training = self.study.training
        return {
            "name": self.study.name,
            "kind": self.study.kind,
            "profile": self.study.profile,
            "seed": self.study.seed,
            "simulation": self.study.simulation,
            "protocol_sha256": self.study.digest,
            "rounds": training.rounds if self.study.kind == "train" else 0,
            "local_steps": training.local_steps,
            "aggregation": training.aggregation,
            "min_units": self.study.min_units,
            "targets": list(self.study.targets),
        }

    def encoder_part(self) -> Json:
        """Encoder and the golden-cell check."""
        encoder = self.study.encoder
        digests = sorted({facts.get("encoder_digest", "") for facts in self.result.facts.values()})
        return {
            "name": encoder.name,
            "layer": encoder.layer,
            "depth": self.depth,
            "steps": list(encoder.steps),
            "digest": digests[0] if len(digests) == 1 else None,
            "canary_max_difference": self.result.canary_difference,
            "canary_tolerance": self.tolerance,
        }

    def dictionary_part(self) -> Json:
        """The final dictionary."""
        config = self.study.dictionary
        return {
            "model": config.model,
            "n": config.n,
            "k": config.k,
            "d": self.study.encoder.d,
            "init": config.init,
            "init_sha256": config.digest,
            "sha256": sha256_hex(np.ascontiguousarray(self.result.final).tobytes()),
        }

    def site_part(self, site: str) -> Json:
        """One site: who, how much, how well, what left."""
        counts = [None if np.isnan(v) else int(v) for v in self.result.counts.get(site, [])]
        facts, quality = self.result.facts.get(site, {}), self._quality("final", site)
        received = self.result.received.get(site, {})
        fault = next(
            (f"failed: {code}" for name, _, code in self.result.faults if name == site), "not reached"
        )
        names = list(COUNTS) + [f"class {name}" for name in self.study.statistics.classes]
        known = dict(zip(names, counts, strict=False))
        return {
            **{name: known.get(name) for name in COUNTS},
            "unit": facts.get("unit"),
            "classes": {name: known.get(f"class {name}") for name in self.study.statistics.classes},
            **{name: quality.get(name) for name in ("fvu", "fvu_own_mean", "l0", "dead_fraction")},
            "fvu_init": self._quality("init", site).get("fvu"),
            "fvu_random": self._quality("random", site).get("fvu"),
            "bytes_out": sum(size for _, size in received.values()),
            "messages_out": sum(count for count, _ in received.values()),
            "policy": facts.get("policy"),
            "relay_isolation": facts.get("relay_isolation"),
            "status": "reported" if site in self.result.scores else fault,
            "suppressed": self.result.suppressed.get(site, {}),
            "suppressed_rows": self.result.suppressed.get(site, {}).get("delta"),
        }

    def _quality(self, which: str, site: str) -> dict[str, float | None]:
        tables = self.result.describe.get(which, {})
        return quality_dict(tables[site]["quality"]) if site in tables else {}

    def overall(self) -> Json:
        """Means over sites; every site counts the same."""
        totals = {
            which: total_fvu(
                {site: table["quality"] for site, table in self.result.describe.get(which, {}).items()}
            )
            for which in ("final", "init", "random")
        }
        pooled = self.comparators.pooled_total if self.comparators else None
        federated = totals["final"]
        final = [self._quality("final", site) for site in self.sites]
        return {
            "federated_fvu": federated,
            "pooled_fvu": pooled,
            "ratio": federated / pooled if federated is not None and pooled else None,
            "fvu_init": totals["init"],
            "fvu_random": totals["random"],
            "l0": _mean([quality["l0"] for quality in final]),
            "dead_fraction": _mean([quality["dead_fraction"] for quality in final]),
        }

    def rounds(self) -> list[Json]:
        """Quality of the dictionary that each round started from."""
        return [
            {
                "round": record.round,
                "fvu": total_fvu(record.quality),
                "sites": {site: quality_dict(values)["fvu"] for site, values in record.quality.items()},
                "bytes": record.bytes,
                "faults": record.faults,
            }
            for record in self.result.rounds
        ]

    def comparator_part(self) -> Json:
        """FVU per site of everything the federated dictionary is compared with."""
        given = self.comparators or Comparators()
        return {
            "pooled": given.pooled or None,
            "local_only": given.local_only or None,
            "pca": given.pca or None,
            "init": {site: self._quality("init", site).get("fvu") for site in self.sites},
            "random": {site: self._quality("random", site).get("fvu") for site in self.sites},
        }

    def agreement(self) -> Json:
        """Do sites agree on how often concepts fire and on what they mean?"""
        firing, meaning = [], []
        for a, b in combinations(range(len(self.sites)), 2):
            names = {"a": self.sites[a], "b": self.sites[b]}
            rho, count = rank_correlation(self.rates[a], self.rates[b])
            firing.append({**names, "rho": rho, "n": count})
            meaning.append({**names, **self._meaning(a, b)})
        return {
            "firing_rate": firing,
            "auroc": meaning,
            "reliability": {site: _float(self.small[site]["reliability"][0]) for site in self.sites},
            "replication": self.replication(),
            "holds_shuffled": self._holds_by_chance(),
        }

    def _holds_by_chance(self) -> int:
        """How many concepts would hold if labels were shuffled at every site."""
        if not self.sites:
            return 0
        shuffled = self._stack("final", "auroc_shuffled") - 0.5
        return sum(verdict.verdict == "holds" for verdict in verdicts(shuffled, self.errors))

    def _meaning(self, a: int, b: int) -> Json:
        shuffled = self._stack("final", "auroc_shuffled") - 0.5
        r, count = effect_correlation(self.effects[a], self.effects[b], self.errors[a], self.errors[b])
        null, _ = effect_correlation(self.effects[a], shuffled[b], self.errors[a], self.errors[b])
        controls: Json = {}
        for which in ("init", "random"):
            if which in self.result.describe:
                effects, errors = self._stack(which, "auroc") - 0.5, self._stack(which, "auroc_se")
                controls[which], _ = effect_correlation(effects[a], effects[b], errors[a], errors[b])
        return {"r": r, "null": null, "n": count, **controls}

    def replication(self) -> dict[str, Json]:
        """Per held-out site: concept-class pairs chosen on the others, and how many hold there."""
        shuffled = self._stack("final", "auroc_shuffled") - 0.5
        out = {}
        for index, site in enumerate(self.sites):
            pairs, held = replication(self.effects, index)
            null_effects = self.effects.copy()
            null_effects[index] = shuffled[index]
            null_pairs, null_held = replication(null_effects, index)
            out[site] = {
                "pairs": pairs,
                "replicated": held,
                "share": held / pairs if pairs else None,
                "null": null_held / null_pairs if null_pairs else None,
            }
        return out

    def site_predictability(self) -> Json:
        """Can two sites be told apart within a class? 1/2 is chance, beside two halves of one site."""
        scores, pairs = self.result.scores, []
        for a, b in combinations([site for site in self.sites if site in self.result.scores], 2):
            there = scores[a]["site_recall"][:, self.study.sites.index(b)]
            back = scores[b]["site_recall"][:, self.study.sites.index(a)]
            pairs.append({"a": a, "b": b, **_named(VIEWS, (there + back) / 2)})
        nulls = {
            site: _named(VIEWS, self.small[site]["same_site_null"])
            for site in self.sites
            if "same_site_null" in self.small[site]
        }
        known = any(pair[view] is not None for pair in pairs for view in VIEWS)
        reason = (
            None
            if known
            else f"fewer than {self.study.min_units} units per class and half, or no shared class"
        )
        return {"chance": 0.5, "pairs": pairs, "same_site_null": nulls, "reason": reason}

    def stability(self) -> Json | None:
        """Agreement with a second federation that differs in its seed, beside the value before training."""
        if self.comparators is None or self.comparators.other_seed is None:
            return None
        other, other_first = self.comparators.other_seed
        end = matched_cosine(self.result.final, other)
        start = matched_cosine(self.result.first, other_first)
        excess = (end.mean() - start.mean()) / (1 - start.mean()) if start.mean() < 1 else None
        return {
            "seeds": [self.study.seed, self.comparators.other_seed_number],
            "mcc": float(end.mean()),
            "mcc_init": float(start.mean()),
            "excess": None if excess is None else float(excess),
            "share_above_0.7": float((end > 0.7).mean()),
            "share_above_0.7_init": float((start > 0.7).mean()),
        }

    def loso(self) -> Json:
        """Probes fitted on the other sites' class moments, scored at each site."""
        values = {site: tables["balanced_accuracy"] for site, tables in self.result.scores.items()}
        views = {
            name: {site: _float(value[index]) for site, value in values.items()}
            for index, name in enumerate(PROBES)
        }
        classes = list(self.study.statistics.classes)
        return {"chance": self._chance(), "classes": classes, "views": views}

    def _chance(self) -> float | None:
        """1 / number of classes shared with the other sites, averaged over the sites that were scored."""
        known = {
            site: np.nan_to_num(self.result.counts[site][len(COUNTS) :]) > 0 for site in self.result.scores
        }
        shares = []
        for site, own in known.items():
            teachers = [other for name, other in known.items() if name != site and other.sum() > 1]
            shared = int((own & np.any(teachers, axis=0)).sum()) if teachers else 0
            if shared > 1:
                shares.append(1 / shared)
        return _mean(shares)

    def concepts(self) -> list[Json]:
        """One entry per dictionary row, strongest verdicts first."""
        order = sorted(range(len(self.verdicts)), key=lambda row: self._rank(self.verdicts[row]))
        return [self._concept(row, self.verdicts[row]) for row in order]

    @staticmethod
    def _rank(verdict: Verdict) -> tuple[int, float]:
        place = ("holds", "differs", "no class meaning", "too few patients").index(verdict.verdict)
        return place, -abs(verdict.mean - 0.5) if not np.isnan(verdict.mean) else 0.0

    def _concept(self, row: int, verdict: Verdict) -> Json:
        column = max(verdict.target, 0)
        auroc: Json = {}
        for index, site in enumerate(self.sites):
            value, se = self.effects[index, row, column], self.errors[index, row, column]
            known = not np.isnan(value) and verdict.target >= 0
            auroc[site] = {"value": round(float(value) + 0.5, 4), "se": _float(se)} if known else None
        return {
            "id": f"c{row:04d}",
            "row": row,
            "digest": sha256_hex(np.ascontiguousarray(self.result.final[row]).tobytes())[:16],
            "target": self.study.targets[verdict.target] if verdict.target >= 0 else None,
            "auroc": auroc,
            "firing_rate": {site: _float(self.rates[index][row]) for index, site in enumerate(self.sites)},
            "mean_auroc": _float(verdict.mean),
            "sites_assessed": verdict.sites,
            "verdict": verdict.verdict,
        }

    def planted(self) -> list[Json] | None:
        """Ground truth of phantoms: is there a concept, chosen on other sites, that reads each attribute?"""
        if not self.study.statistics.attributes or len(self.sites) < 2:
            return None
        shuffled = self._stack("final", "auroc_shuffled") - 0.5
        first = self._stack("init", "auroc") - 0.5 if "init" in self.result.describe else None
        offset = len(self.study.statistics.classes)
        out = []
        for index, attribute in enumerate(self.study.statistics.attributes):
            held, row = recovered(self.effects, offset + index)
            null, _ = recovered(shuffled, offset + index)
            start = recovered(first, offset + index)[0] if first is not None else []
            known = [value for value in held if value is not None]
            out.append(
                {
                    "attribute": attribute.name,
                    "concept": f"c{row:04d}" if row >= 0 else None,
                    "auroc": dict(zip(self.sites, held, strict=True)),
                    "held_out_mean": _mean(held),
                    "null": _mean(null),
                    "init": _mean(start),
                    "recovered": bool(known)
                    and float(np.mean(known)) >= RECOVERED_MEAN
                    and min(known) >= RECOVERED_WORST,
                }
            )
        return out

    def egress_part(self) -> Json:
        """What left, in bytes and by kind, and the rules it left under."""
        policy = self._policy()
        return {
            "profile": self.study.profile,
            "rules": rules_in_words(policy),
            "sites": {
                site: {
                    "bytes": sum(size for _, size in kinds.values()),
                    "messages": sum(count for count, _ in kinds.values()),
                    "by_kind": {kind: {"count": c, "bytes": b} for kind, (c, b) in kinds.items()},
                }
                for site, kinds in sorted(self.result.received.items())
            },
            "fields": egress.describe(policy),
            "never": list(egress.NEVER),
        }

    def _policy(self) -> SitePolicy:
        names = sorted({facts.get("policy", "masked") for facts in self.result.facts.values()})
        return named_policy(names[0] if names else self.study.profile)


def rules_in_words(policy: SitePolicy) -> list[str]:
    """The door's rules as sentences."""
    if not policy.disclosure_control:
        first = "Disclosure control is off: these are published images without patient identifiers."
    else:
        first = (
            f"A number leaves only when at least {policy.min_units} units (patients, else slides, else source "
            "files) stand behind it; otherwise it is suppressed."
        )
    rules = [
        first,
        f"Counts are rounded to multiples of {policy.round_to}; other numbers to 4 significant digits.",
    ]
    if policy.profile == "masked":
        rules += [
            "Dictionary rows leave only from a set fixed before round 1, only when no single unit dominates them, "
            "clipped, and only when a leak check cannot read a training token from them.",
            "This is heuristic protection, not differential privacy: somebody who already holds a cell's features "
            "may still test whether they were used.",
        ]
    return rules


def _float(value: Any) -> float | None:
    return None if value is None or np.isnan(value) else float(f"{float(value):.4g}")


def _named(names: tuple[str, ...], values: Array) -> dict[str, float | None]:
    return {name: _float(value) for name, value in zip(names, values, strict=True)}


def _mean(values: list[float | None] | list[float]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def build_report(
    study: StudyConfig, result: StudyResult, comparators: Comparators | None = None, **facts: Any
) -> Mapping[str, Any]:
    """report.json as JSON values. `facts`: encoder_depth, canary_tolerance."""
    return ReportBuilder(study, result, comparators, **facts).build()
