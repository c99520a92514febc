"""Metrics under differential privacy: one Gaussian release of one clipped vector per patient, then arithmetic.

    a patient's vector    1: it is here                                                                       [1]
                          squared errors and size of its tokens, codes in use, each over a public most        [4]
                          share of cell tokens that fire each concept, in 0 .. 1                              [e]
                          one 1 per class that it has cells of                                                [c]
                          one 1 per class and concept, in the bin of its mean score in that class     [c, e, bins]
    clip norm             of public numbers only (`Layout.clip`): patients of more classes are scaled down
    noise                 privacy/noise.py, once, at the site

Everything after the noise is post-processing and costs nothing: counts, rates, FVU, AUROC from the histograms.
Concepts and classes are those of the signed protocol: picking the largest after a look would cost privacy too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import StudyError

Floats = NDArray[np.float64]
# Edges of a score's bins, in units of sqrt(d) (a token has norm about sqrt(d)): public, the same for every study.
EDGES = (1e-6, 0.03, 0.06, 0.09, 0.12, 0.16, 0.20, 0.26, 0.34, 0.45)
BINS = len(EDGES) + 1
# Means per token and dimension: squared error, size about the study's mean, error of the public rows alone; and the
# share of allowed codes in use.
SQUARES = 4
LARGEST_SQUARE = 2.0  # of a patient's means; tokens have size 1 on average
# A side of an AUROC with fewer patients, by the noised count, or with a count within its own noise, is not told.
FEWEST, SURE = 11, 3.0
# Largest standard deviation, from noise alone, of a share of variance that is told.
VAGUE = 0.1


@dataclass(frozen=True)
class Layout:
    """Where everything is in a patient's vector.

    Attributes:
        concepts: e, pre-registered. classes: c.
        classes_of_a_patient: of which a patient has cells, at most; a public assumption: others are scaled down.
    """

    concepts: int
    classes: int
    classes_of_a_patient: int = 1

    def __post_init__(self) -> None:
        if self.concepts < 0 or self.classes < 0 or self.classes_of_a_patient < 1:
            raise StudyError("Expected concepts >= 0, classes >= 0 and classes_of_a_patient >= 1.")

    @property
    def size(self) -> int:
        """Numbers of a patient's vector."""
        return 1 + SQUARES + self.concepts + self.classes * (1 + self.concepts * BINS)

    @property
    def clip(self) -> float:
        """C: the norm of a patient with the stated number of classes, everything else at its largest."""
        most = min(self.classes_of_a_patient, self.classes)
        return math.sqrt(1 + SQUARES + self.concepts + most * (1 + self.concepts))


@dataclass(frozen=True)
class Patient:
    """What a site knows of one patient: never leaves.

    Attributes:
        squares: [4] means per token and dimension, see SQUARES.
        fired: [e] share of its cell tokens that fire each concept.
        classes: [c] whether it has cells of the class.
        scores: [c, e] mean score of its cells of the class, in units of sqrt(d); NaN where it has none.
    """

    squares: Floats
    fired: Floats
    classes: NDArray[np.bool_]
    scores: Floats


def vector(patient: Patient, layout: Layout) -> Floats:
    """A patient's vector [layout.size], before clipping."""
    histogram = np.zeros((layout.classes, layout.concepts, BINS))
    group, concept = np.nonzero(np.isfinite(patient.scores))
    histogram[group, concept, np.searchsorted(EDGES, patient.scores[group, concept], side="right")] = 1.0
    squares = np.clip(patient.squares / LARGEST_SQUARE, 0.0, 1.0)
    parts = [np.ones(1), squares, np.clip(patient.fired, 0.0, 1.0), patient.classes.astype(float)]
    return np.concatenate([*parts, histogram.ravel()])


@dataclass(frozen=True)
class Noised:
    """The released sum in parts, and the standard deviation `noise` of each of its numbers.

    patients: how many. squares [4] and fired [e]: sums over patients. classes [c]: patients. histogram [c, e, bins].
    """

    patients: float
    squares: Floats
    fired: Floats
    classes: Floats
    histogram: Floats
    noise: float


