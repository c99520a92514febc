"""Does a concept follow the cell, or lamp, lens and stain? Values, and the units behind each. numpy and scipy only.

A site's picture facts (`encoder/image_facts.py`: brightness, saturation, focus, cell size, colours) never leave per
image. What leaves are correlations with concepts, AUROC without cell size, moments and histograms over units, and
class moments of colours, from which the other sites' colour probe is made: what colours alone can do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..config import HISTOGRAM_BINS, IMAGE_FACTS
from ..policy import SitePolicy
from ..privacy.disclosure import dominance, protect_table
from .auroc import unit_auroc, unit_means
from .probe import class_moments, unit_weights

if TYPE_CHECKING:  # the report needs the edges, and is made where torch is not
    from .scores import ImageScores
    from .tables import Labelled

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Table = dict[str, tuple[Array, Array]]  # name -> values, units (same shape)
CHUNK_BYTES = 64 * 1024 * 1024
CELL_SIZE = IMAGE_FACTS.index("cell size")
# Inner edges of the 10 bins of each fact, the outer bins are open. Round numbers that spread the cells of five public
# sources (1,250 pictures of three continents) over most bins; never made from a study's own cells.
EDGES: dict[str, tuple[float, ...]] = {
    "brightness": (0.35, 0.42, 0.49, 0.56, 0.63, 0.70, 0.77, 0.84, 0.91),
    "saturation": (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45),
    "focus": (0.50, 0.75, 1.00, 1.25, 1.50, 1.75, 2.00, 2.25, 2.50),
    "cell size": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
}


def acquisition_tables(
    scores: ImageScores, known: Labelled, facts: Array, colours: Array, policy: SitePolicy
) -> Table:
    """confound [n, 4], auroc_adjusted [n, t], image_facts [4, 2], image_histogram [4, 10] and colour_class_mean and
    _var [c, 64].

    Args:
        facts: [images, 4] in the order of `config.IMAGE_FACTS`; NaN where a fact is unknown.
        colours: [images, 64] shares of the pixels.
        policy: whose limits decide which bins are withheld together.
    """
    inside = known.labels >= 0
    part = (scores.largest[inside], facts[inside], known.labels[inside], known.units[inside])
    fired = (
        (unit_means(scores.fired[inside], known.units[inside])[0] > 0).sum(axis=0)
        if inside.any()
        else np.zeros(scores.fired.shape[1], np.int64)
    )
    found = confound(*part)
    adjusted = auroc_adjusted(*part, known.n_classes, known.attributes.shape[1])
    facts_behind = np.where(np.isnan(found), 0, fired[:, None])
    return {
        "confound": (found.astype(np.float32), facts_behind),
        "auroc_adjusted": (adjusted[0].astype(np.float32), np.minimum(fired[:, None], adjusted[1])),
        "image_facts": fact_moments(facts, known.units, policy),
        "image_histogram": fact_histogram(facts, known.units, policy),
        **colour_classes(colours, known, policy),
    }


def confound(largest: Array, facts: Array, labels: Ints, units: Ints) -> Floats:
    """Spearman correlation within class of every concept's image score with every fact: [n, 4].

    Ranks over all images, class means taken off, every unit weighing the same: a concept of a class whose cells are
    large does not follow size; one that grows with size inside its class does. NaN where either does not vary within
    any class, or the fact is unknown.
    """
    n = largest.shape[1]
    out = np.full((n, facts.shape[1]), np.nan)
    if len(largest) < 3:
        return out
    weight, _ = unit_weights(units)
    right = _ranks_within(facts, labels, weight) * weight[:, None]
    step = max(1, CHUNK_BYTES // (8 * len(largest)))
    for start in range(0, n, step):  # ranks are float64: memory stays flat at any width
        left = _ranks_within(largest[:, start : start + step], labels, weight)
        out[start : start + step] = left.T @ right
    return np.asarray(np.clip(out, -1, 1))


def _ranks_within(values: Array, labels: Ints, weight: Floats) -> Floats:
    """Mid-ranks [images, w] without their class means, of weighted length 1; NaN columns where nothing is left."""
    unknown = np.isnan(values).any(axis=0)
    ranks = rankdata(np.where(unknown, 0, values), axis=0).astype(np.float64)
    whole = _length(ranks - weight @ ranks, weight)
    _centre(ranks, labels, weight)
    length = _length(ranks, weight)
    length[unknown | (length <= 1e-6 * np.maximum(whole, 1))] = np.nan
    return np.asarray(ranks / length)


def _length(values: Floats, weight: Floats) -> Floats:
    return np.asarray(np.sqrt(weight @ values**2))


def _centre(values: Floats, labels: Ints, weight: Floats) -> None:
    """Take each class's weighted mean off, in place."""
    for index in np.unique(labels):
        chosen = labels == index
        values[chosen] -= weight[chosen] @ values[chosen] / weight[chosen].sum()


