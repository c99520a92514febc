"""What every site says of an endpoint, from the replies: which sites have a value, and its error.

Formulas: cytosae_core/report/endpoints.py. Agreement is taken as stated: only `replay` works it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from .given import described_sites, mean_known
from .numbers import COUNTS, PROBES, Numbers, known

Pair = tuple[float, float]  # value and standard error, NaN: none
MACRO = ("transfer", "transfer_gain", "site_readable")  # means over classes: a site needs support in two
STANDARDISED = 1  # row of `site_recall`: raw codes, standardised codes, embeddings


@dataclass
class SiteValues:
    """Value and error of every site that has a value; `withheld`: a site computed one and did not release it;
    `empty`: a site had nothing to compute it from."""

    pairs: dict[str, Pair] = field(default_factory=dict)
    withheld: bool = False
    empty: bool = False

    @property
    def with_errors(self) -> bool:
        """Whether every site that has a value has its standard error."""
        return bool(self.pairs) and all(error > 0 for _, error in self.pairs.values())


def site_values(numbers: Numbers, name: str, stated: dict[str, Pair]) -> SiteValues:
    """One endpoint at all sites. `stated`: what report.json says, for agreement."""
    out = SiteValues()
    for site in numbers.protocol["sites"]:
        pair = stated.get(site) if name == "agreement" else _PAIRS[name](numbers, site)
        if pair is None:
            continue
        if math.isnan(pair[0]):
            out.empty |= name == "replication"
            out.withheld |= name != "replication"
        elif name not in MACRO or _supported(numbers, site) >= 2:
            out.pairs[site] = pair
    return out


def units_of(numbers: Numbers, site: str) -> int | None:
    """Units of a site, None when it did not release them."""
    counts = numbers.counted(site, "counts")
    value = None if counts is None else known(counts[COUNTS.index("units")])
    return None if value is None else int(value)


def _supported(numbers: Numbers, site: str) -> int:
    """Classes with enough units behind them."""
    units = numbers.counted(site, "class_units") or ()
    return sum(value >= numbers.protocol["plan"]["support"] for value in units)


def _probe(numbers: Numbers, site: str, name: str) -> Pair | None:
    values, place = numbers.values("score", 0, site, "balanced_accuracy"), PROBES.index(name)
    if values is None:
        return None
    errors = numbers.values("score", 0, site, "balanced_accuracy_se")
    return values[place], math.nan if errors is None else errors[place]


def _gain(numbers: Numbers, site: str) -> Pair | None:
    codes, raw = _probe(numbers, site, PROBES[0]), _probe(numbers, site, "raw embeddings")
    return None if codes is None or raw is None else (codes[0] - raw[0], math.hypot(codes[1], raw[1]))


def _replication(numbers: Numbers, site: str) -> Pair | None:
    """From the counts that report.json states; they are a check of their own."""
    entry = numbers.report["agreement"]["replication"].get(site)
    if entry is None or site not in described_sites(numbers):
        return None
    if entry["share"] is None:
        return math.nan, math.nan
    return (entry["replicated"] + 0.5) / (entry["pairs"] + 1), float(entry["se"])


def _fvu(numbers: Numbers, site: str) -> Pair | None:
    if site not in described_sites(numbers):
        return None
    value, error = numbers.quality("final", site).get("fvu"), numbers.values("describe", 0, site, "fvu_se")
    return math.nan if value is None else value, math.nan if error is None else error[0]


def _readable(numbers: Numbers, site: str) -> Pair | None:
    values, sites = numbers.values("score", 0, site, "site_recall"), len(numbers.protocol["sites"])
    if values is None:
        return None
    return mean_known(values[STANDARDISED * sites : (STANDARDISED + 1) * sites]), math.nan


_PAIRS: dict[str, Callable[[Numbers, str], Pair | None]] = {
    "transfer": lambda numbers, site: _probe(numbers, site, PROBES[0]),
    "transfer_gain": _gain,
    "replication": _replication,
    "fvu": _fvu,
    "site_readable": _readable,
}
