"""A policy in plain sentences, for people who decide about it and do not read YAML."""

from __future__ import annotations

from datetime import date

from ..allowed import ALLOWED, NEVER
from ..keys import fingerprint
from .site_policy import SitePolicy

PROFILES = {
    "evaluate_only": "Only measurements leave. The dictionary that is measured is fixed; nothing is trained here.",
    "masked": "Measurements leave, and changes of dictionary rows that enough patients share. This is heuristic "
    "protection: no cell is reconstructed as far as we could measure, but somebody who already holds a cell may "
    "guess that it was used. No privacy guarantee in numbers (epsilon) is claimed.",
    "dp": "Only noised statistics leave, with a privacy guarantee in numbers (epsilon) for every patient.",
}
APPROVAL = {
    "first_round_and_report": "An officer looks at the first dictionary update and at the report's tables before "
    "they leave. All else leaves without a person looking when it passes every check.",
    "always": "An officer looks at every reply before it leaves.",
    "never": "No person looks before something leaves. The checks alone decide.",
}


def explain(policy: SitePolicy) -> dict[str, list[str]]:
    """Heading -> sentences, in reading order."""
    return {
        "What this is": _what(policy),
        "When": _when(policy),
        "What may leave": _leaves(policy),
        "How patients are protected in it": _protected(policy),
        "How much": _limits(policy),
        "Who approves": _approves(policy),
        "Who may ask": _asks(policy),
        "What never leaves": [f"{item[0].upper()}{item[1:]}." for item in NEVER],
        "What this cannot do": [
            "It limits what this program sends. It cannot stop other programs or people: the firewall rules in "
            "deploy/ and the hospital's own rules do that.",
            "Budgets are kept in a file on this machine; who deletes it resets them. The log that auditors read "
            "shows such a reset.",
        ],
    }


def _what(policy: SitePolicy) -> list[str]:
    holder = f"of site {policy.site}" if policy.site else "built into the program, for trials and simulations"
    out = [f"Policy {policy.name}, {holder}. Profile {policy.profile}.", PROFILES[policy.profile]]
    if not policy.disclosure_control:
        out.append(
            "WARNING: disclosure control is OFF. For published images in simulations, never for patients."
        )
    return out


def _when(policy: SitePolicy) -> list[str]:
    if not policy.valid_from:
        return ["No period is set. A policy file always has one."]
    return [
        f"From {_day(policy.valid_from)} until the end of {_day(policy.valid_until)} (UTC). Outside these days "
        "nothing leaves."
    ]


def _day(text: str) -> str:
    day = date.fromisoformat(text)
    return f"{day.day} {day:%B %Y}"


def _leaves(policy: SitePolicy) -> list[str]:
    out = ["Digests (fingerprints) of the software, the encoder and this policy."]
    groups: dict[tuple[str, str], list[str]] = {}
    for field in ALLOWED:
        if policy.profile in field.profiles and policy.allows(field.name):
            groups.setdefault((field.kind, field.why), []).append(field.name)
    for (kind, why), names in groups.items():
        out.append(
            f"{'Most steps' if kind == '*' else f'Step {kind}'}, {', '.join(names)}: {why.rstrip('?')}."
        )
    if len(out) == 1:
        out.append("Nothing else: this version of the program has no release under this profile and list.")
    return [*out, "Everything that is not in this list is refused, and the refusal is logged."]


def _protected(policy: SitePolicy) -> list[str]:
    if not policy.disclosure_control:
        return ["Not at all: see the warning above."]
    share, pair = _percent(policy.max_unit_share), _percent(policy.nk_k)
    return [
        f"Every number has at least {policy.min_units} patients behind it; others are left out, without saying why.",
        f"Counts are multiples of {policy.round_to}. Measurements have at most 4 significant digits.",
        f"A dictionary row or a sum is left out when one patient makes up more than {share} of it, {policy.nk_n} "
        f"patients {pair} or more, or all but the two largest less than {_percent(policy.p_ratio)} of the largest.",
        f"The same question is not answered again about fewer than {policy.min_units} patients more or less, in any "
        "study, so that no one patient can be found by subtracting.",
        f"Updates that point at a single cell (cosine above {policy.self_attack_max_cos}) are left out.",
    ]


def _percent(text: str) -> str:
    return f"{float(text) * 100:g} %"


def _limits(policy: SitePolicy) -> list[str]:
    out = [
        f"At most {policy.messages_total:,} replies and {_bytes(policy.bytes_total)} in all, "
        f"{_bytes(policy.max_message_bytes)} in one reply, "
        f"{policy.metrics_per_round:,} numbers in one step of one study.",
    ]
    if policy.profile == "masked":
        out.append(f"At most {policy.rounds:,} dictionary updates in all.")
    if policy.epsilon_total:
        out.append(
            f"One patient's privacy loss: epsilon {policy.epsilon_total} at delta {policy.delta_max}, in all."
        )
    return [*out, "All studies together; counted on disk before anything leaves."]


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} bytes"


def _approves(policy: SitePolicy) -> list[str]:
    out = [APPROVAL[policy.approval]]
    if policy.officers:
        names = ", ".join(fingerprint(officer) for officer in policy.officers)
        out.append(f"Officers' keys: {names}.")
        needed = policy.signatures_needed
        out.append(f"{needed} {'signature' if needed == 1 else 'signatures'} needed to change this policy.")
    else:
        out.append(
            "No officer is named yet. Outside simulations nothing leaves under a policy that no officer signed."
        )
    return out


def _asks(policy: SitePolicy) -> list[str]:
    if policy.studies:
        return [f"Only the studies with these keys: {', '.join(policy.studies)}."]
    return [
        "Any study that the hospital joins by hand. List key fingerprints under `studies` to narrow this."
    ]