def auroc_adjusted(
    largest: Array, facts: Array, labels: Ints, units: Ints, n_classes: int, n_attributes: int
) -> tuple[Floats, Ints]:
    """AUROC of every class after what cell size explains is taken off the concept's image score; units: [n, t] each.

    The score's slope on log cell size is that within classes (analysis of covariance), so that a class whose cells
    are large keeps what is not size. NaN and no units for attributes, and throughout when cell size is unknown or
    does not vary.
    """
    n = largest.shape[1]
    values = np.full((n, n_classes + n_attributes), np.nan)
    behind = np.zeros(values.shape, dtype=np.int64)
    if not len(largest) or np.isnan(facts[:, CELL_SIZE]).any():
        return values, behind
    weight, _ = unit_weights(units)
    size = np.log(np.maximum(facts[:, CELL_SIZE], 1 / 256)).astype(np.float64)  # at least one patch
    within = size[:, None].copy()
    _centre(within, labels, weight)
    spread = float(weight @ within[:, 0] ** 2)
    if spread <= 1e-9:
        return values, behind
    slope = (weight * within[:, 0]) @ largest / spread
    rest = largest - np.outer(size.astype(np.float32), slope.astype(np.float32))
    for index in range(n_classes):
        result = unit_auroc(rest, labels == index, units)
        values[:, index], behind[:, index] = result.value, result.units
    return values, behind


def fact_moments(facts: Array, units: Ints, policy: SitePolicy) -> tuple[Array, Array]:
    """Mean and standard deviation over units (of each unit's mean) of every fact, and the units: [4, 2] each."""
    means, _ = unit_means(facts, units)
    count = len(means)
    spread = means.std(axis=0, ddof=1) if count > 1 else np.full(facts.shape[1], np.nan)
    known = ~(np.isnan(means).any(axis=0) | dominance(np.nan_to_num(means), policy))
    values = np.stack([means.mean(axis=0), spread], axis=1)
    behind = np.where(known[:, None] & ~np.isnan(values), count, 0)
    return values.astype(np.float32), behind


def fact_histogram(facts: Array, units: Ints, policy: SitePolicy) -> tuple[Array, Array]:
    """Units (by their mean) in each of the bins of `EDGES`, and the units behind what may be shown: [4, 10] each.

    The bins of a fact add up to the site's number of units, which hello tells. So in each row no bin or at least two
    are withheld, with `min_units` units or more among them (disclosure.py, S5a and S5b).
    """
    means, _ = unit_means(facts, units)
    counts = np.zeros((len(EDGES), HISTOGRAM_BINS), dtype=np.int64)
    for row, edges in enumerate(EDGES.values()):
        if not np.isnan(means[:, row]).any():
            place = np.searchsorted(edges, means[:, row], side="right")
            counts[row] = np.bincount(place, minlength=HISTOGRAM_BINS)
    behind = np.stack([_shown_together(row, policy) for row in counts])
    return counts.astype(np.float32), behind


def _shown_together(counts: Ints, policy: SitePolicy) -> Ints:
    """`counts` [bins] of units that are each in one bin, 0 where the bin must be withheld."""
    table = protect_table(counts[None], counts[None], policy, exclusive=True)
    return np.where(np.isnan(table.cells[0]), 0, counts)


def colour_classes(colours: Array, known: Labelled, policy: SitePolicy) -> Table:
    """Mean and variance of every colour's share over each class's units, and the units behind: [c, 64] each.

    Behind a colour stand the class's units that have it, none where a few of them make up its share (S4). That a
    class lacks a colour which enough units of the site have is a fact about all of the class.
    """
    inside = known.labels >= 0
    labels, units = known.labels[inside], known.units[inside]
    mean, variance, _ = class_moments(colours[inside], labels, units, known.n_classes)
    behind = np.zeros(mean.shape, dtype=np.int64)
    anywhere = (unit_means(colours, known.units)[0] > 0).sum(axis=0)
    for index in range(known.n_classes):
        mine = labels == index
        if mine.any():
            shares, _ = unit_means(colours[inside][mine], units[mine])
            have = (shares > 0).sum(axis=0)
            some = np.where(dominance(shares, policy), 0, have)
            behind[index] = np.where(have > 0, some, np.minimum(anywhere, len(shares)))
    return {
        "colour_class_mean": (mean.astype(np.float32), behind),
        "colour_class_var": (variance.astype(np.float32), behind),
    }
