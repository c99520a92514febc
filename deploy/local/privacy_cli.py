"""`cytosae study plan-privacy`: what a noise multiplier promises, and whether it pays, before a study starts."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cytosae_core.privacy.advice import Advice
    from cytosae_core.privacy.plan import PrivacyPlan


def register(commands: Any) -> None:
    """Add the command."""
    made = commands.add_parser(
        "plan-privacy", help="epsilon of a noise multiplier, and from how many patients on it pays"
    )
    made.add_argument(
        "--noise-multiplier", type=float, required=True, metavar="S", help="noise over clip norm"
    )
    made.add_argument(
        "--sampling-rate", type=float, default=1.0, metavar="Q", help="chance of a patient per step"
    )
    made.add_argument("--steps", type=int, default=1, metavar="T", help="releases")
    made.add_argument("--delta", type=float, default=1e-5, metavar="D")
    made.add_argument("--clip-norm", type=float, default=1.0, metavar="C", help="from public data only")
    made.add_argument("--patients", type=int, metavar="N", help="in the whole study, a public number")
    made.add_argument("--sites", type=int, default=5, metavar="SITES")
    made.add_argument(
        "--sites-of-a-patient", type=int, default=1, metavar="M", help="one patient may be at M sites"
    )
    made.add_argument("--width", type=int, default=768, metavar="WIDTH", help="of the encoder's tokens")
    made.add_argument("--json", action="store_true")
    made.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from cytosae_core.privacy.accountant import opacus_epsilon, pld_epsilon
    from cytosae_core.privacy.advice import advise
    from cytosae_core.privacy.plan import CAP, PrivacyPlan

    plan = PrivacyPlan(
        options.clip_norm, options.noise_multiplier, options.sampling_rate, options.steps, options.delta,
        sites_of_a_patient=options.sites_of_a_patient,
    )  # fmt: skip
    noise = plan.noise_multiplier / plan.sites_of_a_patient
    given = (noise, plan.sampling_rate, plan.steps, plan.delta)
    facts = {
        **plan.to_dict(), "epsilon": plan.epsilon, "epsilon_opacus": opacus_epsilon(*given),
        "epsilon_replace_one": pld_epsilon(*given, "replace_one"), "meaningful": plan.meaningful, "cap": CAP,
    }  # fmt: skip
    found = advise(
        min(plan.epsilon, CAP), plan.delta, width=options.width, sites=options.sites,
        sites_of_a_patient=plan.sites_of_a_patient, patients=options.patients,
    ) if plan.epsilon > 0 else None  # fmt: skip
    if options.json:
        print(json.dumps({**facts, "advice": None if found is None else vars(found)}, allow_nan=False))
    else:
        _print(plan, facts, found, options)
    if options.patients is not None:
        plan.require(options.patients)
    return 0 if plan.meaningful else 1


def _print(
    plan: PrivacyPlan, facts: dict[str, Any], found: Advice | None, options: argparse.Namespace
) -> None:
    print(
        f"epsilon {plan.epsilon:.3f} at delta {plan.delta:g} for every {plan.unit} (one patient more or less)"
    )
    print(f"  if one patient is exchanged for another   {facts['epsilon_replace_one']:.3f}")
    print(f"  by Opacus' accountant, for comparison      {facts['epsilon_opacus']:.3f}")
    if not plan.meaningful:
        print(f"No meaningful guarantee: epsilon is above {facts['cap']:g}.")
        return
    if found is not None:
        print("\n".join(_advice(found, options)))


WORTH = {
    "dp": "Here adding concepts would pay: kind train, profile dp, with secure aggregation.",
    "evaluate_only": "Here adding concepts would not pay: keep the public dictionary frozen.",
}


def _advice(found: Advice, options: argparse.Namespace) -> list[str]:
    lines = [
        "",
        f"The same promise, for two releases on what a frozen public dictionary leaves (width {options.width}):",
        f"  noise multiplier of each                   {found.noise:.2f}",
        f"  pays from                                  {found.central:,} patients on, noise added once",
        f"                                             {found.local:,} with noise at each of {options.sites} sites",
    ]
    if found.visible is not None:
        lines.append(
            f"  with {options.patients:,} patients, visible is {found.visible:.1%} of the rest or more"
        )
    end = WORTH.get(found.profile or "", "Give --patients to learn whether it pays.")
    return [*lines, "", end, "Statistics under dp (kind: validate, profile: dp) need no such number."]