def split(total: Floats, layout: Layout, noise: float) -> Noised:
    """The parts of a released sum [layout.size]."""
    if total.shape != (layout.size,):
        raise StudyError(f"Expected a sum of size={layout.size}, got shape={total.shape}.")
    e, c = layout.concepts, layout.classes
    places = np.cumsum([1, SQUARES, e, c])
    count, squares, fired, classes, histogram = np.split(np.asarray(total, np.float64), places)
    cube = histogram.reshape(c, e, BINS)
    return Noised(float(count[0]), squares * LARGEST_SQUARE, fired, classes, cube, noise)


def vague(found: Noised) -> bool:
    """Whether noise alone gives a share of variance a standard deviation above `VAGUE`: then it is not told."""
    return bool(LARGEST_SQUARE * found.noise > VAGUE * max(found.squares[1], 0.0))


def fvu_error(found: Noised) -> float:
    """Standard deviation of FVU = squares[0] / squares[1] from noise alone (delta method). The patients' own part is
    not in it: that would need one more sum."""
    share = found.squares[0] / found.squares[1]
    return float(LARGEST_SQUARE * found.noise * math.sqrt(1 + share**2) / found.squares[1])


@dataclass(frozen=True)
class Auroc:
    """value, se [e], NaN where not told: one side has too few patients by the noised counts."""

    value: Floats
    se: Floats


def auroc(high: Floats, low: Floats, high_noise: float, low_noise: float) -> Auroc:
    """AUROC of every concept from two noised histograms [e, bins].

    Ties within a bin count half. The standard error adds three parts: patients (Hanley and McNeil 1982, from the
    histograms), noise (delta method, noise of standard deviation `high_noise` and `low_noise` per bin), and the
    order within bins that a histogram does not tell (uniform between its bounds).
    """
    positive, negative = high.sum(axis=1), low.sum(axis=1)
    bins = high.shape[1]
    sure = (positive >= np.maximum(FEWEST, SURE * high_noise * math.sqrt(bins))) & (
        negative >= np.maximum(FEWEST, SURE * low_noise * math.sqrt(bins))
    )
    p, q = np.maximum(positive, 1.0)[:, None], np.maximum(negative, 1.0)[:, None]
    beats = (np.cumsum(low, axis=1) - low / 2) / q  # share of the low side that a bin of the high side beats
    beaten = 1 - (np.cumsum(high, axis=1) - high / 2) / p
    value = (high * beats).sum(axis=1) / p[:, 0]
    middle = np.clip(value, 0.0, 1.0)
    spread = (high * (beats - middle[:, None]) ** 2).sum(axis=1) / p[:, 0] ** 2
    spread += (low * (beaten - middle[:, None]) ** 2).sum(axis=1) / q[:, 0] ** 2
    noised = (high_noise / p[:, 0]) ** 2 * ((beats - middle[:, None]) ** 2).sum(axis=1)
    noised += (low_noise / q[:, 0]) ** 2 * ((beaten - middle[:, None]) ** 2).sum(axis=1)
    ties = np.clip((np.maximum(high, 0) * np.maximum(low, 0)).sum(axis=1) / (p * q)[:, 0], 0, 1) / math.sqrt(
        12
    )
    se = np.sqrt(np.maximum(spread, 0.0) + noised + ties**2)
    return Auroc(np.where(sure, middle, np.nan), np.where(sure, se, np.nan))


def of_class(found: Noised, index: int) -> Auroc:
    """AUROC of class `index` against all other classes, [e]; the rest's noise grows with their number."""
    rest = np.delete(found.histogram, index, axis=0).sum(axis=0)
    return auroc(
        found.histogram[index], rest, found.noise, found.noise * math.sqrt(max(len(found.histogram) - 1, 1))
    )
