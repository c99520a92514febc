"""THE BOUNDARY. Everything that leaves a site passes `seal`, default deny, against the table `ALLOWED`.

Hospital IT reads this file and the site's policy, nothing else. What is not in the table cannot leave; every
value carries the number of units (patients, else slides, else source files) behind it, and the door itself
suppresses what too few stand behind. Honest limit: Python cannot stop code at the site from opening a socket;
this is a review boundary, and the operating system's egress rules in `deploy/` are the enforcing one.

Suppressed values are NaN in `metric` tensors and exact zeros in `update` tensors, whatever the reason was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .allowed import ALLOWED, HELLO_FACTS, MAX_OVERHEAD_BYTES, NEVER, Field
from .envelope import REPLY, Envelope, pack, unpack
from .errors import WIRE_CODES, CytosaeError, EgressError, MessageError
from .keys import SigningKey
from .policy import SitePolicy
from .privacy.disclosure import protect_counts, protect_hello, round_decimals, round_significant
from .privacy.plan import PrivacyPlan
from .sealed import LOG_LABEL, REPLY_LABEL, join_wire, seal_box
from .tensors import pack_tensors, unpack_tensors

__all__ = [
    "ALLOWED", "GATE", "NEVER", "Blocked", "Door", "Field", "Outgoing", "Question", "Release", "Reply",
    "describe", "inspect", "open", "read", "refuse", "round_significant", "seal", "sign",
]  # fmt: skip
Array = NDArray[Any]
MIN_RATERS = 3  # votes of fewer people could be laid at one person's door; no policy lowers it


@dataclass(frozen=True)
class Release:
    """One tensor on its way out: values, and the number of units behind each (broadcast to its shape)."""

    values: Array
    units: Array | int


@dataclass(frozen=True)
class Reply:
    """An opened reply. `suppressed` counts values withheld per tensor; `code` is set when refused."""

    site: str
    kind: str
    round: int
    status: str
    code: str
    facts: dict[str, str]
    suppressed: dict[str, int]
    tensors: dict[str, Array] = field(default_factory=dict)
    sha256: str = ""
    size: int = 0


GATE = (
    "known field",
    "dtype, shape, bytes",
    "finite",
    "disclosure control",
    "leakage checks",
    "budget and approval",
    "sign",
    "log",
    "send",
)


class Blocked(EgressError):
    """The door stopped a reply in gate step `step` (1 to 9, names in `GATE`). Nothing left."""

    def __init__(self, step: int, message: str, **more: str) -> None:
        super().__init__(message, **more)
        self.step = step


@dataclass(frozen=True)
class Outgoing:
    """What passed steps 1 to 5: protected tensors, and how many values were withheld in each.

    Attributes:
        gate: what the leakage checks measured, for the log: id, value and limit as decimal text.
        private: the promise that the noise in these tensors keeps; only under `dp`.
    """

    context: dict[str, Any]
    tensors: dict[str, Array]
    suppressed: dict[str, int]
    facts: dict[str, str]
    gate: list[dict[str, str]]
    body: bytes
    private: PrivacyPlan | None = None

    @property
    def numbers(self) -> int:
        """Released numbers outside updates: what the metrics budget counts."""
        kind = str(self.context["kind"])
        return sum(v.size for name, v in self.tensors.items() if _find(kind, name, "").rule != "update")


# Reads the tensors exactly as they would leave; raises EgressError when a cell could be read back from them.
Leakage = Callable[[Mapping[str, Array]], Sequence[Mapping[str, str]]]


def inspect(
    context: Mapping[str, Any],
    releases: Mapping[str, Release],
    facts: Mapping[str, str],
    policy: SitePolicy,
    dims: Mapping[str, int],
    leakage: Leakage | None = None,
    private: PrivacyPlan | None = None,
) -> Outgoing:
    """Gate steps 1 to 5: what would leave, or `Blocked`. Pure: nothing is written, signed or sent.

    Args:
        context: study, protocol, site, kind, round and request_sha256 of the request that is answered.
        releases: tensor name -> values and units.
        facts: values of `HELLO_FACTS`, only in `hello`.
        policy: the site's policy.
        dims: sizes of the symbolic dimensions.
        leakage: the step's attack on the protected tensors; None where no tensor comes from training.
        private: under `dp`, the plan of the release that made these values.

    Guarantees (each locked by tests/contract/test_egress.py):
        1. A name that is not in `ALLOWED` for this kind and profile, or not in the policy, is refused.
        2. A wrong dtype or shape, or more bytes than `policy.max_message_bytes`, is refused.
        3. A value that is not finite before suppression is refused, or a share that is not between 0 and 1.
        4. Every number with fewer than `policy.min_units` units behind it leaves as NaN (or zero in updates);
           counts are multiples of `policy.round_to`; metrics have at most 4 significant digits.
        5. Tensors from which the leakage checks read a cell are refused.
        6. Under `dp` nothing with patients behind it passes without the plan of its noise; under another profile
           no plan does.
    """
    kind = str(context["kind"])
    rules = {name: _find(kind, name, policy.profile, policy=policy) for name in sorted(releases)}
    _check_facts(kind, facts)
    for name, rule in rules.items():
        _check_form(rule, np.asarray(releases[name].values), dims)
    _check_size(releases, policy)
    _check_private(rules.values(), policy, private)
    for name, rule in rules.items():
        _check_finite(rule, releases[name])
        _check_range(rule, releases[name])
    protected = {name: _protect(rule, releases[name], policy) for name, rule in rules.items()}
    tensors = {name: values for name, (values, _) in protected.items()}
    gate = _attacked(leakage, tensors)
    return Outgoing(
        dict(context), tensors, {name: count for name, (_, count) in protected.items()}, dict(facts), gate,
        pack_tensors(tensors), private,
    )  # fmt: skip


def sign(outgoing: Outgoing, key: SigningKey) -> bytes:
    """Gate step 7: the signed reply. It names the request that it answers and the site."""
    more = {"facts": outgoing.facts, "suppressed": outgoing.suppressed}
    return pack({**outgoing.context, "status": "ok", "code": "", **more}, outgoing.body, REPLY, key)


def seal(
    context: Mapping[str, Any],
    releases: Mapping[str, Release],
    facts: Mapping[str, str],
    policy: SitePolicy,
    dims: Mapping[str, int],
    key: SigningKey,
) -> bytes:
    """Steps 1 to 5 and 7: a signed reply that was not logged and is sealed to nobody. For tests and tools."""
    return sign(inspect(context, releases, facts, policy, dims), key)


@dataclass(frozen=True)
class Question:
    """What is answered: the request's context, the reader's key in it, its idempotent job id, its body's SHA-256."""

    context: Mapping[str, Any]
    reply_key: str
    job: str
    body_sha256: str


