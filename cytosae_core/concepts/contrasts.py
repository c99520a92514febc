"""Class scale: mean barcodes per class, what sets two classes apart, and how patients resemble each other.

The patient (or slide, as the record says) is the unit everywhere: a class mean is a mean of patients' barcodes,
intervals resample patients, and chance exchanges whole patients between classes. Cells are never counted as if
they were independent. A class with fewer than 3 units gets a mean and no interval.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from scipy.stats import norm, t

from ..errors import DataError

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MIN_UNITS = 3  # per class for an interval or a p-value; and units in which a concept must occur to be tested
RESAMPLES = 2000
PERMUTATIONS = 4999
LEVEL = 0.95


@dataclass(frozen=True)
class ClassBarcodes:
    """Mean barcodes: `units` [c] units per class, `mean`, `low`, `high` [c, n] (95 %; NaN below 3 units)."""

    units: Ints
    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Contrast:
    """One class against another, or against all others; arrays [n].

    Attributes:
        difference: mean barcode of the first minus that of the second (or minus the mean over the other classes,
            every class with the same weight).
        low, high: 95 % bootstrap interval over units; NaN when a class has fewer than 3.
        p: two-sided permutation of units between the classes; NaN for concepts that occur in fewer than 3 units.
        q: Benjamini-Hochberg value over the tested concepts.
        units: units on each side. tested: number of concepts tested. attainable: smallest p there can be.
        words: what the numbers rest on, and what they cannot show.
    """

    difference: Floats
    low: Floats
    high: Floats
    p: Floats
    q: Floats
    units: tuple[int, int]
    tested: int
    attainable: float
    words: str

    def top(self, count: int = 50) -> Ints:
        """The `count` concepts with the largest difference either way, most positive first."""
        largest = np.argsort(-np.abs(self.difference), kind="stable")[:count]
        largest = largest[self.difference[largest] != 0]
        return np.asarray(largest[np.argsort(-self.difference[largest], kind="stable")], dtype=np.int64)


def class_barcodes(shares: Floats, unit_class: Array, n_classes: int, *, seed: int = 0) -> ClassBarcodes:
    """Mean barcode of every class over its units; units of several classes (-1) or without barcode take no part.

    Args:
        shares: [u, n] barcodes, NaN rows for units without. unit_class: [u].

    Raises:
        DataError: no unit with a barcode and a single class.
    """
    label = usable_class(shares, unit_class)
    n = shares.shape[1]
    units = np.array([(label == c).sum() for c in range(n_classes)], np.int64)
    mean, low, high = (np.full((n_classes, n), np.nan) for _ in range(3))
    for c in np.flatnonzero(units).tolist():
        weight = np.where(label == c, 1.0 / units[c], 0.0)
        mean[c] = weight @ np.nan_to_num(shares)
        if units[c] >= MIN_UNITS:
            low[c], high[c] = _interval(shares, label, {c: 1.0}, mean[c], np.random.default_rng([seed, c]))
    return ClassBarcodes(units, mean, np.clip(low, 0, None), high)


def usable_class(shares: Floats, unit_class: Array) -> Ints:
    """Class per unit [u], -1 for units that take no part.

    Raises:
        DataError: none is left.
    """
    label = np.where(np.isfinite(shares).all(axis=1), unit_class, -1).astype(np.int64)
    if not (label >= 0).any():
        raise DataError(
            "Expected at least one patient with cells of a single class.", hint="Here every one has several."
        )
    return np.asarray(label)


def contrast(shares: Floats, unit_class: Array, first: int, second: int, *, seed: int = 0) -> Contrast:
    """Signed difference of the mean barcodes of two classes.

    Raises:
        DataError: the same class twice, or one without units.
    """
    if first == second:
        raise DataError("Expected two different classes to contrast.")
    return _contrast(shares, unit_class, {first: 1.0, second: -1.0}, seed)


def one_vs_rest(shares: Floats, unit_class: Array, first: int, *, seed: int = 0) -> Contrast:
    """A class against the others, each of which weighs the same however many units it has.

    Other classes with fewer than 3 units are left out, unless there is no larger one; `words` says so.

    Raises:
        DataError: the class has no units, or there is no other class.
    """
    present = np.unique(usable_class(shares, unit_class))
    rest = [int(c) for c in present if c >= 0 and c != first]
    if not rest:
        raise DataError("Expected at least two classes with units.", hint="One class cannot be contrasted.")
    large = [c for c in rest if (usable_class(shares, unit_class) == c).sum() >= MIN_UNITS] or rest
    result = _contrast(shares, unit_class, {first: 1.0, **{c: -1.0 / len(large) for c in large}}, seed)
    left = len(rest) - len(large)
    text = f"; {left} class(es) with fewer than {MIN_UNITS} units left out of the rest" if left else ""
    return replace(result, words=result.words + text)


def _contrast(shares: Floats, unit_class: Array, weights: dict[int, float], seed: int) -> Contrast:
    label = usable_class(shares, unit_class)
    label = np.where(np.isin(label, list(weights)), label, -1)
    units = {c: int((label == c).sum()) for c in weights}
    if min(units.values()) == 0:
        raise DataError("Expected units in every class of the contrast.", hint="See the table of classes.")
    keep = label >= 0
    label, shares = label[keep], shares[keep]
    weight = np.array([weights[int(c)] / units[int(c)] for c in label])
    difference = weight @ shares
    n = shares.shape[1]
    low, high, p = (np.full(n, np.nan) for _ in range(3))
    sides = (next(iter(units.values())), sum(units.values()) - next(iter(units.values())))
    testable = (shares > 0).sum(axis=0) >= MIN_UNITS
    words, attainable = _too_few(units), 1.0
    if not words:
        low, high = _interval(shares, label, weights, difference, np.random.default_rng([seed, 1]))
        orders, exact = _arrangements(label, np.random.default_rng([seed, 2]))
        p[testable] = _permutation_p(shares[:, testable], weight, difference[testable], orders, exact)
        attainable = _attainable(label, weights, len(orders), exact)
        words = _basis(int(testable.sum()), attainable, exact, len(orders))
    q = benjamini_hochberg(p)
    return Contrast(difference, low, high, p, q, sides, int(testable.sum()), attainable, words)


def _too_few(units: dict[int, int]) -> str:
    smallest = min(units.values())
    if smallest >= MIN_UNITS:
        return ""
    return f"no interval and no test: a class has {smallest} unit(s), {MIN_UNITS} are needed"


def _basis(tested: int, attainable: float, exact: bool, count: int) -> str:
    how = f"all {count} exchanges" if exact else f"{count} random exchanges"
    text = f"95 % bootstrap intervals over units; p from {how} of units between classes, {tested} concepts tested"
    needed = math.ceil(attainable * tested / 0.05)
    if needed > (1 if exact else 10):
        limit = "few units, not few differences" if exact else "a limit of the number of exchanges"
        text += (
            f"; the smallest possible p is {attainable:.2g}, so a false-discovery rate of 5 % needs at least "
            f"{needed} concepts as extreme as that: {limit}"
        )
    return text


def _interval(
    shares: Floats, label: Ints, weights: dict[int, float], estimate: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Percentile bootstrap over units within class, widened for few units (Hesterberg 2015, Am Stat 69:371).

    Distances from the estimate are stretched by sqrt(u / (u - 1)) per class and by t / z with Welch and
    Satterthwaite's degrees of freedom per concept.
    """
    tail = 1 - (1 - LEVEL) / 2
    draws = np.zeros((RESAMPLES, len(label)))
    for c, weight in weights.items():
        members = np.flatnonzero(label == c)
        u = len(members)
        counts = rng.multinomial(u, np.full(u, 1 / u), size=RESAMPLES)
        draws[:, members] = weight / u * (counts - 1) * math.sqrt(u / (u - 1))
    stretch = np.asarray(t.ppf(tail, _freedom(shares, label, weights)) / norm.ppf(tail))
    low, high = np.empty_like(estimate), np.empty_like(estimate)
    for block in _blocks(len(estimate), RESAMPLES):
        away = draws @ np.nan_to_num(shares[:, block])
        below, above = np.quantile(away, [1 - tail, tail], axis=0) * stretch[block]
        low[block], high[block] = estimate[block] + below, estimate[block] + above
    return low, high


