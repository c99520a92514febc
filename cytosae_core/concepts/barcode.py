"""Patient scale: a patient's barcode, two patients side by side, and what is typical of one patient.

A barcode is, per concept, the share of the patient's tokens whose code is above a threshold. The published
CytoSAE divides the count by the number of concepts instead (compute_patient_wise_sae_activation.py:104), so that
its barcodes grow with the number of cells; that form exists only for comparison (`cytosae_compatible`).

A record holds one total per patient. Cells of one patient are not independent and their spread within a patient is
not in it, so nothing here pretends to know it: every range and every chance rests on OTHER PATIENTS.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .extracted import Extracted

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MIN_OTHERS = 3  # other patients needed before anything is said about chance
MAD_TO_SD = 1.4826  # of a normal distribution


def barcodes(found: Extracted, *, calibrated: bool = False, cytosae_compatible: bool = False) -> Floats:
    """Barcodes [u, n] of all units: share of tokens above the threshold, 0 to 1.

    Args:
        calibrated: with every concept's own threshold instead of tau. NaN for units that set the thresholds.
        cytosae_compatible: count divided by n, as published, instead of by the unit's tokens.

    Raises:
        DataError: no tokens, no barcodes in the record, or no calibrated thresholds in it.
    """
    counts = found.unit_calibrated if calibrated else found.unit_counts
    if not len(found.facts.unit_names) or not int(found.tokens[0]):
        raise DataError("Expected an extraction with at least one token.", hint="Extract the concepts again.")
    if counts.shape != (len(found.facts.unit_names), found.facts.n):
        raise DataError(
            "Expected barcodes per patient in the extraction.",
            hint="It left them out: too many units for its memory. Is there a patient column?",
        )
    if calibrated and not found.facts.calibration:
        raise DataError(
            "Expected calibrated thresholds in the extraction.", hint="Extract with a calibration share."
        )
    divisor = np.full(len(counts), found.facts.n) if cytosae_compatible else found.unit_tokens
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = counts.astype(np.float64) / divisor.astype(np.float64)[:, None]
    shares[found.unit_tokens == 0] = np.nan
    if calibrated:
        shares[found.unit_held_out == 0] = np.nan
    return np.asarray(shares)


def find_unit(found: Extracted, name: str) -> int:
    """Index of a unit by name.

    Raises:
        DataError: no such unit, with the nearest names.
    """
    names = found.facts.unit_names
    if name in names:
        return names.index(name)
    near = difflib.get_close_matches(name, names, 3, 0.4) or list(names[:3])
    raise DataError(
        f"Expected a {found.facts.unit} of the extraction, got {name!r}.", hint=f"For example {near}."
    )


@dataclass(frozen=True)
class Comparison:
    """Patient a against patient b; arrays [n].

    Attributes:
        difference: share of a minus share of b.
        low, high: middle 95 % of the differences between two other patients, one of a's class and one of b's: what
            two such patients show anyway. NaN when `others` is too small.
        p: two-sided share of such pairs, (a, b) itself included, that differ at least as much (exact under
            exchange of patients within class, one concept at a time). NaN when `others` is too small.
        others: number of other patients behind the range, the smaller of both classes.
        pairs: number of pairs behind `p`.
        basis: what the range rests on, in words.
    """

    difference: Floats
    low: Floats
    high: Floats
    p: Floats
    others: int
    pairs: int
    basis: str

    @property
    def outside(self) -> NDArray[np.bool_]:
        """[n] differences outside the range; never true without one."""
        return np.asarray((self.difference < self.low) | (self.difference > self.high))


def compare(shares: Floats, unit_class: Array, a: int, b: int) -> Comparison:
    """Difference of two patients' barcodes and the range that other patients of their classes show.

    Args:
        shares: [u, n] barcodes; rows of NaN are left out.
        unit_class: [u] class per unit, -1 for several (such a unit is compared with all others).

    Raises:
        DataError: a unit compared with itself, or without a barcode.
    """
    if a == b:
        raise DataError("Expected two different patients to compare.")
    usable = np.asarray(np.isfinite(shares).all(axis=1))
    if not (usable[a] and usable[b]):
        raise DataError("Expected barcodes of both patients.", hint="One has no token or set the thresholds.")
    first, second = (np.flatnonzero(usable & _peers(unit_class, unit)) for unit in (a, b))
    others = min(len(np.setdiff1d(first, [a, b])), len(np.setdiff1d(second, [a, b])))
    difference = shares[a] - shares[b]
    same = bool(unit_class[a] == unit_class[b])
    if others < MIN_OTHERS:
        empty = np.full(shares.shape[1], np.nan)
        basis = f"no range: only {others} other patients in the smaller class, {MIN_OTHERS} are needed"
        return Comparison(difference, empty, empty, empty, others, 0, basis)
    pairs = [(i, j) for i in first for j in second if i != j]
    basis = f"range: middle 95 % of differences between two other patients, {_kind(unit_class[[a, b]])}"
    basis += f" ({others} or more others per side)"
    low, high, p = _range_and_p(shares, np.array(pairs), (a, b))
    return Comparison(difference, low, high, p, others, len(pairs) // 2 if same else len(pairs), basis)


def _peers(unit_class: Array, unit: int) -> NDArray[np.bool_]:
    """Units of the same class; every unit when the unit has several classes."""
    own = int(unit_class[unit])
    return np.asarray(unit_class == own) if own >= 0 else np.ones(len(unit_class), bool)


def _kind(classes: Array) -> str:
    if (classes < 0).any():
        return "any of them where a patient has several classes"
    return "both of their class" if classes[0] == classes[1] else "one of each one's class"


def _range_and_p(shares: Floats, pairs: Ints, chosen: tuple[int, int]) -> tuple[Floats, Floats, Floats]:
    """Leave-out range and rank p-value per concept, block by block (pairs x block values at a time)."""
    fresh = ~np.isin(pairs, chosen).any(axis=1)
    low, high, p = (np.empty(shares.shape[1]) for _ in range(3))
    size = max(1, 4_000_000 // len(pairs))
    for start in range(0, shares.shape[1], size):
        block = slice(start, start + size)
        spread = shares[pairs[:, 0], block] - shares[pairs[:, 1], block]
        own = shares[chosen[0], block] - shares[chosen[1], block]
        low[block], high[block] = np.quantile(spread[fresh], [0.025, 0.975], axis=0)
        above, below = (spread >= own - 1e-12).mean(axis=0), (spread <= own + 1e-12).mean(axis=0)
        p[block] = np.minimum(1.0, 2 * np.minimum(above, below))
    return low, high, p


@dataclass(frozen=True)
class Typical:
    """What sets one patient apart from the others; arrays [n].

    Attributes:
        z: (share - median of the others) / (1.4826 x MAD of the others, never below one token of a median patient).
        q: smallest false-discovery rate at which a concept with z > 0 is called typical of the patient; 1 where
            z <= 0; NaN when there are too few others.
        others: number of other patients.
        basis: what it rests on, in words; `warning`: what to beware of, or empty.
    """

    z: Floats
    q: Floats
    others: int
    basis: str
    warning: str


def typical(shares: Floats, tokens: Array, unit: int, *, among: NDArray[np.bool_] | None = None) -> Typical:
    """Concepts typical of one patient against all others, without reference images of that patient.

    False discoveries are controlled by treating every other patient the same way (each against its own others):
    q(t) = mean number of concepts with z >= t in another patient / number in this one, made monotone (plug-in rate
    of Tusher et al. 2001, PNAS 98:5116). Concepts may depend on each other. It is strict: other patients have
    peculiarities of their own, and these count as chance.

    Args:
        shares: [u, n] barcodes; rows of NaN are left out.
        tokens: [u] tokens per unit.
        among: [u] units that take part (default: all).

    Raises:
        DataError: the patient has no barcode.
    """
    usable = np.asarray(np.isfinite(shares).all(axis=1))
    if not usable[unit]:
        raise DataError("Expected a barcode of the patient.", hint="No token, or it set the thresholds.")
    usable &= True if among is None else among
    members = np.flatnonzero(usable | (np.arange(len(usable)) == unit))
    others = members[members != unit]
    n = shares.shape[1]
    if len(others) < MIN_OTHERS:
        basis = f"not assessed: only {len(others)} other patients, {MIN_OTHERS} are needed"
        return Typical(np.full(n, np.nan), np.full(n, np.nan), len(others), basis, "")
    floor = 1.0 / max(1.0, float(np.median(tokens[members])))
    z = _robust_z(shares, unit, others, floor)
    null = [_robust_z(shares, other, members[members != other], floor) for other in others]
    basis = (
        f"robust z against {len(others)} other patients; false discoveries counted in the same {len(others)}"
    )
    return Typical(z, _plug_in_q(z, null), len(others), basis, _size_warning(tokens, unit, others))


def _robust_z(shares: Floats, unit: int, others: Ints, floor: float) -> Floats:
    z = np.zeros(shares.shape[1])
    active = (shares[others] > 0).any(axis=0) | (shares[unit] > 0)  # elsewhere the share and the median are 0
    rest = shares[np.ix_(others, active)]
    middle = np.median(rest, axis=0)
    spread = MAD_TO_SD * np.median(np.abs(rest - middle), axis=0)
    z[active] = (shares[unit, active] - middle) / np.maximum(spread, floor)
    return z


def _plug_in_q(z: Floats, null: list[Floats]) -> Floats:
    """q [n]: chance exceedances per patient over own exceedances, smallest over all lower thresholds."""
    order = np.argsort(-z, kind="stable")
    ordered = z[order]
    reached = np.searchsorted(-ordered, -ordered, side="right")  # own concepts with z >= this one's
    chance = sum(len(one) - np.searchsorted(np.sort(one), ordered, side="left") for one in null) / len(null)
    rate = np.minimum(1.0, np.asarray(chance / reached))
    rate = np.minimum.accumulate(rate[::-1])[::-1]
    q = np.empty_like(rate)
    q[order] = rate
    q[z <= 0] = 1.0
    return q


def _size_warning(tokens: Array, unit: int, others: Ints) -> str:
    middle = float(np.median(tokens[others]))
    if tokens[unit] * 4 < middle:
        share = f"{int(tokens[unit])} tokens against {middle:.0f} of the median patient"
        return f"few cells: {share}; small patients stand out by chance, trust nothing here alone"
    return ""