class Budget(Protocol):
    """The site's ledger: spends before release, refuses what would exceed the policy."""

    def spend(self, outgoing: Outgoing, question: Question) -> Mapping[str, Any]: ...


class Journal(Protocol):
    """The site's transparency log: leaf and checkpoint are on disk when `egress` returns."""

    def egress(
        self, outgoing: Outgoing, job: str, payload: bytes, box: bytes, spent: Mapping[str, Any]
    ) -> None: ...

    def section(self) -> bytes: ...


@dataclass(frozen=True)
class Door:
    """THE one door of a site. `answer` and `refuse` are the only functions whose bytes may be handed to a relay.

    Args:
        policy, dims, key: the site's policy, the protocol's sizes, the site's signing key.
        budget, journal: the site's ledger and its log.
    """

    policy: SitePolicy
    dims: Mapping[str, int]
    key: SigningKey
    budget: Budget
    journal: Journal

    def answer(
        self,
        question: Question,
        releases: Mapping[str, Release],
        facts: Mapping[str, str],
        leakage: Leakage | None = None,
        private: PrivacyPlan | None = None,
    ) -> bytes:
        """Steps 1 to 9 in order; `Blocked` names the step that stopped it. Write-ahead: ledger and log are on
        disk before the first byte is returned."""
        outgoing = inspect(question.context, releases, facts, self.policy, self.dims, leakage, private)  # 1-5
        try:
            spent = self.budget.spend(outgoing, question)  # 6
        except EgressError as error:
            raise Blocked(6, *error.args, hint=error.hint, code=error.code, reason=error.reason) from error
        return self._send(question, outgoing, sign(outgoing, self.key), spent)  # 7

    def refuse(self, question: Question, code: str) -> bytes:
        """A logged and sealed refusal: one code of the closed set, no text."""
        outgoing = Outgoing(dict(question.context), {}, {}, {}, [], pack_tensors({}))
        return self._send(question, outgoing, refuse(question.context, code, self.key), {})

    def _send(
        self, question: Question, outgoing: Outgoing, payload: bytes, spent: Mapping[str, Any]
    ) -> bytes:
        request = str(question.context["request_sha256"])
        box = seal_box(payload, question.reply_key, REPLY_LABEL, request)
        self.journal.egress(outgoing, question.job, payload, box, spent)  # 8
        return join_wire(box, seal_box(self.journal.section(), question.reply_key, LOG_LABEL, request))  # 9


def refuse(context: Mapping[str, Any], code: str, key: SigningKey) -> bytes:
    """A signed refusal: one code of the closed set `WIRE_CODES`, no text."""
    if code not in WIRE_CODES:
        code = "internal"
    header = {**context, "status": "refused", "code": code, "facts": {}, "suppressed": {}}
    return pack(header, pack_tensors({}), REPLY, key)


