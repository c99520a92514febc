"""The site's egress policy: what the hospital allows, held by the hospital."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .canonical import digest_of
from .errors import SetupError

PROFILES = ("evaluate_only", "masked")


@dataclass(frozen=True)
class SitePolicy:
    """Limits that the one door enforces.

    Attributes:
        name: shown in previews and reports.
        profile: `evaluate_only` (frozen dictionary, metrics only) or `masked` (heuristic protection).
        min_units: smallest number of units (patients, else slides, else source files) behind any released
            number; 11 satisfies ACRO's 10, CMS' "<11" and EMA's 1/11.
        round_to: released counts are multiples of this.
        max_message_bytes: largest message, in bytes.
        disclosure_control: False only for the named policy `public-data`, which reports must watermark.
    """

    name: str
    profile: str
    min_units: int = 11
    round_to: int = 5
    max_message_bytes: int = 512 * 1024 * 1024
    disclosure_control: bool = True

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise SetupError(f"Expected profile in {PROFILES}, got profile={self.profile}.")
        if self.disclosure_control and self.min_units < 3:
            raise SetupError(f"Expected min_units >= 3, got min_units={self.min_units}.")

    @property
    def digest(self) -> str:
        """SHA-256 of the policy, reported in every hello."""
        return digest_of(asdict(self))

    def check_simulation(self, simulation: bool) -> None:
        """Refuse to run without disclosure control outside a simulation."""
        if not self.disclosure_control and not simulation:
            raise SetupError(
                f"Expected a policy with disclosure control, got policy={self.name}.",
                hint="The policy public-data is for published images in simulations only.",
            )


POLICIES = {
    policy.name: policy
    for policy in (
        SitePolicy("masked", "masked"),
        SitePolicy("evaluate_only", "evaluate_only"),
        SitePolicy("public-data", "masked", min_units=1, round_to=1, disclosure_control=False),
    )
}


def named_policy(name: str) -> SitePolicy:
    """One of the built-in policies: masked, evaluate_only, public-data."""
    if name not in POLICIES:
        raise SetupError(f"Expected policy in {sorted(POLICIES)}, got policy={name}.")
    return POLICIES[name]
