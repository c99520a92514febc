"""The numbers that decide: what every site says, from the replies, and what is pooled from them.

Formulas: cytosae_core/report/build_headlines.py. Agreement is pooled from its sites' stated values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..statement import COORDINATOR
from ..verify.logs import Logs
from ..verify.verdict import Broken
from .endpoints import SiteValues, site_values, units_of
from .given import mean_known
from .meta import MIN_SITES, expit, fit_of, probability_above
from .numbers import Numbers, known

INSIDE, EQUAL = 1e-3, 1e-4
SCORED = ("transfer", "transfer_gain", "site_readable")
LOWER_IS_BETTER = ("fvu", "site_readable")
SCALE_OF = {
    "transfer": "logit", "transfer_gain": "atanh", "replication": "logit", "agreement": "atanh", "fvu": "log",
    "site_readable": "logit",
}  # fmt: skip


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
    if len(shown) < len(numbers.report["headlines"]):
        raise Broken("A headline stands there twice.", "report.json headlines")
    for name, endpoint in _asked(numbers).items():
        if name not in shown:
            raise Broken(f"{name} is not in the report.", "report.json headlines")
        if endpoint["primary"] and shown[name]:
            raise Broken(f"{name} decides, and does not stand first.", "report.json headlines")
    for name, index in shown.items():
        _check(numbers, name, f"headlines/{index}", numbers.report["headlines"][index])
    return f"{numbers.count - before} numbers of {len(shown)} headlines come out again."


def _asked(numbers: Numbers) -> dict[str, Mapping[str, Any]]:
    """The plan's endpoints by name."""
    return {endpoint["name"]: endpoint for endpoint in numbers.protocol["plan"]["endpoints"]}


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
    stated = {site: (float(entry["value"]), math.nan) for site, entry in part["sites"].items()}
    values = site_values(numbers, name, stated)
    _check_sites(numbers, name, place, values)
    pairs, threshold = list(values.pairs.values()), _asked(numbers).get(name)
    if name != "agreement" or pairs:  # whether sites withheld it is part of what only `replay` works out
        numbers.same(f"{place}/status", _status(values))
    numbers.same(f"{place}/direction", "at_most" if name in LOWER_IS_BETTER else "at_least")
    numbers.same(f"{place}/threshold", None if threshold is None else float(threshold["threshold"]))
    numbers.same(f"{place}/primary", threshold is not None and threshold["primary"])
    if len(pairs) < MIN_SITES:
        mean = mean_known([value for value, _ in pairs])
        numbers.close(f"{place}/value", known(mean))
        for key in ("interval", "prediction", "passes", "probability_new_site"):
            numbers.same(f"{place}/{key}", None)
        return
    _pooled(numbers, name, place, part, values)


def _check_sites(numbers: Numbers, name: str, place: str, values: SiteValues) -> None:
    """The report shows the sites that have a value, all of them, and what was counted there."""
    shown, units = numbers.at(f"{place}/sites"), [units_of(numbers, site) for site in values.pairs]
    for site in sorted(shown.keys() ^ values.pairs.keys()):
        raise Broken(f"{site} is shown or has a value, but not both.", f"report.json {place}/sites/{site}")
    for (site, (value, error)), count in zip(values.pairs.items(), units, strict=True):
        numbers.close(f"{place}/sites/{site}/value", value)
        numbers.close(f"{place}/sites/{site}/se", error if values.with_errors else None)
        numbers.same(f"{place}/sites/{site}/units", count)
    all_known = units and None not in units
    numbers.same(f"{place}/n/sites", len(values.pairs))
    numbers.same(f"{place}/n/units", sum(count or 0 for count in units) if all_known else None)
    if numbers.report["integrity"]["status"] == "logged":
        kind = "score" if name in SCORED else "describe"
        found = sorted(index for site in values.pairs for index in _leaves(numbers, site).get(kind, []))
        numbers.same(f"{place}/leaves", [{"party": COORDINATOR, "index": index} for index in found])


def _status(values: SiteValues) -> str:
    if values.pairs:
        return "estimated" if len(values.pairs) >= MIN_SITES else "not_estimable"
    return "suppressed" if values.withheld else "not_estimable" if values.empty else "not_assessed"


def _pooled(numbers: Numbers, name: str, place: str, part: Mapping[str, Any], values: SiteValues) -> None:
    (to, back, slope), pairs = SCALES[SCALE_OF[name]], values.pairs.values()
    numbers.same(f"{place}/scale", SCALE_OF[name])
    y = [to(value) for value, _ in pairs]
    v = [max(error * slope(value), EQUAL) ** 2 if values.with_errors else EQUAL**2 for value, error in pairs]
    fit = fit_of(y, v)
    numbers.close(f"{place}/value", back(fit["mean"]))
    for key, low, high in (("interval", "low", "high"), ("prediction", "prediction_low", "prediction_high")):
        for index, end in enumerate((low, high)):
            numbers.close(f"{place}/{key}/{index}", back(fit[end]))
    for key in ("tau2", *(("i2", "h2", "q") if values.with_errors else ())):
        numbers.close(f"{place}/{key}", fit[key])
    for index, site in enumerate(values.pairs):
        rest = [[item for at, item in enumerate(items) if at != index] for items in (y, v)]
        without = back(fit_of(*rest)["mean"]) if len(y) > MIN_SITES else None
        numbers.close(f"{place}/influence/{site}", without)
    if part["threshold"] is None:
        numbers.same(f"{place}/passes", None)
        numbers.same(f"{place}/probability_new_site", None)
        return
    worse = part["interval"][1 if name in LOWER_IS_BETTER else 0]
    reached = worse <= part["threshold"] if name in LOWER_IS_BETTER else worse >= part["threshold"]
    numbers.same(f"{place}/passes", reached)
    chance = probability_above(fit, to(part["threshold"]))
    numbers.close(f"{place}/probability_new_site", 1 - chance if name in LOWER_IS_BETTER else chance)
