"""What experts said of concepts, from votes summed over sites: agreement beyond chance, and each concept's name.

    n_ij votes of concept i for term j, r_i = sum_j n_ij; concepts count that two raters or more looked at
    P_i   = sum_j n_ij (n_ij - 1) / (r_i (r_i - 1)): share of pairs of raters that agree; P = mean of P_i
    AC1   = (P - E) / (1 - E), E = sum_j pi_j (1 - pi_j) / (K - 1), pi_j = mean of n_ij / r_i (Gwet 2008): hardly
            moved by how frequent a term is, unlike kappa
    kappa = (P - F) / (1 - F), F = sum_j pi_j^2 (Fleiss 1971; with the mean shares where numbers of raters differ)
    alpha = 1 - D_o / D_e from the coincidences of votes (Krippendorff 2004, nominal)
    a concept's own agreement: (P_i - E) / (1 - E)

The interval is a percentile bootstrap over concepts. numpy only; the verifier has its own (audit/recompute).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..config import ARTEFACTS, MORPHOLOGY, REVIEW_TERMS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NAMED, NAMERS = 0.6, 3  # agreement and raters from which a concept has a name (audit.md, 5.4)
DRAWS, ENDS = 2000, (0.025, 0.975)


@dataclass(frozen=True)
class Review:
    """Numbers of a review; NaN where there is none.

    Attributes:
        raters, term, agreement: [n] votes per concept, the term that most gave (-1: none has more than the others),
            and agreement beyond chance.
        concepts: how many concepts count. ac1, kappa, alpha; low, high: 95 % interval of AC1.
        artefact, unnamed: share of all votes for an artefact, and for "cannot name".
    """

    raters: Ints
    term: Ints
    agreement: Floats
    concepts: int
    ac1: float
    low: float
    high: float
    kappa: float
    alpha: float
    artefact: float
    unnamed: float


def review(votes: Ints, *, seed: int) -> Review:
    """A review from votes [n, terms] of all sites together."""
    raters, names = votes.sum(axis=1), len(REVIEW_TERMS)
    counted = votes[raters >= 2].astype(np.float64)
    pairs, chance = _pairs(counted), gwet_chance(counted)
    agreement = np.full(len(votes), np.nan)
    if len(counted) and chance < 1:
        agreement[raters >= 2] = (pairs - chance) / (1 - chance)
    top = np.sort(votes, axis=1)
    clear = (raters > 0) & (top[:, -1] > top[:, -2])
    low, high = _interval(counted, seed)
    share = votes.sum(axis=0) / max(int(raters.sum()), 1)
    return Review(
        raters, np.where(clear, votes.argmax(axis=1), -1), agreement, len(counted),
        _beyond(pairs, chance), low, high, fleiss(counted), krippendorff(counted),
        float(share[len(MORPHOLOGY) : len(MORPHOLOGY) + len(ARTEFACTS)].sum()), float(share[names - 1]),
    )  # fmt: skip


def _pairs(counted: Floats) -> Floats:
    raters = counted.sum(axis=1)
    return np.asarray((counted * (counted - 1)).sum(axis=1) / (raters * (raters - 1)))


def gwet_chance(counted: Floats) -> float:
    """E of AC1 from votes [concepts, terms]; 1 without any."""
    if not len(counted):
        return 1.0
    share = _shares(counted)
    return float((share * (1 - share)).sum() / (counted.shape[1] - 1))


def _shares(counted: Floats) -> Floats:
    """Mean over concepts of the share of votes for every term."""
    return np.asarray((counted / counted.sum(axis=1, keepdims=True)).mean(axis=0))


def _beyond(pairs: Floats, chance: float) -> float:
    return float((pairs.mean() - chance) / (1 - chance)) if len(pairs) and chance < 1 else float("nan")


def fleiss(counted: Floats) -> float:
    """Fleiss' kappa; NaN where all votes are for one term."""
    if not len(counted):
        return float("nan")
    return _beyond(_pairs(counted), float((_shares(counted) ** 2).sum()))


def krippendorff(counted: Floats) -> float:
    """Krippendorff's alpha for names; NaN where all votes are for one term."""
    if not len(counted):
        return float("nan")
    total, votes = counted.sum(axis=0), counted.sum()
    same = float((counted * (counted - 1) / (counted.sum(axis=1, keepdims=True) - 1)).sum())
    expected = float((total * (total - 1)).sum()) / (votes - 1)
    return float(1 - (votes - same) / (votes - expected)) if votes > expected else float("nan")


def _interval(counted: Floats, seed: int) -> tuple[float, float]:
    """Ends of AC1 over concepts drawn again; NaN below 2 concepts."""
    if len(counted) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = [counted[rng.integers(len(counted), size=len(counted))] for _ in range(DRAWS)]
    values = np.array([_beyond(_pairs(part), gwet_chance(part)) for part in drawn])
    low, high = np.nanquantile(values, ENDS)
    return float(low), float(high)
