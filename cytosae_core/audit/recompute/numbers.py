"""Per site, over sites, per concept. Formulas: cytosae_core/report/*.py and docs/auditor.md."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from ...canonical import sha256_hex
from ..verify.bundle import Bundle
from ..verify.replies import Replies, read_tensors
from ..verify.verdict import Broken, Missing
from .meta import meta_of

COUNTS = ("images", "units", "train_units", "test_units")
QUALITY = ("sse", "ss_global", "ss_own", "tokens", "l0", "dead_fraction")
PROBES = ("standardised codes", "raw codes", "raw embeddings", "shuffled labels")
EFFECT, REPLICATED, CONTRADICTION_Z, MIN_SITES = 0.15, 0.10, 4.0, 3
META_TOLERANCE = 1e-6
CODES = {"float32": "f", "float16": "e"}


class Numbers:
    """Report and replies side by side. `count`: numbers that were compared."""

    def __init__(self, bundle: Bundle, replies: Replies) -> None:
        self.report = bundle.table("report.json", canonical=False)
        self.protocol, self.bundle, self.count = bundle.protocol, bundle, 0
        self.replies = replies
        statistics = self.protocol["statistics"]
        self.targets = [*statistics["classes"], *(item["name"] for item in statistics["attributes"])]
        self.order = ["final", *(["random"] if self.protocol["dictionary"]["model"] == "pursuit" else [])]
        self.order += ["init"] if self.protocol["kind"] == "train" else []

    def same(self, path: str, expected: Any, tolerance: float = 1e-9) -> None:
        """Raise unless the report says `expected` at `path` (keys and indices, dot by dot)."""
        found: Any = self.report
        for key in path.split("/"):
            found = found[int(key)] if isinstance(found, list) else found.get(key)
        self.count += 1
        numeric = all(type(value) in (int, float) for value in (expected, found))
        if numeric and abs(expected - found) <= tolerance * max(1.0, abs(expected)):
            return
        if found != expected or numeric:
            raise Broken(
                f"The report says {found!r} where the replies give {expected!r}.", f"report.json {path}"
            )

    def values(self, kind: str, number: int, site: str, name: str) -> list[float] | None:
        """Numbers of one tensor; None when the site never gave this reply."""
        found = self.replies.tensors.get((kind, number, site), {})
        if found is None:
            raise Missing(
                f"Reply {kind} {number} of {site} is not in the bundle, so its numbers were not recomputed."
            )
        if name not in found:
            return None
        tensor, code = found[name], CODES[found[name].dtype]
        return list(struct.unpack(f"<{math.prod(tensor.shape)}{code}", tensor.raw))

    def quality(self, which: str, site: str) -> dict[str, float | None]:
        """FVU and the other quality numbers of one dictionary at one site."""
        number = self.order.index(which) if which in self.order else -1
        return _quality(self.values("describe", number, site, "quality"))


def check_site(numbers: Numbers, site: str) -> str:
    """What a site is, how well the dictionary fits there, and what left it."""
    before, place = numbers.count, f"sites/{site}"
    counts = [_known(value) for value in numbers.values("hello", 0, site, "counts") or []]
    for name, value in zip(COUNTS, counts, strict=False):
        numbers.same(f"{place}/{name}", value)
    for name, value in zip(numbers.protocol["statistics"]["classes"], counts[len(COUNTS) :], strict=False):
        numbers.same(f"{place}/classes/{name}", value)
    final = numbers.quality("final", site)
    for name in ("fvu", "fvu_own_mean", "l0", "dead_fraction"):
        numbers.same(f"{place}/{name}", final.get(name))
    for which in ("init", "random"):
        numbers.same(f"{place}/fvu_{which}", numbers.quality(which, site).get("fvu"))
    received = numbers.replies.received[site]
    numbers.same(f"{place}/bytes_out", sum(fields["wire"]["bytes"] for fields in received))
    numbers.same(f"{place}/messages_out", len(received))
    for kind in sorted({fields["kind"] for fields in received}):
        sizes = [fields["wire"]["bytes"] for fields in received if fields["kind"] == kind]
        numbers.same(f"egress/sites/{site}/by_kind/{kind}/bytes", sum(sizes))
        numbers.same(f"egress/sites/{site}/by_kind/{kind}/count", len(sizes))
    accuracy = numbers.values("score", 0, site, "balanced_accuracy")
    for name, value in zip(PROBES, accuracy or [], strict=False):
        numbers.same(f"loso/views/{name}/{site}", _rounded(_known(value)))
    return f"{numbers.count - before} numbers of {site} come out again."


def check_overall(numbers: Numbers) -> str:
    """The protocol, every site and every round are in the report; means over sites, and the rounds."""
    before, sites = numbers.count, numbers.protocol["sites"]
    numbers.same("study/protocol_sha256", numbers.bundle.digest)
    shown = {f"sites {site}" for site in numbers.report["sites"]}
    shown |= {
        f"round {entry['round']} {site}" for entry in numbers.report["rounds"] for site in entry["sites"]
    }
    given = {f"sites {site}" for site in sites}
    given |= {f"round {number} {site}" for kind, number, site in numbers.replies.tensors if kind == "round"}
    for item in sorted(shown ^ given):
        raise Broken(f"{item}: in the report or among the replies, but not in both.", f"report.json {item}")
    final = [numbers.quality("final", site) for site in sites]
    for name, which in (("federated_fvu", "final"), ("fvu_init", "init"), ("fvu_random", "random")):
        numbers.same(f"overall/{name}", _mean([numbers.quality(which, site).get("fvu") for site in sites]))
    for name in ("l0", "dead_fraction"):
        numbers.same(f"overall/{name}", _mean([quality.get(name) for quality in final]))
    for index, entry in enumerate(numbers.report["rounds"]):
        values = {
            site: _quality(numbers.values("round", entry["round"], site, "quality")).get("fvu")
            for site in entry["sites"]
        }
        numbers.same(f"rounds/{index}/fvu", _mean(list(values.values())))
        for site, value in values.items():
            numbers.same(f"rounds/{index}/sites/{site}", value)
    return f"{numbers.count - before} means over sites and rounds come out again."


Tables = Mapping[str, list[list[float]]]  # site -> AUROC [n, t], its error [n, t], firing rate [n], each flat


def check_concepts(numbers: Numbers) -> str:
    """Every concept's AUROCs, errors, firing rates, verdict and meta-analysis."""
    before, n, tables = numbers.count, numbers.protocol["dictionary"]["n"], dict[str, list[list[float]]]()
    for site in numbers.protocol["sites"]:
        found = [numbers.values("describe", 0, site, name) for name in ("auroc", "auroc_se", "firing_rate")]
        if known := [values for values in found if values is not None]:
            tables[site] = known
    concepts = numbers.report["concepts"]
    if sorted(item["row"] for item in concepts) != (list(range(n)) if tables else []):
        raise Broken("The report does not show every concept once.", "report.json concepts")
    digests = _digests(numbers)
    for index, item in enumerate(concepts):
        if digests:
            numbers.same(f"concepts/{index}/digest", digests[item["row"]])
        _check_concept(numbers, tables, item["row"], f"concepts/{index}")
    return f"{numbers.count - before} numbers of {len(concepts)} concepts come out again."


