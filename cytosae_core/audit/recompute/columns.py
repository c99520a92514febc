"""Every column of every concept, by row of the dictionary. Formulas: docs/auditor.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .experts import columns_of_votes
from .folds import Folds
from .given import Given, Values, mean_known, means
from .meta import concept_of, p_of
from .shortcut import site_shares
from .verdicts import VERDICTS, verdict_of

POOLED = (
    "estimate", "low", "high", "prediction_low", "prediction_high", "probability_new_site", "tau2", "i2", "h2", "p",
)  # fmt: skip
RECURS = 0.7  # cosine from which a site's own dictionary has the same row
NEIGHBOURS, MIN_NEIGHBOURS = 100, 20


@dataclass
class Columns:
    """Numbers of all concepts by name, [n] each, NaN where there is none.

    Attributes:
        by_name: as report.json names them. same_side: every site that can say is on one side of .5.
        sites: name -> [sites] of [n]: AUROC and error at the target, firing rate.
        folds: meanings chosen at the other sites. holds_shuffled: concepts that would hold with shuffled labels.
    """

    folds: Folds
    by_name: dict[str, list[float]] = field(default_factory=dict)
    same_side: list[bool] = field(default_factory=list)
    sites: dict[str, list[list[float]]] = field(default_factory=dict)
    holds_shuffled: int = 0

    def put(self, name: str, value: float) -> None:
        """The next row's value."""
        self.by_name.setdefault(name, []).append(value)


def columns_of(given: Given) -> Columns:
    """All columns. Slow: one random-effects fit per concept and target."""
    plan = given.numbers.protocol["plan"]
    made = Columns(Folds(len(given.sites), frozenset(int(name[1:]) for name in plan["concepts"])))
    made.sites = {name: [[] for _ in given.sites] for name in ("auroc", "auroc_se")}
    p: list[float] = []
    for row in range(given.n):
        p += _row(given, made, row)
    q = benjamini_hochberg(p) if plan["multiplicity"] == "benjamini-hochberg" else p
    target = [int(place) for place in made.by_name["target"]]
    made.by_name["q"] = _at(q, given.t, target)
    made.by_name["adjusted"] = _at(means(given.described("auroc_adjusted")), given.t, target)
    ablation = means(given.scored("ablation"))
    made.by_name["ablation"] = _at(ablation, given.c, target)
    made.by_name["firing_rate"] = rates = means(given.rates) or [math.nan] * given.n
    made.by_name["ablation_rank"] = ablation_ranks(ablation, given.c, target, rates)
    made.by_name["replicated"] = [made.folds.share(row) for row in range(given.n)]
    made.by_name |= {**_recurrence(given), **_site(given), **_confound(given), **columns_of_votes(given)}
    made.sites["firing_rate"] = [list(values) for values in given.rates]
    return made


def _row(given: Given, made: Columns, row: int) -> list[float]:
    """One concept's verdict, pooled numbers and per-site values; its p-values at all targets."""
    auroc, errors = given.row(given.auroc, row), given.row(given.error, row)
    effects = [[value - 0.5 for value in values] for values in auroc]
    shuffled = [[value - 0.5 for value in values] for values in given.row(given.shuffled, row)]
    verdict, target, mean, sites = verdict_of(effects, errors)
    own = [values[target] if target >= 0 else math.nan for values in effects]
    known = [value for value in own if value == value]
    made.put("verdict", VERDICTS.index(verdict))
    made.put("target", target)
    made.put("sites", len(known) if target >= 0 else sites)
    made.put("mean", math.nan if mean is None else mean)
    made.same_side.append(bool(known) and (min(known) > 0 or max(known) < 0))
    own_se = [values[target] if x == x else math.nan for values, x in zip(errors, own, strict=True)]
    for place, (value, error) in enumerate(zip(own, own_se, strict=True)):
        made.sites["auroc"][place].append(value + 0.5)
        made.sites["auroc_se"][place].append(error)
    pooled = concept_of([value + 0.5 for value in own], own_se)
    for name in POOLED:
        made.put(name, math.nan if pooled[name] is None else float(pooled[name] or 0.0))
    if len(given.sites) > 1:
        made.folds.add(row, effects, shuffled)
    made.holds_shuffled += verdict_of(shuffled, errors)[0] == "holds"
    each = zip(zip(*auroc, strict=True), zip(*errors, strict=True), strict=True)
    return [made.by_name["p"][row] if place == target else p_of(*pair) for place, pair in enumerate(each)]


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """q = the smallest p m / rank among this p-value and all larger ones; NaN is no test and does not count."""
    order = sorted((place for place, value in enumerate(p) if value == value), key=lambda at: -p[at])
    out, least, tests = [math.nan] * len(p), 1.0, len(order)
    for place, at in enumerate(order):
        least = min(least, p[at] * tests / (tests - place))
        out[at] = least
    return out


