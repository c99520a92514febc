"""Epsilon of Gaussian releases, patient level: Google's dp-accounting, and exact formulas where no sampling happens.

    mu = 1 / noise multiplier of one release; k releases: mu sqrt(k)
    delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)     (Balle and Wang 2018, exact)

With Poisson sampling the privacy loss distribution (PLD) of dp-accounting counts, with its pessimistic rounding: the
number is never below the true one. The central limit approximation (GDP) is below it and is not here.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from ..errors import StudyError

RELATIONS = ("add_or_remove_one", "replace_one")
LARGEST = 1e6  # epsilon and noise multiplier up to which is searched


def pld_epsilon(
    noise_multiplier: float, sampling_rate: float, steps: int, delta: float, relation: str = RELATIONS[0]
) -> float:
    """Epsilon at `delta` of `steps` Gaussian releases on a Poisson sample of the patients.

    Args:
        noise_multiplier: standard deviation of the noise over the clip norm.
        sampling_rate: chance of each patient to be in a step; 1: all are in all.
        relation: neighbouring data sets differ by one patient more (`add_or_remove_one`), or in one (`replace_one`).

    Raises:
        StudyError: a value outside its range.

    Guarantees (tests/unit/test_accountant.py):
        A1. Within 1 % of independently computed values, and never below them by more than their digits.
        A2. Never below the exact value where every patient is in every step.
        A3. Grows with steps and sampling rate, falls with noise and delta.
    """
    check_release(noise_multiplier, sampling_rate, steps, delta, relation)
    from dp_accounting import NeighboringRelation, dp_event  # type: ignore[import-untyped]
    from dp_accounting.pld import PLDAccountant  # type: ignore[import-untyped]

    accountant = PLDAccountant(neighboring_relation=NeighboringRelation[relation.upper()])
    event = dp_event.GaussianDpEvent(noise_multiplier)
    if sampling_rate < 1:
        event = dp_event.PoissonSampledDpEvent(sampling_rate, event)
    accountant.compose(event, steps)
    return float(accountant.get_epsilon(delta))


def opacus_epsilon(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """The same by Opacus' default accountant (PRV), for comparison; add-or-remove-one. Needs torch."""
    check_release(noise_multiplier, sampling_rate, steps, delta, RELATIONS[0])
    from opacus.accountants import create_accountant  # type: ignore[import-untyped]

    accountant = create_accountant("prv")
    accountant.history = [(noise_multiplier, sampling_rate, steps)]
    with np.errstate(divide="ignore", invalid="ignore"):  # its own logarithm of 1 - sampling_rate
        return float(accountant.get_epsilon(delta=delta))


def check_release(
    noise_multiplier: float, sampling_rate: float, steps: int, delta: float, relation: str
) -> None:
    """Raise StudyError unless every value is one that a guarantee can be computed from."""
    fits = {
        f"noise_multiplier > 0 and at most {LARGEST:g}, got {noise_multiplier}": 0
        < noise_multiplier
        <= LARGEST,
        f"sampling_rate in 0 .. 1, got {sampling_rate}": 0 < sampling_rate <= 1,
        f"steps >= 1, got {steps}": 1 <= steps <= 10**7,
        f"delta in 0 .. 0.1, got {delta}": 0 < delta < 0.1,
        f"neighboring_relation in {RELATIONS}, got {relation!r}": relation in RELATIONS,
    }
    for text, good in fits.items():
        if not good:
            raise StudyError(f"Expected {text}.", hint="See docs/privacy.md.")


def exact_delta(epsilon: float, mu: float) -> float:
    """delta of a Gaussian release of strength `mu` at `epsilon`, without sampling."""
    tail = norm.logcdf(-mu / 2 - epsilon / mu) + epsilon
    return float(max(0.0, norm.cdf(mu / 2 - epsilon / mu) - math.exp(tail)))


def exact_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon at `delta` of releases of joint strength `mu`, without sampling."""
    if exact_delta(0.0, mu) <= delta:
        return 0.0
    high = 1.0
    while exact_delta(high, mu) > delta:
        high *= 2
        if high > LARGEST:
            return math.inf
    return float(brentq(lambda epsilon: exact_delta(epsilon, mu) - delta, 0.0, high, xtol=1e-12))


def strength(epsilon: float, delta: float) -> float:
    """The largest `mu` that spends `epsilon` at `delta`.

    Raises:
        StudyError: epsilon or delta outside its range.
    """
    if not 0 < epsilon <= 1000 or not 0 < delta < 0.1:
        raise StudyError(f"Expected 0 < epsilon <= 1000 and 0 < delta < 0.1, got {epsilon} and {delta}.")
    return float(brentq(lambda mu: exact_delta(epsilon, mu) - delta, 1e-9, 1e3, xtol=1e-13))


def noise_for(epsilon: float, delta: float, releases: int, sites_of_a_patient: int = 1) -> float:
    """Noise multiplier of each of `releases` equal releases from all patients that together spend `epsilon`.

    A patient at M sites changes a sum over sites by M clip norms: the noise is M times as large.
    """
    if releases < 1 or sites_of_a_patient < 1:
        raise StudyError("Expected at least one release, and patients at one site or more.")
    return sites_of_a_patient * math.sqrt(releases) / strength(epsilon, delta)
