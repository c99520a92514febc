"""report.json from data-set statistics of one frozen dictionary: the first cross-site report of a published one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from ..concepts.compare import controls
from ..concepts.datasets import DataSet
from ..concepts.meaning import meaning_pairs
from .build import URN

Json = dict[str, Any]
STRONG_AGREEMENT = 0.7


def build_statistics_report(found: Sequence[DataSet], result: Json, *, seed: int) -> Json:
    """The report of `concepts.compare.compare`'s result, with controls and class meanings beside it."""
    n = len(found[0].frequency)
    report: Json = {
        "urn": URN,
        "title": f"Cross-site concept report: {', '.join(item.name for item in found)}",
        "watermarks": [],
        "question": "Does one frozen dictionary use the same concepts on these data sets?",
        "study": {"name": "statistics", "kind": "compare", "seed": seed, "rounds": 0, "targets": []},
        "encoder": {},
        "dictionary": {"n": n},
        "sites": {item.name: _site(item, result) for item in found},
        "agreement": {"firing_rate": [_firing(pair, n) for pair in result["pairs"]], "auroc": []},
        "statistics": {
            "pairs": result["pairs"],
            "controls": [
                {"a": a.name, "b": b.name, **controls(a, b, seed=seed)} for a, b in combinations(found, 2)
            ],
            "meaning": meaning_pairs(found),
        },
        "concepts": [],
    }
    report["limits"] = _limits()
    report["not_assessed"] = _not_assessed(report, found)
    report["how_to_check"] = _how(seed)
    report["findings"] = _findings(report)
    report["answer"] = _answer(report)
    return report


def _site(item: DataSet, result: Json) -> Json:
    return {"status": "reported", **result["datasets"][item.name], "concepts": len(item.frequency)}


def _firing(pair: Json, n: int) -> Json:
    return {"a": pair["a"], "b": pair["b"], "rho": pair["rho_freq_core"]["value"], "n": n}


def _values(report: Json, key: str) -> list[float]:
    found = [pair[key]["value"] for pair in report["statistics"]["pairs"]]
    return [value for value in found if value is not None]


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def _findings(report: Json) -> list[str]:
    sites = report["sites"].values()
    n = report["dictionary"]["n"]
    core = [site["core"] for site in sites]
    mass = [site["mass_in_core"] for site in sites]
    found = [
        f"{min(core):,} to {max(core):,} of {n:,} concepts carry {min(mass):.1%} to {max(mass):.1%} of all "
        "activation; counting every concept that ever fires would call nearly all of them alive."
    ]
    jaccard, frequency = _values(report, "jaccard_core"), _values(report, "rho_freq_core")
    if jaccard and frequency:
        found.append(
            f"The data sets share most of that core (overlap {_span(jaccard)}), and its concepts occur about "
            f"equally often (rank correlation {_span(frequency)}; shuffled concepts "
            f"{_span([abs(item['shuffled']) for item in report['statistics']['controls']])})."
        )
    found.append(_meaning_finding(report))
    return found


def _meaning_finding(report: Json) -> str:
    known = [item for item in report["statistics"]["meaning"] if item["n"]]
    if not known:
        return "What concepts mean could not be compared: no two data sets have named classes in common."
    item = known[0]
    text = (
        f"Between {item['a']} and {item['b']}, {item['agree']:.0%} of {item['n']:,} concepts speak of the same "
        f"class (chance {item['chance']:.0%}, kappa {item['kappa']:.2f})"
    )
    both = item["pure_both"]
    return text + (f"; {both['agree']:.0%} of the {both['n']:,} that are pure in both." if both["n"] else ".")


def _answer(report: Json) -> str:
    frequency, entropy = _values(report, "rho_freq_core"), _values(report, "rho_entropy_core")
    if not frequency:
        return "Not estimable: no concept is in the core of any data set."
    lead = "Largely yes" if min(frequency) > STRONG_AGREEMENT else "Only in part"
    text = (
        f"{lead}, as far as their use goes: core concepts are common and rare in the same order on "
        f"all {len(report['sites'])} data sets (rank correlation {_span(frequency)}). "
    )
    if entropy:
        text += f"How class-specific a concept is carries over much less ({_span(entropy)}). "
    known = [item for item in report["statistics"]["meaning"] if item["n"]]
    if known:
        text += (
            f"About {known[0]['agree']:.0%} keep the class they speak of. A concept's name should therefore be "
            "checked at each site before it is relied on. "
        )
    return (
        text + "Class mix differs between data sets, so differences are stain, camera and patients together."
    )


def _limits() -> list[str]:
    return [
        "Aggregates per concept only: differences between hospitals and differences in which cells they "
        "photographed cannot be told apart.",
        "Intervals resample concepts, not patients: they say how far the number depends on which concepts are in "
        "the dictionary, not how it would vary with other patients.",
        "Agreement of use is not agreement of meaning: rows that fire often do so everywhere, in a dictionary of "
        "random directions too (rank correlation .91 between two real sites, docs/concepts.md).",
        "The image encoder may have seen cells of some of these data sets in its own training.",
        "Top-10 labels depend on class sizes: a class with many images fills more of the top ten.",
        "The map of class names to shared classes is ours; hairy cells are kept apart from lymphocytes.",
    ]


def _not_assessed(report: Json, found: Sequence[DataSet]) -> list[Json]:
    items = [
        ("unexplained share (FVU)", "the published statistics hold no reconstruction errors"),
        ("class AUROC of concepts", "the published statistics hold no values per image"),
        ("leave-one-site-out accuracy", "needs values per image at every site"),
        ("site-predictability", "needs values per image at every site"),
        ("what left the hospitals", "these statistics were already public or local; nothing was sent"),
    ]
    without = [item.name for item in found if item.entropy is None]
    if without:
        items.append((f"label entropy of {', '.join(without)}", "the folder has no top_entropy.pt"))
    if not report["statistics"]["meaning"]:
        items.append(("agreement of class meaning", "no two data sets with named, overlapping classes"))
    return [{"item": item, "reason": reason} for item, reason in items]


def _how(seed: int) -> list[str]:
    return [
        "Run `cytosae concepts compare-statistics DIR DIR ... --json` on the same folders: every number of the "
        "tables comes out again.",
        f"Intervals: 200 resamples of the concepts, seed {seed}; shuffled and ceiling: one draw, same seed.",
        "Formulas: docs/concepts.md, section on published statistics.",
    ]
