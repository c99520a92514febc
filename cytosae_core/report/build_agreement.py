"""report.json: do sites agree on what concepts mean? Pairs of sites, and every site with the mean of the others.

Everything is summed block by block over rows (`Evidence.spans`), so that no table of all sites is in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from .agreement import SE_FLOOR, Moments, rank_correlation, verdict_table
from .evidence import Evidence, Json, rounded
from .folds import Folds
from .heterogeneity import disattenuated, spearman_brown

Array = NDArray[Any]
Floats = NDArray[np.float64]
Blocks = Callable[[int, int], Array]
MIN_OTHERS = 2


@dataclass
class Agreement:
    """Agreement as computed once for the report.

    Attributes:
        pairs: (a, b) places of sites.
        meaning: `real`, `shuffled`, `init`, `random` -> correlation per pair, with the number of entries.
        others: the same -> correlation of every site with the mean of the others, [sites].
        replication: `init`, `random` -> mean share of meanings that held at a site left out, as for `final`.
        holds_shuffled: concepts that would hold with shuffled labels.
    """

    pairs: list[tuple[int, int]]
    meaning: dict[str, tuple[Floats, Array]] = field(default_factory=dict)
    others: dict[str, Floats] = field(default_factory=dict)
    replication: dict[str, float | None] = field(default_factory=dict)
    holds_shuffled: int = 0


def measure_agreement(e: Evidence) -> Agreement:
    """One pass over the final tables, one over each control dictionary's."""
    found = Agreement(e.pairs())
    if not e.sites or not e.t:
        return found
    real, null = _Sums(found.pairs), _Sums(found.pairs)
    for start, stop in e.spans():
        effects, errors = e.effects(start, stop), e.errors(start, stop)
        shuffled = e.effects(start, stop, "auroc_shuffled")
        real.add(effects, effects, errors)
        null.add(effects, shuffled, errors)
        found.holds_shuffled += int((verdict_table(shuffled, errors).verdict == 0).sum())
    found.meaning |= {"real": real.of_pairs(), "shuffled": null.of_pairs()}
    found.others |= {"real": real.others.correlation(), "shuffled": null.others.correlation()}
    for which in ("init", "random"):
        if which in e.result.describe:
            sums, folds = _Sums(found.pairs), Folds(len(e.sites), e.n)
            stacks = e.stack(which, "auroc"), e.stack(which, "auroc_se")
            for start, stop in e.spans():
                effects, errors = stacks[0].rows(start, stop) - 0.5, stacks[1].rows(start, stop)
                sums.add(effects, effects, errors)
                folds.add(start, effects)
            found.replication[which] = folds.mean_share()
            found.meaning[which] = sums.of_pairs()
            found.others[which] = sums.others.correlation()
    return found


class _Sums:
    """Moments of all pairs, and of every site with the mean of the others."""

    def __init__(self, pairs: list[tuple[int, int]]) -> None:
        self._pairs, self._moments, self.others = pairs, [Moments() for _ in pairs], Moments()

    def add(self, own: Array, other: Array, errors: Array) -> None:
        """Effects [sites, rows, t]: of the first site of a pair, of the second one, and standard errors."""
        sites = len(own)
        x, y, se = (table.reshape(sites, -1) for table in (own, other, errors))
        self.others.add(x, *_mean_of_others(y, se))
        variance = np.maximum(se, SE_FLOOR) ** 2
        first, second = ~(np.isnan(x) | np.isnan(se)), ~(np.isnan(y) | np.isnan(se))
        x, y = np.where(first, x, 0.0), np.where(second, y, 0.0)
        variance = np.where(np.isnan(se), 1.0, variance)
        for (a, b), moments in zip(self._pairs, self._moments, strict=True):
            known = first[a] & second[b]
            moments.add_known(x[a], y[b], known / (variance[a] + variance[b]), known.sum(axis=-1))

    def of_pairs(self) -> tuple[Floats, Array]:
        """Correlation and number of entries of every pair."""
        values = [float(moments.correlation()) for moments in self._moments]
        return np.array(values), np.array([int(moments.count) for moments in self._moments], dtype=np.int64)


