"""The report's numbers, computed again from the replies in plain Python. Formulas: report/*.py and docs/auditor.md."""

from __future__ import annotations

import math
from typing import Any

from ...canonical import parse_json, sha256_hex
from ..statement import COORDINATOR
from .bundle import MAX_JSON, Bundle
from .logs import Fields, Logs
from .messages import Replies
from .meta import meta_of
from .tensors import read_tensors
from .verdict import Broken, Missing

COUNTS = ("images", "units", "train_units", "test_units")
QUALITY = ("sse", "ss_global", "ss_own", "tokens", "l0", "dead_fraction")
PROBES = ("standardised codes", "raw codes", "raw embeddings", "shuffled labels")
EFFECT, REPLICATED, CONTRADICTION_Z, MIN_SITES = 0.15, 0.10, 4.0, 3
META_TOLERANCE = 1e-6


class Numbers:
    """Report and replies side by side. `count`: numbers that were compared."""

    def __init__(self, bundle: Bundle, replies: Replies) -> None:
        self.report: Fields = parse_json(bundle.get("report.json"), max_bytes=MAX_JSON)
        self.protocol, self.replies, self.count = bundle.protocol, replies, 0
        self.digests = set(bundle.under("dictionaries/"))
        self.bundle = bundle
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

    def quality(self, which: str, site: str) -> dict[str, float | None]:
        """FVU and the other quality numbers of one dictionary at one site."""
        number = self.order.index(which) if which in self.order else -1
        return _quality(self.replies.values("describe", number, site, "quality"))


def check_report(bundle: Bundle, logs: Logs) -> str:
    """The report is the one that the coordinator logged."""
    leaf = next(reversed(list(logs[COORDINATOR].of("report"))), None)
    if leaf is None or sha256_hex(bundle.get("report.json")) != leaf["report_sha256"]:
        raise Broken("report.json is not the report that the coordinator logged.", "report.json")
    if set(leaf["heads"]) != set(logs) - {COORDINATOR}:
        raise Broken("The logged report does not name every site's log.", "coordinator (report)")
    return f"report.json is the one in leaf {leaf['seq']} of the coordinator."


def check_page(bundle: Bundle, logs: Logs) -> str:
    """The page is the one that the coordinator logged."""
    leaf = [item for item in logs[COORDINATOR].statements if item.kind == "report"][-1]
    digest = sha256_hex(bundle.get("report.html"))
    if [name for name, _ in leaf.subjects].count("report") < 2:
        raise Missing(
            "report.html is not in the log: `cytosae audit replay` draws it again from report.json."
        )
    if ("report", digest) not in leaf.subjects:
        raise Broken("report.html is not the page that the coordinator logged.", "report.html")
    return "report.html is the page that the coordinator logged with report.json."


def check_site(numbers: Numbers, site: str) -> str:
    """What a site is, how well the dictionary fits there, and what left it."""
    before, place = numbers.count, f"sites/{site}"
    counts = [_known(value) for value in numbers.replies.values("hello", 0, site, "counts") or []]
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
    accuracy = numbers.replies.values("score", 0, site, "balanced_accuracy")
    for name, value in zip(PROBES, accuracy or [], strict=False):
        numbers.same(f"loso/views/{name}/{site}", _rounded(_known(value)))
    return f"{numbers.count - before} numbers of {site} come out again."


def check_overall(numbers: Numbers) -> str:
    """Means over sites, and the rounds."""
    before, sites = numbers.count, numbers.protocol["sites"]
    final = [numbers.quality("final", site) for site in sites]
    for name, which in (("federated_fvu", "final"), ("fvu_init", "init"), ("fvu_random", "random")):
        numbers.same(f"overall/{name}", _mean([numbers.quality(which, site).get("fvu") for site in sites]))
    for name in ("l0", "dead_fraction"):
        numbers.same(f"overall/{name}", _mean([quality.get(name) for quality in final]))
    for index, entry in enumerate(numbers.report["rounds"]):
        values = {
            site: _quality(numbers.replies.values("round", entry["round"], site, "quality")).get("fvu")
            for site in entry["sites"]
        }
        numbers.same(f"rounds/{index}/fvu", _mean(list(values.values())))
        for site, value in values.items():
            numbers.same(f"rounds/{index}/sites/{site}", value)
    return f"{numbers.count - before} means over sites and rounds come out again."


def check_concepts(numbers: Numbers) -> str:
    """Every concept's AUROCs, errors, firing rates, verdict and meta-analysis."""
    before, n = numbers.count, numbers.protocol["dictionary"]["n"]
    names = ("auroc", "auroc_se", "firing_rate")
    tables = {
        site: [numbers.replies.values("describe", 0, site, name) for name in names]
        for site in numbers.protocol["sites"]
    }
    known = {site: table for site, table in tables.items() if None not in table}
    concepts, wide = numbers.report["concepts"], len(numbers.targets)
    if sorted(item["row"] for item in concepts) != (list(range(n)) if known else []):
        raise Broken("The report does not show every concept once.", "report.json concepts")
    rows = _digests(numbers)
    for index, item in enumerate(concepts):
        row, place = item["row"], f"concepts/{index}"
        effects = [
            [value - 0.5 for value in table[0][row * wide : (row + 1) * wide]] for table in known.values()
        ]
        errors = [table[1][row * wide : (row + 1) * wide] for table in known.values()]
        verdict, target, mean, sites = verdict_of(effects, errors)
        numbers.same(f"{place}/verdict", verdict)
        numbers.same(f"{place}/target", numbers.targets[target] if target >= 0 else None)
        numbers.same(f"{place}/mean_auroc", _rounded(mean))
        numbers.same(f"{place}/sites_assessed", sites)
        if rows:
            numbers.same(f"{place}/digest", rows[row])
        shown = []
        for site, effect, error, table in zip(known, effects, errors, known.values(), strict=True):
            numbers.same(f"{place}/firing_rate/{site}", _rounded(_known(table[2][row])))
            if target < 0 or math.isnan(effect[target]):
                numbers.same(f"{place}/auroc/{site}", None)
                continue
            shown.append((round(effect[target] + 0.5, 4), _rounded(_known(error[target]))))
            numbers.same(f"{place}/auroc/{site}/value", shown[-1][0])
            numbers.same(f"{place}/auroc/{site}/se", shown[-1][1])
        for name, value in meta_of([a for a, _ in shown], [e or 0.0 for _, e in shown]).items():
            numbers.same(f"{place}/meta/{name}", value, META_TOLERANCE)
    return f"{numbers.count - before} numbers of {len(concepts)} concepts come out again."


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