def open(data: bytes, public_hex: str, expected: Mapping[str, Any], dims: Mapping[str, int]) -> Reply:
    """Verify and open a site's reply: signature first, then identity, then the same table as at the door.

    Args:
        data: bytes from the transport.
        public_hex: the site's pinned public key.
        expected: study, protocol, site, kind, round and request_sha256 that the reply must carry.
        dims: sizes of the symbolic dimensions.

    Raises:
        VerificationError: signature. MessageError: another request's reply, or content outside the table.
    """
    envelope = unpack(data, REPLY, public_hex)
    for name, value in expected.items():
        if envelope.header.get(name) != value:
            raise MessageError(f"Expected a reply with {name}={value!r}.")
    return read(envelope, dims, len(data))


def read(envelope: Envelope, dims: Mapping[str, int], size: int) -> Reply:
    """The content of a verified envelope, if it keeps to the table; `size` is the message's, in bytes."""
    header = envelope.header
    facts, suppressed = header.get("facts"), header.get("suppressed")
    if not isinstance(facts, dict) or not isinstance(suppressed, dict) or header.get("status") not in STATUS:
        raise MessageError("Expected facts, suppressed and a known status in a reply.")
    tensors = unpack_tensors(envelope.body)
    for name, values in tensors.items():
        rule = _find(str(header["kind"]), name, "", error=_foreign)
        if problem := _misfit(rule, values, dims):
            raise MessageError(problem, reason="SHAPE")
        if not (np.isfinite(values) | np.isnan(values)).all() or (
            rule.rule in ("update", "open", "sum") and np.isnan(values).any()
        ):
            raise MessageError(f"Expected finite values in tensor={name}.")
    return Reply(
        site=str(header["site"]),
        kind=str(header["kind"]),
        round=int(header["round"]),
        status=str(header["status"]),
        code=str(header.get("code", "")),
        facts=_read_facts(facts),
        suppressed={str(k): int(v) for k, v in suppressed.items()},
        tensors=tensors,
        sha256=envelope.sha256,
        size=size,
    )


STATUS = ("ok", "refused")


def _read_facts(facts: Mapping[Any, Any]) -> dict[str, str]:
    """Facts of the closed set. What a site says stands in reports: text of another form is refused here too."""
    known = {str(name): str(text) for name, text in facts.items() if name in HELLO_FACTS}
    for name, text in known.items():
        if not HELLO_FACTS[name].fullmatch(text):
            raise MessageError(f"Expected fact={name} of its closed form.", reason="ENUM")
    return known


def _find(
    kind: str,
    name: str,
    profile: str,
    *,
    policy: SitePolicy | None = None,
    error: Callable[[str, str], CytosaeError] = lambda text, hint: Blocked(
        1, text, hint=hint, reason="ALLOWLIST"
    ),
) -> Field:
    """The row of `ALLOWED`; `profile` empty: of any profile (what a reader knows of a foreign message)."""
    for rule in ALLOWED:
        if rule.kind in (kind, "*") and rule.name == name:
            if (profile and profile not in rule.profiles) or (policy is not None and not policy.allows(name)):
                raise error(
                    f"Expected a tensor that the policy allows in profile={profile}, got tensor={name}.", ""
                )
            return rule
    raise error(
        f"Expected a tensor of the allow-list in kind={kind[:20]}, got tensor={name[:40]!r}.",
        "A new tensor needs a row in cytosae_core/egress.py and a review.",
    )


def _foreign(text: str, hint: str) -> CytosaeError:
    return MessageError(text, hint=hint, reason="ALLOWLIST")


def _misfit(rule: Field, values: Array, dims: Mapping[str, int]) -> str:
    """What is wrong with dtype or shape, or nothing."""
    shape = tuple(int(dim) if dim.isdigit() else dims.get(dim, -1) for dim in rule.shape)
    if values.dtype.name == rule.dtype and values.shape == shape:
        return ""
    return (
        f"Expected tensor={rule.name} of {rule.dtype}{list(shape)}, "
        f"got {values.dtype.name}{list(values.shape)}."
    )


def _check_facts(kind: str, facts: Mapping[str, str]) -> None:
    if facts and (kind != "hello" or not set(facts) <= set(HELLO_FACTS)):
        raise Blocked(1, f"Expected facts in {HELLO_FACTS} and only in hello.", reason="ALLOWLIST")
    for name, text in facts.items():
        if not HELLO_FACTS[name].fullmatch(text):
            raise Blocked(1, f"Expected fact={name} of its closed form.", reason="ENUM")