def _mean_of_others(effects: Array, errors: Array) -> tuple[Array, Array]:
    """Per site: mean effect of the others (at least 2) and the variance of its difference from the site's own."""
    known = ~(np.isnan(effects) | np.isnan(errors))
    value = np.where(known, effects, 0.0)
    variance = np.where(known, np.maximum(errors, SE_FLOOR) ** 2, 0.0)
    count = known.sum(axis=0) - known
    enough = count >= MIN_OTHERS
    size = np.where(enough, count, 1)
    mean = np.where(enough, (value.sum(axis=0) - value) / size, np.nan)
    own = np.where(known, variance, np.nan)
    return mean, own + (variance.sum(axis=0) - variance) / size**2


def agreement_part(e: Evidence, found: Agreement, replication: Json) -> Json:
    """report.json's `agreement`."""
    ranks = _Ranks(e.rates)
    firing, meaning = [], []
    for place, (a, b) in enumerate(found.pairs):
        names = {"a": e.sites[a], "b": e.sites[b]}
        rho, count = ranks.correlation(a, b)
        firing.append({**names, "rho": rho, "n": count})
        meaning.append({**names, **_meaning(found, place)})
        meaning[-1]["corrected"] = _corrected(e, meaning[-1])
    return {
        "firing_rate": firing,
        "auroc": meaning,
        "pairs": "all" if len(found.pairs) == len(e.sites) * (len(e.sites) - 1) // 2 else "neighbours",
        "reliability": {site: rounded(_reliability(e, site)) for site in e.sites},
        "replication": replication,
        "holds_shuffled": found.holds_shuffled,
    }


def _meaning(found: Agreement, place: int) -> Json:
    if not found.meaning:
        return {"r": None, "null": None, "n": 0}
    values = {name: _known(values[place]) for name, (values, _) in found.meaning.items()}
    real, count = values.pop("real"), int(found.meaning["real"][1][place])
    return {"r": real, "null": values.pop("shuffled"), "n": count, **values}


def _corrected(e: Evidence, pair: Json) -> float | None:
    """Agreement without the noise of the sites' own values, from their split halves; may exceed 1 by chance."""
    if pair["r"] is None:
        return None
    halves = [_reliability(e, pair[side]) for side in ("a", "b")]
    if any(np.isnan(half) or half <= 0 for half in halves):
        return None
    return disattenuated(pair["r"], *(spearman_brown(half) for half in halves))


def _reliability(e: Evidence, site: str) -> float:
    """Agreement of two halves of a site's units; NaN where it was withheld or, under `dp`, not asked for."""
    return float(e.small[site].get("reliability", (np.nan,))[0])


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


class _Ranks:
    """Spearman correlations of firing rates [sites, n]; a site's ranks are computed once."""

    def __init__(self, rates: Array) -> None:
        self._rates = rates
        self._whole: Array = np.asarray(~np.isnan(rates).any(axis=1))
        self._ranks: dict[int, Array] = {}

    def _of(self, site: int) -> Array:
        if site not in self._ranks:
            if len(self._ranks) > 4:  # neighbours come one after the other
                self._ranks.pop(next(iter(self._ranks)))
            ranks = rankdata(self._rates[site])
            self._ranks[site] = ranks - ranks.mean()
        return self._ranks[site]

    def correlation(self, a: int, b: int) -> tuple[float | None, int]:
        """Correlation over entries known on both sides, and their number."""
        n = self._rates.shape[1]
        if n < 3 or not (self._whole[a] and self._whole[b]):
            return rank_correlation(self._rates[a], self._rates[b])
        x, y = self._of(a), self._of(b)
        spread = float(np.sqrt((x @ x) * (y @ y)))
        return (float(x @ y / spread) if spread > 0 else None), n
