"""Is a release as private as it says? A lower bound on epsilon from what one run of it gives away.

    m canaries     made-up patients, each in or out by a fair coin                           S_i in {in, out}
    r guesses      the r/2 highest scores: in, the r/2 lowest: out; v of them are right
    W              Binomial(r, e^eps / (1 + e^eps))
    P[v right]  <= P[W >= v] + 2 m delta max_{1 <= i <= v} P[v > W >= v - i] / i           under (eps, delta)

(Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, arXiv 2305.08846, theorem
5.2.) Every epsilon at which the right side is below 1 - confidence is refuted, and so is every smaller one. A release
that is not refuted is not proven private: r right guesses of r can refute no more than about log(r / 3) at 95 %.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binom

from ..errors import StudyError

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
HIGHEST = 100.0  # epsilon up to which is searched
HALVINGS = 40


@dataclass(frozen=True)
class Audit:
    """What one run gave away: `correct` of `guesses` about `canaries`; epsilon is at least `epsilon`."""

    canaries: int
    guesses: int
    correct: int
    delta: float
    confidence: float
    epsilon: float

    def refutes(self, claimed: float) -> bool:
        """Whether a promise of `claimed` at `delta` is broken, at this confidence."""
        return self.epsilon > claimed


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Largest chance of so many right guesses under any (epsilon, delta) private release.

    Raises:
        StudyError: numbers that do not fit each other.

    Guarantees (tests/security/test_privacy_audit.py):
        E1. The bounds that follow are those printed in the paper.
        E2. Randomised response, exactly epsilon private, is refuted with a chance of at most 1 - confidence; so is
            one that tells everything with chance delta.
    """
    if not 0 <= correct <= guesses <= canaries or not 0 <= epsilon < np.inf or not 0 <= delta < 1:
        raise StudyError(
            f"Expected 0 <= correct <= guesses <= canaries, epsilon >= 0 and 0 <= delta < 1, got correct={correct}, "
            f"guesses={guesses}, canaries={canaries}, epsilon={epsilon}, delta={delta}."
        )
    right = float(expit(epsilon))
    pure = float(binom.sf(correct - 1, guesses, right))
    below = np.cumsum(
        binom.pmf(np.arange(correct - 1, -1, -1), guesses, right)
    )  # P[v > W >= v - i], i = 1 ..
    steepest = float(np.max(below / np.arange(1, correct + 1), initial=0.0))
    return min(1.0, pure + 2 * canaries * delta * steepest)


def lower_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that so many right guesses refute at `confidence`; 0: none."""
    if not 0.5 <= confidence < 1:
        raise StudyError(f"Expected 0.5 <= confidence < 1, got confidence={confidence}.")

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, correct, epsilon, delta) < 1 - confidence

    low, high = 0.0, HIGHEST
    if not refuted(low):
        return 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def judge(scores: Floats, included: Mask, guesses: int, delta: float, confidence: float = 0.95) -> Audit:
    """The audit of scores [m]: a high score means that the canary seems to be in. included [m]: the truth.

    Raises:
        StudyError: an odd number of guesses, or more than canaries.
    """
    count = len(scores)
    if len(included) != count or guesses % 2 or not 0 < guesses <= count:
        raise StudyError(
            f"Expected one truth for each score and an even number of guesses up to canaries={count}, got "
            f"guesses={guesses}."
        )
    order = np.argsort(scores)
    half = guesses // 2
    correct = int((~included[order[:half]]).sum() + included[order[count - half :]].sum())
    bound = lower_bound(count, guesses, correct, delta, confidence)
    return Audit(count, guesses, correct, delta, confidence, bound)


def presence(total: Floats, canaries: Floats) -> Floats:
    """How much of every canary [m, size] is in a released sum [size], by least squares, in units of its own length.

    Canaries need not be orthogonal, only independent: what one shares with the others says nothing about it.
    """
    lengths = np.linalg.norm(canaries, axis=1)
    if not (lengths > 0).all():
        raise StudyError("Expected canaries that are not zero.")
    rows = canaries / lengths[:, None]
    return np.asarray(np.linalg.lstsq(rows @ rows.T, rows @ total, rcond=1e-10)[0])


def audit_sum(
    release: Callable[[Mask], Floats], canaries: Floats, guesses: int, delta: float, confidence: float = 0.95
) -> Audit:
    """One run of a sum over patients, with canaries among them: white box, its noise is all that hides them.

    Args:
        release: which canaries are in [m] -> the released sum [size], less what is known of the other patients.
        canaries: [m, size] what each canary adds, up to a factor.
    """
    coins = secrets.token_bytes(len(canaries))
    included = np.frombuffer(coins, np.uint8) % 2 == 1
    return judge(presence(release(included), canaries), included, guesses, delta, confidence)
