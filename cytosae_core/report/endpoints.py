"""Every endpoint at every site, from released numbers, and the scale that it is pooled on. numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config import COUNTS, PROBES, VIEWS
from .build_agreement import Agreement
from .evidence import Evidence, rounded

NAMES = {
    "transfer": "Balanced accuracy at a site left out",
    "transfer_gain": "Gain over raw embeddings at a site left out",
    "replication": "Meanings that hold at a site left out",
    "agreement": "Agreement of meanings with the other sites",
    "fvu": "Unexplained share (FVU)",
    "site_readable": "How often a cell's site can be told",
}
UNITS = {
    "transfer": "balanced accuracy",
    "transfer_gain": "difference of balanced accuracies",
    "replication": "share of meanings",
    "agreement": "correlation",
    "fvu": "share of the variance",
    "site_readable": "balanced accuracy",
}
MACRO = ("transfer", "transfer_gain", "site_readable")  # means over classes: a site needs support in two
MISSING = {
    "transfer": "withheld, or fewer than two classes shared with the other sites",
    "transfer_gain": "withheld, or fewer than two classes shared with the other sites",
    "replication": "no meaning was clear at all the other sites",
    "agreement": "too few values shared with two other sites",
    "fvu": "withheld",
    "site_readable": "withheld, or no class shared with another site",
}
INSIDE = 1e-3  # shares and correlations are moved this far inside their range before their scale is infinite


@dataclass(frozen=True)
class Scale:
    """Where an endpoint is pooled: `to` and `back`, and the standard error there (delta method)."""

    name: str
    to: Callable[[float], float]
    back: Callable[[float], float]
    slope: Callable[[float], float]

    def error(self, value: float, error: float) -> float:
        """Standard error on this scale."""
        return error * self.slope(value)


def _inside(value: float, low: float, high: float) -> float:
    return min(max(value, low + INSIDE), high - INSIDE)


def _logit(value: float) -> float:
    inside = _inside(value, 0.0, 1.0)
    return math.log(inside / (1 - inside))


def _logit_slope(value: float) -> float:
    inside = _inside(value, 0.0, 1.0)
    return 1 / (inside * (1 - inside))


def _expit(value: float) -> float:
    return (1 + math.tanh(value / 2)) / 2


def _atanh(value: float) -> float:
    return math.atanh(_inside(value, -1.0, 1.0))


SCALES = {
    "logit": Scale("logit", _logit, _expit, _logit_slope),
    "atanh": Scale("atanh", _atanh, math.tanh, lambda value: 1 / (1 - _inside(value, -1.0, 1.0) ** 2)),
    "log": Scale(
        "log", lambda value: math.log(max(value, INSIDE)), math.exp, lambda value: 1 / max(value, INSIDE)
    ),
}
SCALE_NAMES = {
    "transfer": "logit",
    "transfer_gain": "atanh",
    "replication": "logit",
    "agreement": "atanh",
    "fvu": "log",
    "site_readable": "logit",
}


def scale_of(name: str) -> Scale:
    """The scale that an endpoint is pooled on."""
    return SCALES[SCALE_NAMES[name]]


@dataclass
class SiteValues:
    """One endpoint: value and standard error (absent: none) by site, units behind it, and why a site has none.

    `withheld`: sites that computed it and did not release it. `empty`: sites with nothing to compute it from.
    `reason`: why no site can have it.
    """

    value: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    units: dict[str, int | None] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    withheld: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def with_errors(self) -> bool:
        """Whether every site that has a value has its standard error."""
        return bool(self.value) and all(self.error.get(site, 0.0) > 0 for site in self.value)


def site_values(e: Evidence, name: str, found: Agreement, replication: Mapping[str, Any]) -> SiteValues:
    """One endpoint at every site of the protocol."""
    out = SiteValues()
    for site in e.study.sites:
        pair = _PAIRS[name](e, site, found, replication)
        if pair is None:
            out.missing[site] = "not reported" if site in e.sites else "did not answer"
        elif math.isnan(pair[0]):
            out.missing[site] = MISSING[name]
            (out.empty if name == "replication" else out.withheld).append(site)
        elif name in MACRO and len(e.supported(site)) < 2:
            out.missing[site] = f"fewer than two classes with {e.study.plan.support} units behind them"
        else:
            out.value[site], out.units[site] = pair[0], _units(e, site)
            if not math.isnan(pair[1]):
                out.error[site] = pair[1]
    return out


def _units(e: Evidence, site: str) -> int | None:
    counts = e.result.counts.get(site)
    place = COUNTS.index("units")
    return None if counts is None or np.isnan(counts[place]) else int(counts[place])


Pair = tuple[float, float] | None


def _transfer(e: Evidence, site: str, *_: Any) -> Pair:
    return _probe(e, site, "standardised codes")


def _gain(e: Evidence, site: str, *_: Any) -> Pair:
    """Both probes are scored on the same cells: taking their errors as independent is on the safe side."""
    codes, raw = _probe(e, site, "standardised codes"), _probe(e, site, "raw embeddings")
    return None if codes is None or raw is None else (codes[0] - raw[0], math.hypot(codes[1], raw[1]))


def _probe(e: Evidence, site: str, name: str) -> Pair:
    table = e.scores.get(site, {})
    if "balanced_accuracy" not in table:
        return None
    place, errors = PROBES.index(name), table.get("balanced_accuracy_se")
    return float(table["balanced_accuracy"][place]), float("nan") if errors is None else float(errors[place])


def _replication(e: Evidence, site: str, _: Agreement, replication: Mapping[str, Any]) -> Pair:
    """The share with half a meaning added to both sides, so that 0 and 1 have a logit."""
    entry = replication.get(site)
    if entry is None or site not in e.sites:
        return None
    if entry["share"] is None:
        return float("nan"), float("nan")
    return (entry["replicated"] + 0.5) / (entry["pairs"] + 1), entry["se"]


def _agreement(e: Evidence, site: str, found: Agreement, _: Any) -> Pair:
    if site not in e.sites or "real" not in found.others:
        return None
    value = rounded(found.others["real"][e.sites.index(site)])  # as it is stated: the verifier pools that
    return float("nan") if value is None else value, float("nan")


def _fvu(e: Evidence, site: str, *_: Any) -> Pair:
    if site not in e.sites:
        return None
    value, error = e.quality("final", site).get("fvu"), e.small[site].get("fvu_se")
    nan = float("nan")
    return (nan if value is None else float(value)), (nan if error is None else float(error[0]))


def _readable(e: Evidence, site: str, *_: Any) -> Pair:
    table = e.scores.get(site, {})
    if "site_recall" not in table:
        return None
    values = table["site_recall"][VIEWS.index("standardised")]
    known = values[~np.isnan(values)]
    return (float(known.mean()) if len(known) else float("nan")), float("nan")


_PAIRS: dict[str, Callable[..., Pair]] = {
    "transfer": _transfer,
    "transfer_gain": _gain,
    "replication": _replication,
    "agreement": _agreement,
    "fvu": _fvu,
    "site_readable": _readable,
}
