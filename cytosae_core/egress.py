"""THE BOUNDARY. Everything that leaves a site passes `seal`, default deny, against the table `ALLOWED`.

Hospital IT reads this file and the site's policy, nothing else. What is not in the table cannot leave; every
value carries the number of units (patients, else slides, else source files) behind it, and the door itself
suppresses what too few stand behind. Honest limit: Python cannot stop code at the site from opening a socket;
this is a review boundary, and the operating system's egress rules in `deploy/` are the enforcing one.

Suppressed values are NaN in `metric` tensors and exact zeros in `update` tensors, whatever the reason was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .envelope import REPLY, Envelope, pack, unpack
from .errors import WIRE_CODES, EgressError, MessageError
from .keys import SigningKey
from .policy import SitePolicy
from .tensors import pack_tensors, unpack_tensors

Array = NDArray[Any]
ALL = ("evaluate_only", "masked")
MASKED = ("masked",)


@dataclass(frozen=True)
class Field:
    """One thing that may leave.

    Attributes:
        kind: message kind it may travel in.
        name: tensor name.
        dtype: numpy dtype name on the wire.
        shape: symbolic dimensions, resolved from the signed protocol by `StudyConfig.dims` (n rows,
            d dimensions, s sites, t targets, c classes, v views, g golden cells ...) or literal integers.
        rule: `open` (no patient behind it), `metric` (suppress below min_units, 4 significant digits),
            `count` (suppress, then round to the policy's multiple), `update` (zero below min_units).
        profiles: egress profiles that allow it.
        why: what the coordinator needs it for.
    """

    kind: str
    name: str
    dtype: str
    shape: tuple[str, ...]
    rule: str
    profiles: tuple[str, ...]
    why: str


ALLOWED: tuple[Field, ...] = (
    Field(
        "hello", "canary", "float32", ("g", "d"), "open", ALL, "same golden cells, same features everywhere"
    ),
    Field(
        "hello", "counts", "float32", ("h",), "count", ALL, "images and units, in all, per split, per class"
    ),
    Field("moments", "token_sum", "float32", ("d",), "metric", MASKED, "federated mean of tokens"),
    Field("moments", "token_square", "float32", ("1",), "metric", MASKED, "federated scale of tokens"),
    Field("moments", "token_count", "float32", ("1",), "count", MASKED, "weight of the two sums"),
    Field("round", "delta", "float16", ("n", "d"), "update", MASKED, "dictionary rows: change in this round"),
    Field("round", "fired", "float32", ("n",), "count", MASKED, "weights of the rows (training tokens)"),
    Field("*", "quality", "float32", ("q",), "metric", ALL, "FVU, L0, dead fraction on held-out units"),
    Field("describe", "firing_rate", "float32", ("n",), "metric", ALL, "how often a concept fires"),
    Field("describe", "auroc", "float32", ("n", "t"), "metric", ALL, "class meaning of a concept"),
    Field("describe", "auroc_se", "float32", ("n", "t"), "metric", ALL, "its standard error over units"),
    Field("describe", "auroc_shuffled", "float32", ("n", "t"), "metric", ALL, "control: shuffled labels"),
    Field(
        "describe", "reliability", "float32", ("1",), "metric", ALL, "agreement of two halves of the units"
    ),
    *(
        Field("describe", f"{view}_{part}_{moment}", "float32", shape, "metric", ALL, why)
        for view, width in (("code", "n"), ("embedding", "d"))
        for part, shape, why in (
            ("all", (width,), "standardise this site"),
            ("class", ("c", width), "probe that is tested on another site"),
            ("half", (width,), "standardise this site, half of the units"),
            ("half_class", ("c", width), "can the site be read from the codes?"),
        )
        for moment in ("mean", "var")
    ),
    Field("describe", "same_site_null", "float32", ("v",), "metric", ALL, "control: two halves of one site"),
    Field("score", "balanced_accuracy", "float32", ("p",), "metric", ALL, "leave-one-site-out result"),
    Field(
        "score", "site_recall", "float32", ("v", "s"), "metric", ALL, "can the site be read from the codes?"
    ),
)

NEVER = (
    "images, thumbnails, crops or heat maps",
    "file names, paths, patient, slide or file identifiers",
    "embeddings or codes of single images, cells or patients",
    "encoder weights, biases, optimiser state, sums of tokens per row",
    "indices or values of the strongest images of a concept",
    "free text of any kind",
)

# Closed set of JSON values in a reply's header beside the tensors: names of software and digests only.
HELLO_FACTS = ("software", "encoder_digest", "policy_digest", "policy", "unit", "relay_isolation")


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


def seal(
    context: Mapping[str, Any],
    releases: Mapping[str, Release],
    facts: Mapping[str, str],
    policy: SitePolicy,
    dims: Mapping[str, int],
    key: SigningKey,
) -> bytes:
    """The one door: bytes of a signed reply, or EgressError and nothing leaves.

    Args:
        context: study, protocol, site, kind, round and request_sha256 of the request that is answered.
        releases: tensor name -> values and units.
        facts: values of `HELLO_FACTS`, only in `hello`.
        policy: the site's policy.
        dims: sizes of the symbolic dimensions.
        key: the site's signing key.

    Guarantees (each locked by tests/contract/test_egress.py):
        1. A name that is not in `ALLOWED` for this kind and profile is refused.
        2. A wrong dtype or shape, or a value that is not finite before suppression, is refused.
        3. Every number with fewer than `policy.min_units` units behind it leaves as NaN (or zero in updates).
        4. Counts are multiples of `policy.round_to`; metrics have at most 4 significant digits.
        5. A message larger than `policy.max_message_bytes` is refused.
        6. The reply is signed by the site and names the request that it answers.
    """
    kind = str(context["kind"])
    tensors: dict[str, Array] = {}
    suppressed: dict[str, int] = {}
    for name in sorted(releases):
        rule = _find(kind, name, policy.profile)  # 1
        values = _checked(rule, releases[name], dims)  # 2
        tensors[name], suppressed[name] = _protect(rule, values, releases[name].units, policy)  # 3, 4
    if facts and (kind != "hello" or not set(facts) <= set(HELLO_FACTS)):
        raise EgressError(f"Expected facts in {HELLO_FACTS} and only in hello.")
    header = {**context, "status": "ok", "code": "", "facts": dict(facts), "suppressed": suppressed}
    data = pack(header, pack_tensors(tensors), REPLY, key)  # 6
    if len(data) > policy.max_message_bytes:  # 5
        raise EgressError(
            f"Expected a message of at most max_message_bytes={policy.max_message_bytes}, got {len(data)}.",
            hint="Raise the budget in the site's policy, or ask for a narrower dictionary.",
        )
    return data


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
    return _read(envelope, dims, len(data))


def _read(envelope: Envelope, dims: Mapping[str, int], size: int) -> Reply:
    header = envelope.header
    facts, suppressed = header.get("facts"), header.get("suppressed")
    if not isinstance(facts, dict) or not isinstance(suppressed, dict) or header.get("status") not in STATUS:
        raise MessageError("Expected facts, suppressed and a known status in a reply.")
    tensors = unpack_tensors(envelope.body)
    for name, values in tensors.items():
        rule = _find(str(header["kind"]), name, "masked", error=MessageError)
        _check_form(rule, values, dims, MessageError)
        if not (np.isfinite(values) | np.isnan(values)).all() or (
            rule.rule in ("update", "open") and np.isnan(values).any()
        ):
            raise MessageError(f"Expected finite values in tensor={name}.")
    return Reply(
        site=str(header["site"]),
        kind=str(header["kind"]),
        round=int(header["round"]),
        status=str(header["status"]),
        code=str(header.get("code", "")),
        facts={str(k): str(v) for k, v in facts.items() if k in HELLO_FACTS},
        suppressed={str(k): int(v) for k, v in suppressed.items()},
        tensors=tensors,
        sha256=envelope.sha256,
        size=size,
    )


STATUS = ("ok", "refused")


def _find(kind: str, name: str, profile: str, error: type[EgressError | MessageError] = EgressError) -> Field:
    for rule in ALLOWED:
        if rule.kind in (kind, "*") and rule.name == name:
            if profile not in rule.profiles:
                raise error(f"Expected a tensor that profile={profile} allows, got tensor={name}.")
            return rule
    raise error(
        f"Expected a tensor of the allow-list in kind={kind}, got tensor={name[:40]!r}.",
        hint="A new tensor needs a row in cytosae_core/egress.py and a review.",
    )


def _check_form(
    rule: Field, values: Array, dims: Mapping[str, int], error: type[EgressError | MessageError]
) -> None:
    shape = tuple(int(dim) if dim.isdigit() else dims.get(dim, -1) for dim in rule.shape)
    if values.dtype.name != rule.dtype or values.shape != shape:
        raise error(
            f"Expected tensor={rule.name} of {rule.dtype}{list(shape)}, "
            f"got {values.dtype.name}{list(values.shape)}."
        )


def _checked(rule: Field, release: Release, dims: Mapping[str, int]) -> Array:
    values = np.asarray(release.values)
    _check_form(rule, values, dims, EgressError)
    enough = np.broadcast_to(np.asarray(release.units) > 0, values.shape)
    if not np.isfinite(values[enough]).all():
        raise EgressError(f"Expected finite values in tensor={rule.name}.", hint="Check the site's tokens.")
    return values


def _protect(rule: Field, values: Array, units: Array | int, policy: SitePolicy) -> tuple[Array, int]:
    """Suppress, then round. Returns the protected values and how many were suppressed."""
    if rule.rule == "open":
        return values, 0
    few = np.broadcast_to(np.asarray(units) < policy.min_units, values.shape)
    if rule.rule == "update":
        return np.where(few, 0, values).astype(values.dtype), int(few.any(axis=-1).sum())
    if rule.rule == "count":
        shown = np.round(values / policy.round_to) * policy.round_to
    else:
        shown = round_significant(np.where(few, 0, values), 4)
    return np.where(few, np.nan, shown).astype(values.dtype), int(few.sum())


def round_significant(values: Array, digits: int) -> Array:
    """`values` rounded to `digits` significant decimal digits (audit S13: no low-bit smuggling)."""
    with np.errstate(divide="ignore"):
        power = np.where(values == 0, 0, np.floor(np.log10(np.abs(values, dtype=np.float64))))
    scale = 10.0 ** (digits - 1 - power)
    return np.asarray(np.round(values * scale) / scale)


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
        if policy.profile in rule.profiles
    ]