def _at(table: Values, wide: int, target: Sequence[int]) -> list[float]:
    """A table [n, wide] at each concept's target; NaN without a table or a target in it."""
    return [
        table[row * wide + place] if table and 0 <= place < wide else math.nan
        for row, place in enumerate(target)
    ]


def ablation_ranks(table: Values, wide: int, target: Sequence[int], rates: Sequence[float]) -> list[float]:
    """Share of the 100 other concepts with the nearest firing rate whose |ablation| for the class is smaller."""
    n = len(target)
    width, out = min(NEIGHBOURS, n - 1), [math.nan] * n
    if not table or width < MIN_NEIGHBOURS:
        return out
    order = sorted(range(n), key=lambda row: rates[row] if rates[row] == rates[row] else math.inf)
    for column in range(wide):
        size = [abs(table[row * wide + column]) for row in order]
        for place, row in enumerate(order):
            if target[row] == column and size[place] == size[place]:
                start = min(max(place - width // 2, 0), n - width - 1)
                others = [x for x in size[start : start + width + 1] if x == x]
                if len(others) > MIN_NEIGHBOURS:  # itself included
                    out[row] = sum(x < size[place] for x in others) / (len(others) - 1)
    return out


def _recurrence(given: Given) -> dict[str, list[float]]:
    """Sites whose own dictionary has the row, and mean cosines: after training, before, and for permuted rows."""
    found = [
        site for site in given.sites if given.numbers.values("describe", 0, site, "recurrence") is not None
    ]
    none = [math.nan] * given.n
    if not found:
        return dict.fromkeys(("recurrence_sites", "recurrence", "recurrence_init", "recurrence_null"), none)
    read = given.numbers.values
    own = [read("describe", 0, site, "recurrence") or () for site in found]
    nulls = [read("describe", 0, site, "recurrence_null") for site in found]
    start = [read("describe", 0, site, "recurrence_init") for site in found]
    limit = [math.nan if null is None else null[0] for null in nulls]
    hits = [
        float(sum(x >= RECURS and not x <= null for x, null in zip(row, limit, strict=True)))
        for row in zip(*own, strict=True)
    ]
    return {
        "recurrence_sites": hits,
        "recurrence": means(own),
        "recurrence_init": means([values for values in start if values is not None]) or none,
        "recurrence_null": [mean_known(limit)] * given.n,
    }


def _site(given: Given) -> dict[str, list[float]]:
    """How well a concept tells the site, and the share of its variance that is between sites."""
    none, (share, high, null) = [math.nan] * given.n, site_shares(given)
    return {
        "site_accuracy": means(given.scored("concept_site")) or none,
        "site_null": means(given.scored("concept_site_null")) or none,
        "site_share": share or none,
        "site_share_high": high or none,
        "site_share_null": null or none,
    }


def _confound(given: Given) -> dict[str, list[float]]:
    """The largest mean correlation with a fact of the picture, without its sign, and which fact (-1: none)."""
    table, out = means(given.described("confound")), [(math.nan, -1)] * given.n
    wide = len(table) // given.n
    for row in range(given.n if table else 0):
        size = [abs(value) for value in table[row * wide : (row + 1) * wide]]
        known = [value for value in size if value == value]
        out[row] = (max(known), size.index(max(known))) if known else out[row]
    return {"confound": [size for size, _ in out], "confound_of": [float(place) for _, place in out]}
