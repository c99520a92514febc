"""What a study promises its patients: one frozen object, of which no part can be changed without the others.

PrivacyPlan(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.01, steps=1000, delta=1e-5).epsilon  -> 1.83
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ..errors import StudyError
from .accountant import RELATIONS, check_release, pld_epsilon

URN = "urn:cytosae:privacy-plan:v1"
UNIT, ACCOUNTANT = "patient", "pld"
CAP = 10.0  # above it e^epsilon is over 20,000: nobody is told anything by such a promise


@dataclass(frozen=True)
class PrivacyPlan:
    """Gaussian releases of sums of clipped per-patient contributions.

    Attributes:
        clip_norm: largest L2 norm of a patient's contribution; from public data only.
        noise_multiplier: standard deviation of the noise over clip_norm.
        sampling_rate: chance of a patient to be in a step (Poisson). steps: releases. delta: of the promise.
        neighboring_relation: `add_or_remove_one` patient, or `replace_one`.
        sites_of_a_patient: at how many sites of the study one patient may be: M sites make M clip norms.
        unit, accountant: `patient` and `pld`; nothing else is offered.

    Guarantees (tests/unit/test_privacy_plan.py):
        P1. epsilon is computed from all other values whenever it is asked for; it can't be set.
        P2. A plan read from JSON states the epsilon that its values give, or is refused.
        P3. A patient at M sites costs what M times less noise costs.
    """

    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    delta: float
    neighboring_relation: str = RELATIONS[0]
    sites_of_a_patient: int = 1
    unit: str = UNIT
    accountant: str = ACCOUNTANT

    def __post_init__(self) -> None:
        check_release(
            self.noise_multiplier, self.sampling_rate, self.steps, self.delta, self.neighboring_relation
        )
        if not 0 < self.clip_norm < math.inf:
            raise StudyError(f"Expected clip_norm > 0, got {self.clip_norm}.")
        if not 1 <= self.sites_of_a_patient <= 1000:
            raise StudyError(f"Expected sites_of_a_patient >= 1, got {self.sites_of_a_patient}.")
        if (self.unit, self.accountant) != (UNIT, ACCOUNTANT):
            raise StudyError(f"Expected unit={UNIT} and accountant={ACCOUNTANT}: nothing else is offered.")

    @cached_property
    def epsilon(self) -> float:
        """What all steps together spend at `delta`."""
        noise = self.noise_multiplier / self.sites_of_a_patient
        return pld_epsilon(noise, self.sampling_rate, self.steps, self.delta, self.neighboring_relation)

    @property
    def meaningful(self) -> bool:
        """Whether epsilon is below the cap above which a promise means nothing."""
        return self.epsilon <= CAP

    def require(self, patients: int) -> None:
        """Raise StudyError unless this is a promise worth making to so many patients (a public number).

        delta is the chance that everything about somebody leaks: it must be well below one patient in all.
        """
        if patients < 1 or self.delta > 1 / (10 * patients):
            raise StudyError(
                f"Expected delta <= 1 / (10 patients), got delta={self.delta:g} with patients={patients}.",
                hint="At delta = 1 / patients a mechanism may publish one patient's data whole.",
            )
        if not self.meaningful:
            raise StudyError(
                f"Expected epsilon <= {CAP:g}, got epsilon={self.epsilon:.3g}: no meaningful guarantee.",
                hint="More noise, fewer steps, or profile evaluate_only.",
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, with epsilon."""
        return {"urn": URN, **asdict(self), "epsilon": round(self.epsilon, 6)}


def plan_from_dict(values: Mapping[str, Any]) -> PrivacyPlan:
    """A plan from JSON values, its epsilon computed again.

    Raises:
        StudyError: other keys, or an epsilon that these values do not give.
    """
    given = dict(values)
    stated = given.pop("epsilon", None)
    if given.pop("urn", None) != URN:
        raise StudyError(f"Expected urn: {URN}.")
    try:
        plan = PrivacyPlan(**given)
    except TypeError:
        raise StudyError("Expected the keys of a privacy plan, and no others.") from None
    if not isinstance(stated, int | float) or abs(stated - plan.epsilon) > 1e-5 * max(1.0, plan.epsilon):
        raise StudyError(f"Expected epsilon={plan.epsilon:.6g} from these values, got epsilon={stated}.")
    return plan
