"""Before a study starts: from how many patients on does a private mechanism beat doing nothing?

The mechanism is one pair of Gaussian releases on what a frozen public dictionary leaves unexplained (moments.py). The
rule comes from runs on synthetic data with known concepts and on real tokens; docs/privacy.md has this project's own.

    s   noise multiplier of each of the two releases            accountant.noise_for
    N   >= max(500, 330 s sqrt(d / 128)) patients               central noise (under secure aggregation)
    N sqrt(S)                                                   noise added at each of S sites
    f   >= 1.05 sqrt(2 d) s / N                               smallest share of the residual that shows above noise
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import StudyError
from .accountant import noise_for

RELEASES = 2
FEWEST, PER_NOISE, WIDTH = 500, 330.0, 128
EDGE = 1.05


@dataclass(frozen=True)
class Advice:
    """What a study of so many patients can expect.

    Attributes:
        epsilon, delta: of the whole study. noise: multiplier of each of the two releases.
        central, local: smallest number of patients with noise added once, and at every site.
        visible: smallest share of the residual that would be seen above central noise; None without patients.
        ratio: patients over `central`; None without patients.
        profile: `dp` where the mechanism pays with central noise, else `evaluate_only`; None without patients.
    """

    epsilon: float
    delta: float
    noise: float
    central: int
    local: int
    visible: float | None
    ratio: float | None
    profile: str | None


def advise(
    epsilon: float,
    delta: float,
    *,
    width: int,
    sites: int,
    sites_of_a_patient: int = 1,
    patients: int | None = None,
) -> Advice:
    """What `epsilon` buys.

    Args:
        width: of the encoder's tokens. sites: that would each add noise without secure aggregation.
        patients: in the whole study, a public number; None: not known yet.

    Raises:
        StudyError: a value outside its range.
    """
    if not 1 <= width <= 1 << 14 or sites < 1 or (patients is not None and patients < 1):
        raise StudyError("Expected width in 1 .. 16384, one site or more and one patient or more.")
    noise = noise_for(epsilon, delta, RELEASES, sites_of_a_patient)
    central = max(FEWEST, math.ceil(PER_NOISE * noise * math.sqrt(width / WIDTH)))
    local = math.ceil(central * math.sqrt(sites))
    if patients is None:
        return Advice(epsilon, delta, noise, central, local, None, None, None)
    visible = EDGE * math.sqrt(2 * width) * noise / patients
    profile = "dp" if patients >= central else "evaluate_only"
    return Advice(epsilon, delta, noise, central, local, visible, patients / central, profile)
