"""report.json: what each site is, how it transfers, and what left it."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from .. import egress
from ..config import COUNTS, PROBES, VIEWS
from ..policy import SitePolicy, named_policy
from .evidence import ALL_PAIRS, Evidence, Json, mean_of, named, rounded


def site_part(e: Evidence, site: str) -> Json:
    """One site: who, how much, how well, what left."""
    counts = [None if np.isnan(v) else int(v) for v in e.result.counts.get(site, [])]
    facts, quality = e.result.facts.get(site, {}), e.quality("final", site)
    received = e.result.received.get(site, {})
    fault = next((f"failed: {code}" for name, _, code in e.result.faults if name == site), "not reached")
    names = list(COUNTS) + [f"class {name}" for name in e.study.statistics.classes]
    known = dict(zip(names, counts, strict=False))
    return {
        **{name: known.get(name) for name in COUNTS},
        "unit": facts.get("unit"),
        "classes": {name: known.get(f"class {name}") for name in e.study.statistics.classes},
        "class_units": _class_units(e, site),
        **{name: quality.get(name) for name in ("fvu", "fvu_own_mean", "l0", "dead_fraction")},
        "fvu_init": e.quality("init", site).get("fvu"),
        "fvu_random": e.quality("random", site).get("fvu"),
        "bytes_out": sum(size for _, size in received.values()),
        "messages_out": sum(count for count, _ in received.values()),
        "policy": facts.get("policy"),
        "relay_isolation": facts.get("relay_isolation"),
        "status": "reported" if site in e.finished else fault,
        "suppressed": e.result.suppressed.get(site, {}),
        "suppressed_rows": e.result.suppressed.get(site, {}).get("delta"),
    }


def _class_units(e: Evidence, site: str) -> dict[str, int | None]:
    told = e.result.class_units.get(site, ())
    known = dict(zip(e.study.statistics.classes, told, strict=False))
    return {
        name: None if np.isnan(value := known.get(name, np.nan)) else int(value)
        for name in e.study.statistics.classes
    }


def site_predictability(e: Evidence) -> Json:
    """Can two sites be told apart within a class? 1/2 is chance, beside two halves of one site. Pairs that were not
    compared (of many sites, each is compared with its neighbours only) are left out unless there are few sites."""
    pairs, scored = [], [site for site in e.sites if "site_recall" in e.scores.get(site, {})]
    for a, b in combinations(scored, 2):
        there = e.scores[a]["site_recall"][:, e.study.sites.index(b)]
        back = e.scores[b]["site_recall"][:, e.study.sites.index(a)]
        if len(scored) <= ALL_PAIRS or not np.isnan(there + back).all():
            pairs.append({"a": a, "b": b, **named(VIEWS, (there + back) / 2)})
    nulls = {
        site: named(VIEWS, e.small[site]["same_site_null"])
        for site in e.sites
        if "same_site_null" in e.small[site]
    }
    known = any(pair[view] is not None for pair in pairs for view in VIEWS)
    reason = None if known else f"fewer than {e.study.min_units} units per class and half, or no shared class"
    return {"chance": 0.5, "pairs": pairs, "same_site_null": nulls, "reason": reason}


def loso(e: Evidence) -> Json:
    """Probes fitted on the other sites' class moments, scored at each site."""
    values = {site: named(PROBES, table["balanced_accuracy"]) for site, table in e.scores.items()}
    views = {name: {site: value[name] for site, value in values.items()} for name in PROBES}
    classes = list(e.study.statistics.classes)
    return {"chance": _chance(e), "classes": classes, "views": views}


def _chance(e: Evidence) -> float | None:
    """1 / number of classes shared with the other sites, averaged over the sites that were scored."""
    known = {site: np.nan_to_num(e.result.counts[site][len(COUNTS) :]) > 0 for site in e.scores}
    shares = []
    for site, own in known.items():
        teachers = [other for name, other in known.items() if name != site and other.sum() > 1]
        shared = int((own & np.any(teachers, axis=0)).sum()) if teachers else 0
        if shared > 1:
            shares.append(1 / shared)
    return mean_of(shares)


def egress_part(e: Evidence) -> Json:
    """What left, in bytes and by kind, and the rules it left under."""
    policy = _policy(e)
    return {
        "profile": e.study.profile,
        "rules": rules_in_words(policy),
        "sites": {
            site: {
                "bytes": sum(size for _, size in kinds.values()),
                "messages": sum(count for count, _ in kinds.values()),
                "by_kind": {kind: {"count": c, "bytes": b} for kind, (c, b) in kinds.items()},
            }
            for site, kinds in sorted(e.result.received.items())
        },
        "fields": egress.describe(policy),
        "never": list(egress.NEVER),
        "privacy": _promise(e),
    }


def _promise(e: Evidence) -> Json | None:
    """Under `dp`: what the protocol promises every patient, and the noise of each release over its clip norm."""
    study, terms = e.study, e.study.privacy
    if study.profile != "dp":
        return None
    return {
        "epsilon": terms.epsilon,
        "delta": terms.delta,
        "unit": "patient",
        "neighboring_relation": "add_or_remove_one",
        "accountant": "gaussian, exact",
        "sites_of_a_patient": terms.sites_of_a_patient,
        "patients_per_site": terms.patients,
        "secure_aggregation": terms.secure_aggregation,
        "noise_multiplier": {
            name: rounded(study.privacy.plan(name, study.layout).noise_multiplier) for name in terms.shares
        },
        "added_concepts": int((e.result.final[study.dictionary.n - terms.atoms :] != 0).any(axis=1).sum()),
    }


def _policy(e: Evidence) -> SitePolicy:
    names = sorted({facts.get("policy", "masked") for facts in e.result.facts.values()})
    return named_policy(names[0] if names else e.study.profile)


def rules_in_words(policy: SitePolicy) -> list[str]:
    """The door's rules as sentences."""
    if policy.profile == "dp":
        return [
            "Numbers of patients leave only as sums over patients, each clipped, with Gaussian noise that the site "
            "adds; everything else is made from these sums.",
            "A number that the noise drowns is suppressed; others have 4 significant digits.",
            "The site's ledger charges every release to its patients before it leaves, over all studies, and refuses "
            "what the site's policy does not allow.",
        ]
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