def _check_form(rule: Field, values: Array, dims: Mapping[str, int]) -> None:
    if problem := _misfit(rule, values, dims):
        raise Blocked(2, problem, reason="DTYPE" if values.dtype.name != rule.dtype else "SHAPE")


def _check_size(releases: Mapping[str, Release], policy: SitePolicy) -> None:
    size = sum(np.asarray(release.values).nbytes for release in releases.values())
    if size + MAX_OVERHEAD_BYTES > policy.max_message_bytes:
        raise Blocked(
            2,
            f"Expected a message of at most max_message_bytes={policy.max_message_bytes}, "
            f"got {size + MAX_OVERHEAD_BYTES}.",
            hint="Raise the budget in the site's policy, or ask for a narrower dictionary.",
            code="budget",
            reason="MSG_LIMIT",
        )


def _check_finite(rule: Field, release: Release) -> None:
    values = np.asarray(release.values)
    enough = np.broadcast_to(np.asarray(release.units) > 0, values.shape)
    if not np.isfinite(values[enough]).all():
        raise Blocked(
            3,
            f"Expected finite values in tensor={rule.name}.",
            hint="Check the site's tokens.",
            reason="FINITE",
        )


def _check_range(rule: Field, release: Release) -> None:
    """Shares (AUROC, recall, accuracy) lie between 0 and 1; anything else is a fault of the site's program."""
    values = np.asarray(release.values)
    enough = np.broadcast_to(np.asarray(release.units) > 0, values.shape)
    if rule.rule == "share" and ((values[enough] < -1e-6) | (values[enough] > 1 + 1e-6)).any():
        raise Blocked(3, f"Expected shares between 0 and 1 in tensor={rule.name}.", reason="CONSIST")


def _check_private(rules: Iterable[Field], policy: SitePolicy, private: PrivacyPlan | None) -> None:
    """Noise and profile belong together: no promise without noise, no noise that nobody charged."""
    wanted = policy.profile == "dp" and any(rule.rule != "open" for rule in rules)
    if wanted != (private is not None):
        raise Blocked(
            4, "Expected the plan of the noise with every release of profile dp.", reason="NO_NOISE"
        )


def _attacked(leakage: Leakage | None, tensors: Mapping[str, Array]) -> list[dict[str, str]]:
    if leakage is None:
        return []
    try:
        return [dict(check) for check in leakage(tensors)]
    except EgressError as error:
        raise Blocked(5, *error.args, hint=error.hint, reason=error.reason or "SELF_ATTACK") from error


def _protect(rule: Field, release: Release, policy: SitePolicy) -> tuple[Array, int]:
    """Suppress, then round. Returns the protected values and how many were suppressed."""
    values, units = np.asarray(release.values), release.units
    if rule.rule == "open":
        return values, 0
    if policy.profile == "dp":
        return _noised(values, np.broadcast_to(np.asarray(units) > 0, values.shape))
    least = MIN_RATERS if rule.rule == "raters" else policy.min_units
    few = np.broadcast_to(np.asarray(units) < least, values.shape)
    if rule.rule == "update":
        return np.where(few, 0, values).astype(values.dtype), int(few.any(axis=-1).sum())
    shown = _SHOWN[rule.rule](values, units, few, policy)
    hidden = few | np.isnan(shown)
    return np.where(hidden, np.nan, shown).astype(values.dtype), int(hidden.sum())


def _noised(values: Array, told: Array) -> tuple[Array, int]:
    """Values made from noised sums: as they are, to 4 digits. What the noise drowns (`told` false) leaves as NaN."""
    if values.dtype.kind in "iu":
        return values, 0
    shown = round_significant(np.where(told, values, np.nan), 4)
    return shown.astype(values.dtype), int(np.isnan(shown).sum())


# rule -> what is shown of a tensor (values, units behind, too few units, policy); NaN where a rule withholds.
_SHOWN: dict[str, Callable[[Array, Array | int, Array, SitePolicy], Array]] = {
    "hello": lambda values, units, few, policy: protect_hello(values, units, policy),
    "count": lambda values, units, few, policy: protect_counts(values, units, policy),
    "raters": lambda values, units, few, policy: values,
    "share": lambda values, units, few, policy: round_decimals(np.where(few, 0, values)),
    "metric": lambda values, units, few, policy: round_significant(np.where(few, 0, values), 4),
}


def describe(policy: SitePolicy) -> list[dict[str, str]]:
    """What this policy lets out, one row per tensor, for previews, README and reports."""
    return [
        {
            "name": rule.name,
            "kind": "every step" if rule.kind == "*" else rule.kind,
            "dtype": rule.dtype,
            "shape": "x".join(rule.shape),
            "rule": rule.rule,
            "why": rule.why,
        }
        for rule in ALLOWED
        if policy.profile in rule.profiles and policy.allows(rule.name)
    ]
