"""The site's egress policy: what the hospital allows, held by the hospital."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ..canonical import canonical_json, parse_json, sha256_hex
from ..errors import CytosaeError, SetupError
from ..keys import fingerprint
from .keys import BY_ATTRIBUTE, KEYS, MIN_UNITS, PROFILES, ROUND_TO, URN, check_key, day_of, names_of

EVERY = ("every name of the profile",)
# A policy made in code may go below what a file may hold: for tests, simulations and `public-data`.
_CODE_LOW = {"min_units": 3, "round_to": 1, "max_message_bytes": 1, "bytes_total": 1}
_OPTIONAL = ("site", "valid_from", "valid_until", "epsilon_total", "delta_max")


@dataclass(frozen=True)
class SitePolicy:
    """Limits that the one door enforces. Decimals are text. docs/policy.md explains every key.

    Attributes:
        name: shown in previews and reports; travels.
        profile: `evaluate_only` (frozen dictionary, metrics only), `masked` (heuristic protection) or `dp`.
        min_units: smallest number of units (patients, else slides, else source files) behind any released
            number; 11 satisfies ACRO's 10, CMS' "<11" and EMA's 1/11.
        round_to: released counts are multiples of this.
        max_message_bytes: largest message, in bytes.
        disclosure_control: False only for the named policy `public-data`, which reports must watermark.
        site, valid_from, valid_until: who holds it and when it holds; empty for the policies made in code.
        rounds, bytes_total, messages_total: budgets over all studies since `valid_from`.
        metrics_per_round: released numbers outside updates in one step of one study.
        epsilon_total, delta_max: only for `dp`, over all studies.
        tensors, metrics: names of `allowed.ALLOWED` that may leave; the default is every name of the profile.
        max_unit_share, nk_n, nk_k, p_ratio: dominance rules (S4).
        self_attack_max_cos, dsnr_max, fvu_max, fvu_max_ratio: thresholds of the gates.
        approval: what waits for an officer: `first_round_and_report`, `always` or `never`.
        signatures_needed, officers: who must sign the policy and its changes.
        studies: fingerprints of study keys that may ask; empty for any.
        lines: line of every key in the file it came from; no part of the policy.
    """

    name: str
    profile: str
    min_units: int = MIN_UNITS
    round_to: int = ROUND_TO
    max_message_bytes: int = 512 * 1024 * 1024
    disclosure_control: bool = True
    site: str = ""
    valid_from: str = ""
    valid_until: str = ""
    rounds: int = 100
    bytes_total: int = 16 * 1024**3
    messages_total: int = 1000
    metrics_per_round: int = 8 * 1024**2
    epsilon_total: str = ""
    delta_max: str = ""
    tensors: tuple[str, ...] = EVERY
    metrics: tuple[str, ...] = EVERY
    max_unit_share: str = "0.50"
    nk_n: int = 2
    nk_k: str = "0.90"
    p_ratio: str = "0.10"
    self_attack_max_cos: str = "0.75"
    dsnr_max: str = "0.50"
    fvu_max: str = "0.95"
    fvu_max_ratio: str = "1.25"
    approval: str = "never"
    signatures_needed: int = 1
    officers: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise SetupError(f"Expected profile in {PROFILES}, got profile={self.profile}.", reason="POLICY")
        for kind in ("tensors", "metrics"):
            names = getattr(self, kind)
            object.__setattr__(self, kind, names_of(self.profile, kind) if names == EVERY else tuple(names))
        for key in KEYS:
            value = getattr(self, key.attribute)
            if value == "" and key.attribute in _OPTIONAL:
                continue
            low = _CODE_LOW.get(key.attribute) if self.disclosure_control else 1
            key = key if low is None or key.attribute not in _CODE_LOW else replace(key, low=str(low))
            check_key(key, value, self.profile)
        self._check_together()

    def _check_together(self) -> None:
        if bool(self.valid_from) != bool(self.valid_until) or (self.valid_until < self.valid_from):
            raise SetupError("Expected valid.from <= valid.until.", reason="POLICY_TIME")
        if (self.profile == "dp") != bool(self.epsilon_total and self.delta_max):
            raise SetupError(
                "Expected privacy.epsilon_total and privacy.delta_max in profile dp, and only there.",
                hint="Other profiles print no epsilon, so they have none to limit.", reason="POLICY",
            )  # fmt: skip
        if self.officers and self.signatures_needed > len(self.officers):
            raise SetupError("Expected signatures_needed <= number of officers.", reason="POLICY")

    def to_dict(self) -> dict[str, Any]:
        """The policy as JSON values, in the file's tables."""
        out: dict[str, Any] = {"urn": URN, "disclosure_control": self.disclosure_control}
        for key in KEYS:
            value = getattr(self, key.attribute)
            if value == "" and key.path.startswith("privacy."):
                continue
            table, _, last = key.path.rpartition(".")
            target = out.setdefault(table, {}) if table else out
            target[last] = list(value) if isinstance(value, tuple) else value
        return out

    def to_json(self) -> bytes:
        """Canonical JSON: what officers sign, what the log and the bundle name by digest."""
        return canonical_json(self.to_dict())

    @property
    def digest(self) -> str:
        """SHA-256 of the policy, reported in every hello."""
        return sha256_hex(self.to_json())

    def allows(self, name: str) -> bool:
        """Whether a tensor or metric of this name may leave."""
        return name in self.tensors or name in self.metrics

    def check_simulation(self, simulation: bool) -> None:
        """Refuse to run without disclosure control, or below its floor, outside a simulation."""
        if not self.disclosure_control and not simulation:
            raise SetupError(
                f"Expected a policy with disclosure control, got policy={self.name}.",
                hint="The policy public-data is for published images in simulations only.",
            )
        if not simulation and (self.min_units < MIN_UNITS or self.round_to < ROUND_TO):
            raise SetupError(
                f"Expected min_units >= {MIN_UNITS} and round_to >= {ROUND_TO}, got min_units={self.min_units} "
                f"round_to={self.round_to}.",
                hint="Lower values are for simulations.", code="policy", reason="POLICY",
            )  # fmt: skip

    def check_time(self, now: float) -> None:
        """Refuse before the first and after the last day; `now` in unix seconds.

        Raises:
            SetupError: code `policy`, reason POLICY_TIME.
        """
        if not self.valid_from:
            return
        first, last = BY_ATTRIBUTE["valid_from"], BY_ATTRIBUTE["valid_until"]
        start = _midnight(day_of(self.valid_from, first))
        end = _midnight(day_of(self.valid_until, last) + timedelta(days=1))
        if not start <= now < end:
            raise SetupError(
                f"Expected a policy that is valid now, got {self.valid_from} to {self.valid_until}.",
                hint="Write a new period with `cytosae site policy new`, let an officer sign it.",
                code="policy", reason="POLICY_TIME",
            )  # fmt: skip

    @property
    def starts_at(self) -> float:
        """First second of the period, unix seconds; 0 without a period. Budgets count from here."""
        return _midnight(day_of(self.valid_from, BY_ATTRIBUTE["valid_from"])) if self.valid_from else 0.0

    def check_study_key(self, public_hex: str) -> None:
        """Refuse a study key that is not among `studies`, if any are listed."""
        name = fingerprint(public_hex)
        if self.studies and name not in self.studies:
            raise SetupError(
                f"Expected a study key that the policy lists, got {name}.",
                hint="Compare the fingerprint by phone, then add it under studies and sign the policy again.",
                code="policy", reason="POLICY",
            )  # fmt: skip


