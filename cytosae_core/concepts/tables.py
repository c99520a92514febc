"""A site's concept tables: every value with the number of units behind it. numpy only.

The pairs (values, units) go straight to the door (`egress.Release`), which suppresses what too few units back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .auroc import unit_auroc
from .probe import AppliedProbe, ProbeSums, apply_probe, class_moments, site_recall, standardise, unit_weights
from .scores import ImageScores

Array = NDArray[Any]
Ints = NDArray[np.int64]
Table = dict[str, tuple[Array, Array]]  # name -> values, units (same shape)
NULL_SPLITS = 10
# Contributions [units, w] of every unit to w sums -> which sums few units dominate (disclosure rule S4).
Dominance = Callable[[Array], NDArray[np.bool_]]


def nothing_dominates(contributions: Array) -> NDArray[np.bool_]:
    """The rule of published images: no sum is withheld."""
    return np.zeros(contributions.shape[1:], dtype=bool)


@dataclass(frozen=True)
class Labelled:
    """What a site knows about its stored images; never leaves.

    Attributes:
        labels: [images] class index in the study's classes, -1 for a class outside the study.
        units: [images] unit index.
        attributes: [images, a] 1, 0 or -1 (unknown) per yes/no attribute.
        halves: [images] 0 or 1, a split of the units.
        n_classes: number of classes of the study.
    """

    labels: Ints
    units: Ints
    attributes: Ints
    halves: Ints
    n_classes: int


def concept_tables(
    scores: ImageScores, known: Labelled, *, seed: int, dominance: Dominance = nothing_dominates
) -> Table:
    """firing_rate [n], auroc, auroc_se and auroc_shuffled [n, t], and reliability [1]."""
    fired_units = _units_that_fired(scores.fired, known.units)
    weight, _ = unit_weights(known.units)
    rate = (weight @ scores.fired).astype(np.float32)
    shuffled = _shuffled(known, seed)
    table = _auroc_table(scores, known, fired_units)
    control = _auroc_table(scores, shuffled, fired_units)
    return {
        "firing_rate": (rate, _not_dominated(fired_units, scores.fired, known.units, dominance)),
        "auroc": (table[0], table[2]),
        "auroc_se": (table[1], np.where(np.isnan(table[1]), 0, table[2])),
        "auroc_shuffled": (control[0], control[2]),
        "reliability": _reliability(scores, known, fired_units),
    }


def _not_dominated(backing: Ints, values: Array, units: Ints, dominance: Dominance) -> Ints:
    """`backing` with 0 where a few units make up most of a sum over units [w] of mean values [images, w]."""
    if not len(units):
        return np.zeros_like(backing)  # a site without any of the protocol's classes
    index = np.unique(units, return_inverse=True)[1]
    sums = np.zeros((int(index.max()) + 1, values.shape[1]))
    np.add.at(sums, index, np.abs(values))
    means = sums / np.bincount(index)[:, None]
    # Nobody contributes to a concept that never fires: a property of the dictionary, declared structural (S7).
    return np.where(dominance(means) & (means > 0).any(axis=0), 0, backing)


def _units_that_fired(fired: Array, units: Ints) -> Ints:
    count = np.zeros((int(units.max()) + 1, fired.shape[1]), dtype=bool)
    np.logical_or.at(count, units, fired > 0)
    return np.asarray(count.sum(axis=0), dtype=np.int64)


def _auroc_table(scores: ImageScores, known: Labelled, fired_units: Ints) -> tuple[Array, Array, Array]:
    """AUROC, its standard error and the units behind it, each [n, t]: classes, then attributes.

    Attributes are tested within class: the class' mean score is taken off first, since most attributes are
    explained by the class alone.
    """
    columns = []
    inside = known.labels >= 0
    for index in range(known.n_classes):
        columns.append((scores.largest[inside], known.labels[inside] == index, known.units[inside]))
    if known.attributes.shape[1]:
        centred = _within_class(scores.largest, known.labels)
        for index in range(known.attributes.shape[1]):
            column = known.attributes[:, index]
            chosen = (column >= 0) & inside
            columns.append((centred[chosen], column[chosen] == 1, known.units[chosen]))
    values, errors, units = [], [], []
    for column_scores, positive, column_units in columns:
        result = unit_auroc(column_scores, positive, column_units)
        values.append(result.value)
        errors.append(result.se)
        units.append(np.minimum(fired_units, result.units))
    return (
        np.stack(values, axis=1).astype(np.float32),
        np.stack(errors, axis=1).astype(np.float32),
        np.stack(units, axis=1),
    )


def _within_class(values: Array, labels: Ints) -> Array:
    centred = values.copy()
    for index in np.unique(labels):
        centred[labels == index] -= values[labels == index].mean(axis=0)
    return centred


def _shuffled(known: Labelled, seed: int) -> Labelled:
    """Labels and attributes exchanged between images: the negative control of every AUROC."""
    order = np.random.default_rng(seed).permutation(len(known.labels))
    return Labelled(known.labels[order], known.units, known.attributes[order], known.halves, known.n_classes)


def _reliability(scores: ImageScores, known: Labelled, fired_units: Ints) -> tuple[Array, Array]:
    """Correlation over concepts and classes of AUROC in two halves of the units (not stepped up)."""
    halves = []
    for half in (0, 1):
        chosen = known.halves == half
        part = ImageScores(
            *(getattr(scores, name)[chosen] for name in ("largest", "mean", "fired", "embedding"))
        )
        sub = Labelled(
            known.labels[chosen], known.units[chosen], known.attributes[chosen, :0], known.halves[chosen],
            known.n_classes,
        )  # fmt: skip
        halves.append(_auroc_table(part, sub, fired_units)[0] if chosen.any() else None)
    if halves[0] is None or halves[1] is None:
        return np.zeros(1, np.float32), np.zeros(1, np.int64)
    usable = ~(np.isnan(halves[0]) | np.isnan(halves[1]))
    first, second = halves[0][usable], halves[1][usable]
    if len(first) < 3 or first.std() == 0 or second.std() == 0:
        return np.zeros(1, np.float32), np.zeros(1, np.int64)
    value = np.corrcoef(first, second)[0, 1]
    return np.array([value], np.float32), np.array([len(np.unique(known.units))])


def probe_tables(scores: ImageScores, known: Labelled, *, dominance: Dominance = nothing_dominates) -> Table:
    """Class and site moments of mean codes and embeddings, for probes that are tested at other sites."""
    fired_units = _units_that_fired(scores.fired, known.units)
    inside = known.labels >= 0
    table: Table = {}
    for view, values, backing in (
        ("code", scores.mean, fired_units),
        ("embedding", scores.embedding, np.full(scores.embedding.shape[1], len(np.unique(known.units)))),
    ):
        for part, chosen in (("all", inside), ("half", inside & (known.halves == 0))):
            table |= _moments(f"{view}_{part}", values[chosen], known.units[chosen], backing, dominance)
        for part, chosen in (("class", inside), ("half_class", inside & (known.halves == 0))):
            table |= _class_moments(f"{view}_{part}", values[chosen], known, chosen, backing, dominance)
    return table


def _moments(name: str, values: Array, units: Ints, backing: Ints, dominance: Dominance) -> Table:
    weight, count = unit_weights(units)
    mean = weight @ values.astype(np.float64)
    variance = weight @ (values - mean) ** 2
    behind = _not_dominated(np.minimum(backing, count), values, units, dominance)
    return {
        f"{name}_mean": (mean.astype(np.float32), behind),
        f"{name}_var": (variance.astype(np.float32), behind),
    }


def _class_moments(
    name: str, values: Array, known: Labelled, chosen: Array, backing: Ints, dominance: Dominance
) -> Table:
    mean, variance, counts = class_moments(values, known.labels[chosen], known.units[chosen], known.n_classes)
    behind = np.minimum(backing[None, :], counts[:, None])
    for index in range(known.n_classes):
        mine = known.labels[chosen] == index
        if mine.any():
            behind[index] = _not_dominated(behind[index], values[mine], known.units[chosen][mine], dominance)
    return {
        f"{name}_mean": (mean.astype(np.float32), behind),
        f"{name}_var": (variance.astype(np.float32), behind),
    }


def own_views(scores: ImageScores, known: Labelled, fit: Array) -> dict[str, Array]:
    """Features per view of `config.VIEWS`; standardised with the images of `fit` [images] only."""
    weight, _ = unit_weights(known.units[fit])
    values = scores.mean[fit].astype(np.float64)
    mean = weight @ values
    variance = weight @ (values - mean) ** 2
    return {
        "raw": scores.mean,
        "standardised": standardise(scores.mean, mean, variance),
        "embedding": scores.embedding,
    }


def own_probe(features: Array, known: Labelled, others: AppliedProbe) -> AppliedProbe | None:
    """The probe of one half of the site's own units, on the other half: what the site could do alone.

    Only classes that the other sites' probe was asked about here, so that both numbers answer the same question; None
    when one half has fewer than two of them.
    """
    fit = others.chosen & (known.halves == 0)
    mean, variance, _ = class_moments(features[fit], known.labels[fit], known.units[fit], known.n_classes)
    sums = ProbeSums()
    sums.add(mean, variance)
    tested = np.where(others.chosen & (known.halves == 1), known.labels, -1)
    return apply_probe(sums.probe(), features, tested)


def same_site_null(scores: ImageScores, known: Labelled, views: tuple[str, ...], *, seed: int) -> Array:
    """Site-predictability between two halves of one site: [v], what chance looks like with these units.

    The units of each half are dealt to two pretended sites; each is standardised and fitted on the first half
    and scored on the second, as real sites are. Mean of `NULL_SPLITS` deals.
    """
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(NULL_SPLITS):
        side = rng.permutation(int(known.units.max()) + 1) % 2
        results.append(_pretended_sites(scores, known, side[known.units], views))
    found = np.array(results, dtype=np.float64)
    seen = ~np.isnan(found)
    return np.asarray(np.nansum(found, axis=0) / np.maximum(seen.sum(axis=0), 1), dtype=np.float32)


def _pretended_sites(scores: ImageScores, known: Labelled, side: Ints, views: tuple[str, ...]) -> list[float]:
    inside = known.labels >= 0
    fits = [inside & (side == index) & (known.halves == 0) for index in (0, 1)]
    tests = [inside & (side == index) & (known.halves == 1) for index in (0, 1)]
    if not all(part.any() for part in fits + tests):
        return [float("nan")] * len(views)
    features = [own_views(scores, known, fit) for fit in fits]
    recalls = []
    for view in views:
        values = [feature[view] for feature in features]
        moments = [_fit(value, known, fit) for value, fit in zip(values, fits, strict=True)]
        pair = [
            site_recall(
                values[i][tests[i]], known.labels[tests[i]], known.units[tests[i]], moments[i], moments[1 - i]
            )
            for i in (0, 1)
        ]
        recalls.append(float(np.mean(pair)))
    return recalls


def _fit(values: Array, known: Labelled, chosen: Array) -> tuple[Array, Array]:
    mean, variance, _ = class_moments(
        values[chosen], known.labels[chosen], known.units[chosen], known.n_classes
    )
    return mean, variance
