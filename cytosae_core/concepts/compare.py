"""Do two data sets use the same concepts? Rank correlations, overlaps and their bootstrap intervals over concepts.

"Core" is the union of both cores. Every value comes with a 95 % percentile interval from B = 200 resamples of the
concepts, drawn with a fixed seed. The interval speaks of the choice of concepts, not of patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .datasets import DataSet

Floats = NDArray[np.float64]
Json = dict[str, Any]
Statistic = Callable[[Floats], float]  # of the multiplicity of every concept [n]
RESAMPLES = 200
PAIR_KEYS = (
    "rho_freq_all", "rho_mean_all", "rho_freq_core", "rho_mean_core", "jaccard_core", "jaccard_f1", "top100",
    "top1000", "rho_entropy_all", "rho_entropy_core",
)  # fmt: skip


def compare(found: Sequence[DataSet], *, seed: int = 0, resamples: int = RESAMPLES) -> Json:
    """`{"datasets": {name: row}, "pairs": [{"a", "b", statistic: {"value", "ci": [low, high]}}]}`.

    A statistic that needs an absent file is `{"value": null, "ci": [null, null]}`.

    Raises:
        DataError: fewer than two data sets, two of one name, or of dictionaries of different size.
    """
    _comparable(found)
    rng = np.random.default_rng(seed)
    n = len(found[0].frequency)
    draws = [np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64) for _ in range(resamples)]
    pairs = [
        {"a": a.name, "b": b.name, **_pair(pair_statistics(a, b), draws)} for a, b in combinations(found, 2)
    ]
    return {"datasets": {item.name: item.row() for item in found}, "pairs": pairs}


def _comparable(found: Sequence[DataSet]) -> None:
    """DataError unless the statistics are of one dictionary under one encoder, as far as the folders say."""
    names = [item.name for item in found]
    if len(found) < 2 or len(set(names)) != len(names):
        raise DataError(f"Expected at least two data sets of different names, got {names}.")
    if len({len(item.frequency) for item in found}) > 1:
        raise DataError(
            f"Expected data sets of one dictionary, got {[len(item.frequency) for item in found]} concepts.",
            hint="Statistics of different dictionaries cannot be compared concept by concept.",
        )
    for what in ("dictionary", "encoder"):
        if len({getattr(item, what) for item in found if getattr(item, what)}) > 1:
            raise DataError(
                f"Expected data sets of one {what}; the folders name different ones.",
                hint="Extract all of them with the same dictionary and encoder options.",
            )


def _pair(statistics: Mapping[str, Statistic | None], draws: Sequence[Floats]) -> Json:
    return {name: _measured(statistics[name], draws) for name in PAIR_KEYS}


def _measured(statistic: Statistic | None, draws: Sequence[Floats]) -> Json:
    if statistic is None or not draws:
        return {"value": None, "ci": [None, None]}
    value = statistic(np.ones_like(draws[0]))
    if np.isnan(value):
        return {"value": None, "ci": [None, None]}
    low, high = np.nanpercentile([statistic(weight) for weight in draws], [2.5, 97.5])
    return {"value": float(value), "ci": [float(low), float(high)]}


def pair_statistics(a: DataSet, b: DataSet) -> dict[str, Statistic | None]:
    """Every statistic of a pair as a function of the concepts' multiplicities [n]."""
    everything = np.ones(len(a.frequency), bool)
    core = a.core | b.core
    found: dict[str, Statistic | None] = {}
    for name, chosen in (("all", everything), ("core", core)):
        found[f"rho_freq_{name}"] = spearman(a.frequency, b.frequency, chosen)
        found[f"rho_mean_{name}"] = spearman(a.mean, b.mean, chosen)
        entropies = a.entropy is not None and b.entropy is not None
        found[f"rho_entropy_{name}"] = spearman(a.entropy, b.entropy, chosen) if entropies else None
    found["jaccard_core"] = jaccard(a.core, b.core)
    found["jaccard_f1"] = jaccard(a.frequency > 0.01, b.frequency > 0.01)
    found["top100"] = top_overlap(a.mass, b.mass, 100)
    found["top1000"] = top_overlap(a.mass, b.mass, 1000)
    return found


def spearman(x: Floats | None, y: Floats | None, chosen: NDArray[np.bool_]) -> Statistic:
    """Spearman's rank correlation (average ranks) over `chosen` concepts that are NaN in neither.

    Resampling with multiplicities w is exact: the rank of a value is the weight below it plus half its own.
    NaN with fewer than three concepts or no variation.
    """
    x, y = np.asarray(x), np.asarray(y)
    place = np.flatnonzero(chosen & ~np.isnan(x) & ~np.isnan(y))
    groups = [np.unique(values[place], return_inverse=True)[1] for values in (x, y)]

    def value(multiplicity: Floats) -> float:
        weight = multiplicity[place]
        total = weight.sum()
        if len(place) < 3 or total < 3:
            return float("nan")
        centred = []
        for group in groups:
            own = np.bincount(group, weight)
            rank = (np.cumsum(own) - own / 2)[group]
            centred.append(rank - (weight @ rank) / total)
        spread = np.sqrt((weight @ centred[0] ** 2) * (weight @ centred[1] ** 2))
        return float((weight * centred[0]) @ centred[1] / spread) if spread > 0 else float("nan")

    return value


def jaccard(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Statistic:
    """|A and B| / |A or B|; NaN when both are empty."""
    both, either = (a & b).astype(np.float64), (a | b).astype(np.float64)

    def value(multiplicity: Floats) -> float:
        total = float(multiplicity @ either)
        return float(multiplicity @ both) / total if total else float("nan")

    return value


def top_overlap(a: Floats, b: Floats, k: int) -> Statistic:
    """Share of the k concepts of largest mass that are among the k largest of both; NaN with fewer than k."""
    orders = [np.argsort(-values, kind="stable") for values in (a, b)]

    def value(multiplicity: Floats) -> float:
        if len(a) < k:
            return float("nan")
        kept = []
        for order in orders:
            weight = multiplicity[order]
            room = np.clip(k - (np.cumsum(weight) - weight), 0, weight)  # copies that fit among the first k
            share = np.empty_like(weight)
            share[order] = room
            kept.append(share)
        return float(np.minimum(kept[0], kept[1]).sum() / k)

    return value


def controls(a: DataSet, b: DataSet, *, seed: int = 0) -> Json:
    """What `rho_freq_all` would be by chance (b's concepts shuffled), and at best (the same true frequencies,
    only the two numbers of images differ: binomial draws from a's frequencies)."""
    rng = np.random.default_rng(seed)
    one = np.ones(len(a.frequency))
    everything = one.astype(bool)
    shuffled = spearman(a.frequency, rng.permutation(b.frequency), everything)(one)
    draws = [rng.binomial(item.images, a.frequency) / item.images for item in (a, b)]
    return {"shuffled": shuffled, "ceiling": spearman(draws[0], draws[1], everything)(one)}