def _freedom(shares: Floats, label: Ints, weights: dict[int, float]) -> Floats:
    """Welch-Satterthwaite degrees of freedom [n] of the weighted sum of class means."""
    total, parts = np.zeros(shares.shape[1]), np.zeros(shares.shape[1])
    smallest = min(int((label == c).sum()) for c in weights) - 1
    for c, weight in weights.items():
        members = shares[label == c]
        variance = weight**2 * members.var(axis=0, ddof=1) / len(members)
        total += variance
        parts += variance**2 / (len(members) - 1)
    floor = np.full(len(total), float(smallest))
    return np.asarray(np.divide(total**2, parts, out=floor, where=parts > 0))


def _blocks(n: int, rows: int) -> list[slice]:
    size = max(1, 4_000_000 // rows)
    return [slice(start, start + size) for start in range(0, n, size)]


def _arrangements(label: Ints, rng: np.random.Generator) -> tuple[Ints, bool]:
    """Orders [m, u] of the units: every split when two classes allow it in few enough, else random ones."""
    u = len(label)
    classes = np.unique(label)
    first = np.flatnonzero(label == classes[0])
    if len(classes) == 2 and math.comb(u, len(first)) <= PERMUTATIONS + 1:
        second = np.flatnonzero(label == classes[1])
        orders = []
        for chosen in itertools.combinations(range(u), len(first)):
            order = np.empty(u, np.int64)
            order[list(chosen)] = first
            order[np.setdiff1d(np.arange(u), chosen)] = second
            orders.append(order)
        return np.array(orders), True
    return np.array([rng.permutation(u) for _ in range(PERMUTATIONS)]), False


def _permutation_p(shares: Floats, weight: Floats, difference: Floats, orders: Ints, exact: bool) -> Floats:
    """Two-sided p [n]; random orders count the observed one too (Phipson and Smyth 2010)."""
    permuted = weight[orders]  # [m, u]: weights of the arrangement on the units
    p = np.empty(len(difference))
    for block in _blocks(len(difference), len(orders)):
        null = np.abs(permuted @ shares[:, block])
        count = (null >= np.abs(difference[block]) - 1e-12).sum(axis=0)
        p[block] = count / len(orders) if exact else (count + 1) / (len(orders) + 1)
    return p


def _attainable(label: Ints, weights: dict[int, float], count: int, exact: bool) -> float:
    """Smallest p of such a test: both signs give the same distance when two classes are of one size."""
    sizes = [int((label == c).sum()) for c in weights]
    splits = math.factorial(len(label)) / math.prod(math.factorial(size) for size in sizes)
    twins = 2 if len(sizes) == 2 and sizes[0] == sizes[1] else 1
    return twins / splits if exact else max(twins / splits, 1 / (count + 1))


def benjamini_hochberg(p: Floats) -> Floats:
    """q-values of Benjamini and Hochberg 1995; NaN entries are not tests and stay NaN. Shape kept."""
    q = np.full(p.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return q


@dataclass(frozen=True)
class Likeness:
    """Pearson correlations [m, m] of barcodes, `order` [m] unit indices as shown, `label` [m] their classes."""

    correlation: Floats
    order: Ints
    label: Ints


def likeness(shares: Floats, unit_class: Array) -> Likeness:
    """How alike patients are: Pearson over concepts, by class (units of several classes last), then by average
    linkage on 1 - r within class.

    A barcode without any spread correlates with nothing (0).

    Raises:
        DataError: fewer than two units with a barcode.
    """
    usable = np.flatnonzero(np.isfinite(shares).all(axis=1))
    if len(usable) < 2:
        raise DataError("Expected at least two patients with a barcode.", hint="Extract more cells.")
    centred = shares[usable] - shares[usable].mean(axis=1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    correlation = np.clip(unit @ unit.T, -1, 1)
    np.fill_diagonal(correlation, 1.0)
    label = np.asarray(unit_class)[usable].astype(np.int64)
    groups = [c for c in np.unique(label) if c >= 0] + ([-1] if (label < 0).any() else [])
    order = np.concatenate([_within(correlation, np.flatnonzero(label == c)) for c in groups])
    return Likeness(correlation[np.ix_(order, order)], usable[order], label[order])


def _within(correlation: Floats, members: Ints) -> Ints:
    if len(members) < 3:
        return members
    distance = 1 - correlation[np.ix_(members, members)]
    np.fill_diagonal(distance, 0.0)
    condensed = squareform((distance + distance.T) / 2, checks=False)
    return members[leaves_list(linkage(condensed, "average", optimal_ordering=True))]
