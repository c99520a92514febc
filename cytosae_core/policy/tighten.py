"""What a study asks for against what the policy allows. A study can only tighten."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..allowed import ALLOWED, MAX_OVERHEAD_BYTES, Field
from ..errors import StudyError
from .keys import BY_ATTRIBUTE, MIN_UNITS, is_training, names_of
from .site_policy import SitePolicy

if TYPE_CHECKING:
    from ..config import StudyConfig

# Steps of a study beside its rounds and how often each is asked (describe: final, first and random dictionary).
STEPS = {
    "train": {"hello": 1, "moments": 1, "begin": 1, "describe": 3, "score": 1, "close": 1},
    "validate": {"hello": 1, "describe": 3, "score": 1, "close": 1},
}
PRIVATE_STEPS = {
    "train": {"hello": 1, "second": 1, "third": 1, "describe": 1, "close": 1},
    "validate": {"hello": 1, "describe": 1, "close": 1},
}
SUMMED_STEPS = {
    "hello": 1, "sum_keys": 2, "sum_shares": 2, "sum_masked": 2, "sum_confirm": 2, "sum_unmask": 2, "describe": 1,
    "close": 1,
}  # fmt: skip
# Steps that tell no quality.
QUIET = frozenset({"hello", "moments", "close", "second", "third", *SUMMED_STEPS} - {"describe"})
# profile of the policy -> profiles that a study may use under it
UNDER = {"evaluate_only": ("evaluate_only",), "masked": ("masked", "evaluate_only"), "dp": ("dp",)}


@dataclass(frozen=True)
class Demand:
    """The most that a study can ask of one site, from its protocol and the table `ALLOWED`.

    Attributes:
        rounds, messages, bytes: in the whole study, without repeats.
        message_bytes, numbers: in its largest step (`numbers` outside updates).
        names: of tensors and metrics.
    """

    rounds: int
    messages: int
    bytes: int
    message_bytes: int
    numbers: int
    names: tuple[str, ...]


def demand(study: StudyConfig) -> Demand:
    """What `study` asks for."""
    times = steps_of(study)
    per_kind = {
        kind: [field for field in _fields(kind, study.profile) if _asked(field, study)] for kind in times
    }
    size = {
        kind: MAX_OVERHEAD_BYTES
        + sum(_size(field, study.dims) * np.dtype(field.dtype).itemsize for field in found)
        for kind, found in per_kind.items()
    }
    numbers = {
        kind: sum(_size(field, study.dims) for field in found if field.rule != "update")
        for kind, found in per_kind.items()
    }
    names = dict.fromkeys(field.name for found in per_kind.values() for field in found)
    return Demand(
        rounds=times.get("round", 0), messages=sum(times.values()),
        bytes=sum(size[kind] * n for kind, n in times.items()),
        message_bytes=max(size.values()), numbers=max(numbers.values()), names=tuple(names),
    )  # fmt: skip


def steps_of(study: StudyConfig) -> dict[str, int]:
    """Kind of message -> how often the study asks for it, without repeats."""
    if study.profile == "dp":
        return SUMMED_STEPS if study.privacy.secure_aggregation else PRIVATE_STEPS[study.kind]
    rounds = {"round": study.training.rounds} if study.kind == "train" else {}
    return STEPS[study.kind] | rounds


def _fields(kind: str, profile: str) -> Iterator[Field]:
    asked = kind not in QUIET
    for field in ALLOWED:
        if profile in field.profiles and (field.kind == kind or (field.kind == "*" and asked)):
            yield field


def _asked(field: Field, study: StudyConfig) -> bool:
    """Whether the protocol asks for a table that only some studies have."""
    if field.name.startswith("recurrence"):
        return study.statistics.recurrence_steps > 0 and study.dictionary.model == "pursuit"
    return field.name != "subgroup" or bool(study.statistics.subgroups)


def _size(field: Field, dims: Mapping[str, int]) -> int:
    return math.prod(int(dim) if dim.isdigit() else dims[dim] for dim in field.shape)


def conflicts(policy: SitePolicy, study: StudyConfig) -> list[str]:
    """Where `study` asks for more than `policy` allows, one line each; empty when it fits."""
    out = []
    if study.profile not in UNDER[policy.profile]:
        out.append(_conflict(policy, "profile", policy.profile, f"profile: {study.profile}"))
    if policy.site and policy.site not in study.sites:
        out.append(_conflict(policy, "site", policy.site, f"sites: {', '.join(study.sites)}"))
    if policy.disclosure_control and policy.min_units < MIN_UNITS:
        out.append(_conflict(policy, "min_units", policy.min_units, f"min_units: {study.min_units}"))
    asked = demand(study)
    budgets = (
        ("rounds", asked.rounds, "training.rounds"),
        ("messages_total", asked.messages, "messages in all"),
        ("bytes_total", asked.bytes, "bytes in all"),
        ("max_message_bytes", asked.message_bytes, "bytes in its largest message"),
        ("metrics_per_round", asked.numbers, "numbers in its largest step"),
    )
    for attribute, wanted, what in budgets:
        if wanted > getattr(policy, attribute):
            out.append(_conflict(policy, attribute, getattr(policy, attribute), f"{what}: {wanted}"))
    if study.profile == policy.profile == "dp":
        out += _of_privacy(policy, study)
    for name in asked.names if study.profile in UNDER[policy.profile] else ():
        if not policy.allows(name):
            place = "tensors" if name in names_of(policy.profile, "tensors") else "metrics"
            out.append(_conflict(policy, place, f"without {name}", f"{name}"))
    return out


def _of_privacy(policy: SitePolicy, study: StudyConfig) -> Iterator[str]:
    terms = study.privacy
    if terms.epsilon > float(policy.epsilon_total):
        yield _conflict(policy, "epsilon_total", policy.epsilon_total, f"privacy.epsilon: {terms.epsilon:g}")
    if terms.delta > float(policy.delta_max):
        yield _conflict(policy, "delta_max", policy.delta_max, f"privacy.delta: {terms.delta:g}")


def _conflict(policy: SitePolicy, attribute: str, held: object, asked: str) -> str:
    path = BY_ATTRIBUTE[attribute].path
    line = f" (line {policy.lines[path]})" if path in policy.lines else ""
    return f"policy {policy.name}{line} {path}: {held} | study {asked}"


def tightened(policy: SitePolicy, study: StudyConfig) -> SitePolicy:
    """The policy under which `study` runs: in every key the stricter of the two. Budgets stay the policy's: they
    count over all studies, and a study that needs more than a whole budget is refused here.

    Raises:
        StudyError: code `policy`, reason POLICY: the study asks for more than the policy allows; every line of
            the message is one conflict.
    """
    found = conflicts(policy, study)
    if found:
        raise StudyError(
            "Expected a study that asks for no more than the policy allows:\n  " + "\n  ".join(found) + "\n",
            hint="Change the study, or write a new policy and let an officer sign it.", code="policy",
            reason="POLICY",
        )  # fmt: skip
    asked = demand(study)
    training = {field.name for field in ALLOWED if is_training(field)}
    return replace(
        policy,
        profile=study.profile,
        min_units=max(policy.min_units, study.min_units) if policy.disclosure_control else policy.min_units,
        tensors=tuple(name for name in policy.tensors if name in asked.names and name in training),
        metrics=tuple(name for name in policy.metrics if name in asked.names),
    )