def _check_concept(numbers: Numbers, tables: Tables, row: int, place: str) -> None:
    wide = len(numbers.targets)
    effects = [[value - 0.5 for value in table[0][row * wide :][:wide]] for table in tables.values()]
    errors = [table[1][row * wide :][:wide] for table in tables.values()]
    verdict, target, mean, sites = verdict_of(effects, errors)
    numbers.same(f"{place}/verdict", verdict)
    numbers.same(f"{place}/target", numbers.targets[target] if target >= 0 else None)
    numbers.same(f"{place}/mean_auroc", _rounded(mean))
    numbers.same(f"{place}/sites_assessed", sites)
    shown = []
    for site, effect, error in zip(tables, effects, errors, strict=True):
        numbers.same(f"{place}/firing_rate/{site}", _rounded(_known(tables[site][2][row])))
        if target < 0 or math.isnan(effect[target]):
            numbers.same(f"{place}/auroc/{site}", None)
            continue
        shown.append((round(effect[target] + 0.5, 4), _rounded(_known(error[target]))))
        numbers.same(f"{place}/auroc/{site}/value", shown[-1][0])
        numbers.same(f"{place}/auroc/{site}/se", shown[-1][1])
    for name, value in meta_of([a for a, _ in shown], [e or 0.0 for _, e in shown]).items():
        numbers.same(f"{place}/meta/{name}", value, META_TOLERANCE)


def verdict_of(effects: list[list[float]], errors: list[list[float]]) -> tuple[str, int, float | None, int]:
    """Verdict, target, mean AUROC and number of sites of one concept from effects [sites][targets]."""
    targets = range(len(effects[0]) if effects else 0)
    known = [[row[t] for row in effects if not math.isnan(row[t])] for t in targets]
    mean = [sum(values) / max(len(values), 1) for values in known]
    sites = max((len(values) for values in known), default=0)
    if sites < MIN_SITES:
        return "too few patients", -1, None, sites
    weakest = [
        min(math.copysign(1, m) * value if m else 0.0 for value in values)
        if len(values) >= MIN_SITES
        else -math.inf
        for values, m in zip(known, mean, strict=True)
    ]
    holding = [w if abs(m) > EFFECT else -math.inf for w, m in zip(weakest, mean, strict=True)]
    best = max(targets, key=holding.__getitem__)
    if holding[best] > REPLICATED:
        return "holds", best, mean[best] + 0.5, sites
    loudness = [0.0 for _ in targets]
    for t in targets:
        loud = any(
            abs(e[t]) > EFFECT and abs(e[t]) > CONTRADICTION_Z * max(s[t], 1e-3)
            for e, s in zip(effects, errors, strict=True)
        )
        if loud and len(known[t]) >= MIN_SITES and weakest[t] <= REPLICATED:
            loudness[t] = max(abs(value) for value in known[t])
    loudest = max(targets, key=loudness.__getitem__)
    if loudness[loudest] > 0:
        return "differs", loudest, mean[loudest] + 0.5, sites
    top = max(targets, key=lambda t: abs(mean[t]))
    return "no class meaning", top, mean[top] + 0.5, sites


def _digests(numbers: Numbers) -> list[str]:
    """First digits of every dictionary row's SHA-256, when the last dictionary is in the bundle."""
    wanted = numbers.report["dictionary"]["sha256"]
    for data in numbers.bundle.under("dictionaries/").values():
        for tensor in read_tensors(data).values():
            if sha256_hex(tensor.raw) == wanted:
                size = len(tensor.raw) // tensor.shape[0]
                return [sha256_hex(tensor.raw[at : at + size])[:16] for at in range(0, len(tensor.raw), size)]
    return []


def _quality(values: list[float] | None) -> dict[str, float | None]:
    named = dict(zip(QUALITY, map(_known, values or []), strict=False))
    sse, total, own = (named.get(name) for name in ("sse", "ss_global", "ss_own"))
    named["fvu"] = sse / total if sse is not None and total else None
    named["fvu_own_mean"] = sse / own if sse is not None and own else None
    return named


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _mean(values: list[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None
