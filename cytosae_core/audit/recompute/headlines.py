"""The numbers that decide: what every site says, from the replies, and what is pooled from them.

Formulas: cytosae_core/report/endpoints.py and build_headlines.py. The share of meanings that hold is pooled from the
counts that the report states, and agreement from its sites' stated values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..statement import COORDINATOR
from ..verify.logs import Logs
from ..verify.verdict import Broken
from .meta import expit, fit_of
from .numbers import Numbers, known

INSIDE, EQUAL = 1e-3, 1e-4
SCORED = ("transfer", "transfer_gain", "site_readable")
LOWER_IS_BETTER = ("fvu", "site_readable")
Pair = tuple[float, float]


def _inside(value: float, low: float) -> float:
    return min(max(value, low + INSIDE), 1 - INSIDE)


def _logit(value: float) -> float:
    inside = _inside(value, 0.0)
    return math.log(inside / (1 - inside))


def _atanh(value: float) -> float:
    return math.atanh(_inside(value, -1.0))


SCALES: dict[str, tuple[Callable[[float], float], Callable[[float], float], Callable[[float], float]]] = {
    "logit": (_logit, expit, lambda x: 1 / (_inside(x, 0.0) * (1 - _inside(x, 0.0)))),
    "atanh": (_atanh, math.tanh, lambda x: 1 / (1 - _inside(x, -1.0) ** 2)),
    "log": (lambda x: math.log(max(x, INSIDE)), math.exp, lambda x: 1 / max(x, INSIDE)),
}


def check_headlines(numbers: Numbers) -> str:
    """Values of every site, pooled values, intervals, and whether they reach the thresholds of the protocol."""
    before, shown = (
        numbers.count,
        {part["id"]: place for place, part in enumerate(numbers.report["headlines"])},
    )
    asked = numbers.protocol.get("plan", {}).get("endpoints", [])
    for endpoint in asked:
        if endpoint["name"] not in shown:
            raise Broken(f"{endpoint['name']} is not in the report.", "report.json headlines")
        place = f"headlines/{shown[endpoint['name']]}"
        numbers.same(f"{place}/primary", endpoint["primary"])
        numbers.same(f"{place}/threshold", float(endpoint["threshold"]))
    for name, index in shown.items():
        _check(numbers, name, f"headlines/{index}", numbers.report["headlines"][index])
    return f"{numbers.count - before} numbers of {len(shown)} headlines come out again."


def check_integrity(numbers: Numbers, logs: Logs) -> str:
    """The log entries that the report names are those of what arrived, under a head that the log went through."""
    stated = numbers.report["integrity"]
    if stated["status"] != "logged":
        return "The report names no log entries."
    found = {site: _leaves(numbers, site) for site in sorted(numbers.replies.received)}
    found = {site: kinds for site, kinds in found.items() if kinds}
    size = 1 + max(place for kinds in found.values() for places in kinds.values() for place in places)
    numbers.same("integrity/leaves", found)
    numbers.same("integrity/log_size", size)
    if not logs[COORDINATOR].has(size, stated["root"]):
        raise Broken("The coordinator's log never had this head.", "report.json integrity/root")
    return f"The report names the {size} entries that the coordinator's log had when the last number arrived."


def _leaves(numbers: Numbers, site: str) -> dict[str, list[int]]:
    """Message kind -> places of the coordinator's entries of a site's replies that were used."""
    found: dict[str, list[int]] = {}
    for fields in numbers.replies.received[site]:
        if fields["status"] == "ok":
            found.setdefault(fields["kind"], []).append(fields["seq"])
    return found


def _check(numbers: Numbers, name: str, place: str, part: Mapping[str, Any]) -> None:
    pairs: dict[str, Pair] = {}
    for site, entry in part["sites"].items():
        value, error = _stated(entry) if name == "agreement" else _SITES[name](numbers, site)
        pairs[site] = (value, error)
        numbers.close(f"{place}/sites/{site}/value", value)
        if entry["se"] is not None:
            numbers.close(f"{place}/sites/{site}/se", error)
    if numbers.report["integrity"]["status"] == "logged":
        kind = "score" if name in SCORED else "describe"
        found = sorted(index for site in pairs for index in _leaves(numbers, site).get(kind, []))
        numbers.same(f"{place}/leaves", [{"party": COORDINATOR, "index": index} for index in found])
    values = [value for value, _ in pairs.values()]
    numbers.same(f"{place}/n/sites", len(values))
    if len(values) < 3:
        mean = sum(values) / len(values) if values else None
        numbers.close(f"{place}/value", mean)
        for key in ("interval", "prediction", "passes"):
            numbers.same(f"{place}/{key}", None)
        return
    _pooled(numbers, name, place, part, list(pairs.values()))


def _pooled(numbers: Numbers, name: str, place: str, part: Mapping[str, Any], pairs: list[Pair]) -> None:
    to, back, slope = SCALES[part["scale"]]
    y = [to(value) for value, _ in pairs]
    errors = [error * slope(value) if error > 0 else 0.0 for value, error in pairs]
    v = [max(error, EQUAL) ** 2 for error in errors] if all(errors) else [EQUAL**2] * len(y)
    fit = fit_of(y, v)
    numbers.close(f"{place}/value", back(fit["mean"]))
    for key, low, high in (("interval", "low", "high"), ("prediction", "prediction_low", "prediction_high")):
        for index, end in enumerate((low, high)):
            numbers.close(f"{place}/{key}/{index}", back(fit[end]))
    if part["threshold"] is not None:
        worse = part["interval"][1 if name in LOWER_IS_BETTER else 0]
        reached = worse <= part["threshold"] if name in LOWER_IS_BETTER else worse >= part["threshold"]
        numbers.same(f"{place}/passes", reached)


def _stated(entry: Mapping[str, Any]) -> Pair:
    return float(entry["value"]), math.nan


def _probe(numbers: Numbers, site: str, place: int) -> Pair:
    values = numbers.values("score", 0, site, "balanced_accuracy") or []
    errors = numbers.values("score", 0, site, "balanced_accuracy_se")
    return values[place], math.nan if errors is None else errors[place]


def _gain(numbers: Numbers, site: str) -> Pair:
    (codes, codes_se), (raw, raw_se) = _probe(numbers, site, 0), _probe(numbers, site, 2)
    return codes - raw, math.hypot(codes_se, raw_se)


def _replication(numbers: Numbers, site: str) -> Pair:
    entry = numbers.report["agreement"]["replication"][site]
    return (entry["replicated"] + 0.5) / (entry["pairs"] + 1), float(entry["se"])


def _fvu(numbers: Numbers, site: str) -> Pair:
    value = numbers.quality("final", site)["fvu"]
    return math.nan if value is None else value, math.nan


def _readable(numbers: Numbers, site: str) -> Pair:
    values, sites = numbers.values("score", 0, site, "site_recall") or [], len(numbers.protocol["sites"])
    row = [value for value in map(known, values[sites : 2 * sites]) if value is not None]
    return math.fsum(row) / len(row), math.nan


_SITES: dict[str, Callable[[Numbers, str], Pair]] = {
    "transfer": lambda numbers, site: _probe(numbers, site, 0),
    "transfer_gain": _gain,
    "replication": _replication,
    "fvu": _fvu,
    "site_readable": _readable,
}