def _midnight(day: Any) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


def policy_from_dict(values: Mapping[str, Any], lines: Mapping[str, int] | None = None) -> SitePolicy:
    """A policy from the file's tables; unknown, missing and badly typed keys are errors.

    Args:
        values: as `SitePolicy.to_dict` makes them.
        lines: line of every key, for messages.
    """
    lines = lines or {}
    found = dict(_flatten(values))
    if found.pop("urn", None) != URN:
        raise SetupError(f"Expected urn: {URN} at the top of the policy.", reason="POLICY")
    arguments: dict[str, Any] = {"disclosure_control": found.pop("disclosure_control", True)}
    for key in KEYS:
        if key.path in found:
            value = found.pop(key.path)
            arguments[key.attribute] = tuple(value) if isinstance(value, list) else value
    for path in found:
        raise SetupError(
            f"Expected a known key, got {path[:60]!r}{_line(path, lines)}.",
            hint="docs/policy.md lists all keys.", reason="POLICY",
        )  # fmt: skip
    for needed in ("name", "profile"):
        if needed not in arguments:
            raise SetupError(f"Expected the key {needed}.", reason="POLICY")
    try:
        return SitePolicy(**arguments, lines=lines)
    except TypeError as error:
        raise SetupError("Expected every key of its type.", reason="YAML_TYPE") from error


def policy_from_json(data: bytes) -> SitePolicy:
    """A policy from its canonical JSON, as in a bundle.

    Raises:
        SetupError: not a policy. MessageError: not strict JSON.
    """
    values = parse_json(data, max_bytes=64 * 1024)
    if not isinstance(values, dict):
        raise SetupError("Expected a table of settings.", reason="POLICY")
    return policy_from_dict(values)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(path, value) of every key; an unknown table stays one entry, so that its name is what is reported."""
    tables = {key.path.partition(".")[0] for key in KEYS if "." in key.path}
    out: list[tuple[str, Any]] = []
    for name, value in values.items():
        if not prefix and name in tables:
            if not isinstance(value, Mapping):
                raise SetupError(f"Expected {name} to be a table.", reason="YAML_TYPE")
            out += _flatten(value, f"{name}.")
        else:
            out.append((prefix + name, value))
    return out


def _line(path: str, lines: Mapping[str, int]) -> str:
    return f", line {lines[path]}" if path in lines else ""


def with_line(error: CytosaeError, file: str, lines: Mapping[str, int]) -> CytosaeError:
    """The same error as the policy's: code `policy`, naming the file, and the line of the key in its text."""
    text = str(error.args[0])
    if file not in text:
        paths = [key.path for key in KEYS if f"Expected {key.path} " in text]
        text += f" ({file}:{lines[paths[0]]})" if paths and paths[0] in lines else f" ({file})"
    return SetupError(text, hint=error.hint, code="policy", reason=error.reason or "POLICY")


_WIDE: dict[str, Any] = {
    "rounds": 100_000,
    "bytes_total": 1 << 50,
    "messages_total": 10_000_000,
    "metrics_per_round": 1 << 40,
}
POLICIES = {
    policy.name: policy
    for policy in (
        SitePolicy("masked", "masked"),
        SitePolicy("evaluate_only", "evaluate_only"),
        SitePolicy("dp", "dp", epsilon_total="8", delta_max="0.001"),
        SitePolicy("public-data", "masked", min_units=1, round_to=1, disclosure_control=False, **_WIDE),
    )
}
ATTRIBUTES = tuple(item.name for item in fields(SitePolicy))


def named_policy(name: str) -> SitePolicy:
    """One of the built-in policies: masked, evaluate_only, dp, public-data."""
    if name not in POLICIES:
        raise SetupError(f"Expected policy in {sorted(POLICIES)}, got policy={name}.")
    return POLICIES[name]
