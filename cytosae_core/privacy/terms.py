"""What a study under the profile `dp` promises every patient, and how the promise is divided between its releases.

    describe           concept statistics of every site (privacy/metrics.py)
    second, third      residual moments, only where the study adds concepts (privacy/moments.py)

mu^2 of the whole promise is divided by the shares below; a release of share w has the noise multiplier
M / (mu sqrt(w)), for patients at up to M sites.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import StudyError
from .accountant import strength
from .metrics import Layout
from .moments import MAX_RANK, third_clip
from .plan import CAP, PrivacyPlan

SHARES = {"describe": 1.0}
# The second moment finds the directions and gets most of what concepts may cost: tuned on made worlds (decision 013).
SHARES_WITH_ATOMS = {"second": 0.48, "third": 0.12, "describe": 0.4}


@dataclass(frozen=True)
class PrivacyTerms:
    """Part `privacy` of a protocol; all zero where the profile is another one.

    Attributes:
        epsilon, delta: of the whole study, for every patient (one patient more or less).
        patients: fewest patients of a site that takes part. patients_in_all: of all sites, at most; both public.
        sites_of_a_patient: at how many sites one patient may be.
        classes_of_a_patient: of how many classes one patient has cells; those with more count less.
        atoms: rows at the end of the dictionary kept for concepts that residual moments add; 0: none are asked for.
        extra_k: how many of them a token may use beside its k.
        tokens_of_a_patient: drawn for residual moments.
        second_clip: C2, the median norm of a public patient's second moment.
        secure_aggregation: residual moments are summed under masks, with noise in shares.
    """

    epsilon: float = 0.0
    delta: float = 0.0
    patients: int = 0
    patients_in_all: int = 0
    sites_of_a_patient: int = 1
    classes_of_a_patient: int = 1
    atoms: int = 0
    extra_k: int = 4
    tokens_of_a_patient: int = 64
    second_clip: float = 0.0
    secure_aggregation: bool = False

    @property
    def promised(self) -> bool:
        """Whether anything is promised at all."""
        return self.epsilon > 0

    def check(self, sites: int) -> None:
        """Raise StudyError unless this is a promise that can be kept and means something."""
        if not 0 < self.epsilon <= CAP:
            raise StudyError(
                f"Expected 0 < privacy.epsilon <= {CAP:g}, got epsilon={self.epsilon:g}: no meaningful guarantee.",
                hint="e^10 is 22,000. Look at `cytosae study plan-privacy`.",
            )
        if not 1 <= self.patients <= self.patients_in_all:
            raise StudyError(
                "Expected 1 <= privacy.patients <= privacy.patients_in_all.", hint="Public numbers."
            )
        if not 0 < self.delta <= 1 / (10 * self.patients_in_all):
            raise StudyError(
                f"Expected 0 < privacy.delta <= 1 / (10 patients), got delta={self.delta:g} with "
                f"patients_in_all={self.patients_in_all}.",
                hint="At delta = 1 / patients a mechanism may publish one patient's data whole.",
            )
        if not 1 <= self.sites_of_a_patient <= sites or self.classes_of_a_patient < 1:
            raise StudyError(
                f"Expected 1 <= privacy.sites_of_a_patient <= {sites}, classes_of_a_patient >= 1."
            )
        if self.secure_aggregation and sites < 3:
            raise StudyError(
                "Expected at least 3 sites for privacy.secure_aggregation: two see each other's sum."
            )
        if self.atoms and (self.second_clip <= 0 or self.tokens_of_a_patient < 2 or self.extra_k < 1):
            raise StudyError(
                "Expected privacy.second_clip > 0, tokens_of_a_patient >= 2 and extra_k >= 1 with privacy.atoms.",
                hint="second_clip comes from public patients: docs/privacy.md.",
            )

    @property
    def shares(self) -> dict[str, float]:
        """Release -> its share of mu^2; they sum to 1."""
        return dict(SHARES_WITH_ATOMS if self.atoms else SHARES)

    def plan(self, release: str, layout: Layout, rank: int = MAX_RANK) -> PrivacyPlan:
        """The promise of one release.

        Args:
            release: a key of `shares`. layout: of the statistics. rank: of the residual's subspace, for `third`.
        """
        mu = strength(self.epsilon, self.delta) * math.sqrt(self.shares[release])
        clip = {
            "describe": layout.clip,
            "second": self.second_clip,
            "third": third_clip(rank, self.tokens_of_a_patient) if release == "third" and rank else 1.0,
        }[release]
        return PrivacyPlan(
            clip_norm=clip, noise_multiplier=self.sites_of_a_patient / mu, sampling_rate=1.0, steps=1,
            delta=self.delta, sites_of_a_patient=self.sites_of_a_patient,
        )  # fmt: skip
