"""Leaves: in-toto statements in DSSE envelopes, a closed table of kinds, and the chain that they form.

    leaf  {"payload": base64, "payloadType": ..., "signatures": [{"keyid": ..., "sig": base64}]}, canonical JSON
    PAE   "DSSEv1 <bytes> <payloadType> <bytes> <payload>", which is what is signed (DSSE protocol.md)

What is not in the table below is refused: unknown kinds, unknown or missing fields, other types. The table and the
meaning of every field are in docs/audit-format.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..canonical import canonical_json, parse_json, sha256_hex
from ..errors import MessageError, VerificationError
from ..signatures import verify_raw
from .note import unbase64, vkey

MAX_LEAF_BYTES = (1 << 16) - 1  # what a length in a tlog-tiles entry bundle can say
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
COORDINATOR = "coordinator"
FIRST = "0" * 64

# What a value may be: a pattern for the whole text, a range for integers, a set of texts, a dict of exactly these
# keys, {pattern: value} for a map, [value] for a list, a tuple of alternatives. No floats, null or booleans.
HEX, ID, NO_HEX = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{16}"), re.compile(r"([0-9a-f]{64})?")
PARTY, WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"), re.compile(r"[a-z0-9_]{1,64}")
TEXT, TITLE = re.compile(r"[^/\\]{0,200}"), re.compile(r"[^/\\]{1,200}")
TARGET = re.compile(rf"\*|{PARTY.pattern}")
DECIMAL = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?(e[+-]?[0-9]{1,3})?")
VKEY = re.compile(rf"cytosae/{ID.pattern}/{PARTY.pattern}\+[0-9a-f]{{8}}\+[A-Za-z0-9+/=]{{44}}")
COUNT, INDEX, SIGNED = range(2**53), range(-1, 2**53), range(1 - 2**53, 2**53)
STATUS, ROLE = {"ok", "refused"}, {"signing", "log", "cosign"}
SIZED, HEAD = {"bytes": COUNT, "sha256": HEX}, {"size": COUNT, "root": HEX}
CHECKS = [{"id": TEXT, "value": (TEXT, SIGNED), "limit": (TEXT, SIGNED)}]
JOB = {"kind": TEXT, "round": COUNT, "request_sha256": HEX}
ENROL = {"software": TEXT, "keys": {"signing": HEX, "log": VKEY, "cosign": VKEY}}
DP = {"mechanism": {"gaussian"}, "unit": TEXT, "delta": DECIMAL, "epsilon": DECIMAL, "epsilon_total": DECIMAL}
DP |= {"clip": DECIMAL, "noise_multiplier": DECIMAL, "accountant": TEXT}
TENSOR = {"name": TEXT, "dtype": TEXT, "shape": [COUNT], "suppressed": (TEXT, COUNT)}
EGRESS = {"job": HEX, "status": STATUS, "wire": SIZED, "payload": SIZED, "tensors": [TENSOR]}
EGRESS |= {"policy_sha256": HEX, "profile": TEXT, "min_units": COUNT, "dp": ({"mechanism": {"none"}}, DP)}
EGRESS |= {"budget": {"rounds": COUNT, "messages": COUNT, "bytes": COUNT}, "approval": TEXT}
RELEASE = {"kind": TEXT, "round": COUNT, "site": TARGET, "body_sha256": HEX, "body_bytes": COUNT}
INGRESS = {"site": PARTY, "status": STATUS, "wire": SIZED, "payload": SIZED}
INGRESS |= {"site_log": {"index": COUNT, **HEAD}}
INPUT = {"site": PARTY, "payload_sha256": HEX}
# What names every site; the digest of a list beside the log where it would not fit into a leaf.
LISTS = {"sites": (HEX, {PARTY: HEX}), "inputs": (HEX, [INPUT]), "heads": (HEX, {PARTY: HEAD})}
AGGREGATE = {"round": COUNT, "rule": TEXT, "server_learning_rate": DECIMAL, "base_sha256": HEX}
SITE_KINDS: dict[str, dict[str, Any]] = {
    "enrol": {"role": {"site"}, **ENROL},
    "policy": {"policy_sha256": HEX, "profile": TEXT, "name": TEXT, "approval": TEXT, "officers": [ID]},
    "accepted": {**JOB, "body_sha256": HEX, "coordinator": HEAD, "checks": CHECKS},
    "rejected": {**JOB, "body_sha256": HEX, "checks": CHECKS},
    "refused": {**JOB, "code": WORD},
    "blocked": {**JOB, "code": WORD, "step": COUNT},
    "egress": {**JOB, **EGRESS, "gate": CHECKS, "repeats": INDEX},
    "withdraw": {"scope": {"site", "patient"}, "payloads_deleted": COUNT},
}
COORDINATOR_KINDS: dict[str, dict[str, Any]] = {
    "enrol": {"role": {"coordinator"}, **ENROL, "sites": LISTS["sites"]},
    "release": {**RELEASE, "dictionary_sha256": NO_HEX},
    "ingress": {**JOB, **INGRESS},
    "fault": {"site": PARTY, "kind": TEXT, "round": COUNT, "code": WORD, "requests": [HEX]},
    "aggregate": {**AGGREGATE, "result_sha256": HEX, "inputs": LISTS["inputs"]},
    "report": {"report_sha256": HEX, "heads": LISTS["heads"]},
}
COMMON_KINDS: dict[str, dict[str, Any]] = {
    "key_rotate": {"role": ROLE, "old": HEX, "new": HEX},
    "key_revoke": {"role": ROLE, "key": HEX, "from_seq": COUNT},
    "incident": {"code": WORD, "evidence_sha256": HEX},
}
BASE = {"study": TITLE, "protocol": HEX, "party": PARTY, "seq": COUNT, "prev": HEX, "at": COUNT}
SUBJECT = {"name": {"wire", "payload", "body", "dictionary", "report", "policy"}, "digest": {"sha256": HEX}}
BODY = {"_type": {STATEMENT}, "predicateType": TITLE, "subject": [SUBJECT]}
SIGNATURE = {"keyid": ID, "sig": re.compile(r".{88}")}
ENVELOPE = {"payload": re.compile(r".*"), "payloadType": {PAYLOAD_TYPE}, "signatures": [SIGNATURE]}


@dataclass(frozen=True)
class Statement:
    """A verified leaf: kind, predicate, (name, SHA-256) of its subjects, and the public key (hex) that signed it."""

    kind: str
    predicate: dict[str, Any]
    subjects: tuple[tuple[str, str], ...]
    signer: str


def pae(payload: bytes, kind: str = PAYLOAD_TYPE) -> bytes:
    """What is signed: DSSE's pre-authentication encoding of a payload and its type."""
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def read_leaf(data: bytes, keys: Mapping[str, str]) -> Statement:
    """A leaf's statement, after its signature and every field were checked.

    `keys`: public keys (hex) by key id that may sign. Raises VerificationError: SIZE, CANON, JSON_, SIG, SCHEMA, SEQ.
    """
    envelope = _canonical(data)
    _check(envelope, ENVELOPE, "leaf")
    payload = unbase64(envelope["payload"])
    signatures = [(item["keyid"], unbase64(item["sig"])) for item in envelope["signatures"]]
    signer = keys.get(signatures[0][0], "") if signatures else ""
    verify_raw(signer, pae(payload), signatures[0][1] if signatures else b"")
    statement = _statement(_canonical(payload), signer)
    signers = [signer, *_rotated(statement)]
    if [keyid for keyid, _ in signatures] != [key[:16] for key in signers]:
        raise _bad("Expected the signatures that this kind needs.", "SIG")
    for key, (_, signature) in zip(signers[1:], signatures[1:], strict=True):
        verify_raw(key, pae(payload), signature)
    return statement


def _rotated(statement: Statement) -> list[str]:
    """Who must sign beside the signing key. A new key signs; so does an old one that is not the signing key."""
    if statement.kind != "key_rotate":
        return []
    old, new = statement.predicate["old"], statement.predicate["new"]
    if statement.predicate["role"] == "signing" and old != statement.signer:
        raise _bad("Expected a rotation signed by the key that it replaces.", "SIG")
    return [new] if statement.predicate["role"] == "signing" else [old, new]


def _statement(content: Any, signer: str) -> Statement:
    predicate: Any = content.pop("predicate", {}) if isinstance(content, dict) else {}
    _check(content, BODY, "statement")
    kind = content["predicateType"].removeprefix("urn:cytosae:").removesuffix(":v1")
    party = predicate.get("party") if isinstance(predicate, dict) else ""
    kinds = COMMON_KINDS | (COORDINATOR_KINDS if party == COORDINATOR else SITE_KINDS)
    if kind not in kinds or content["predicateType"] != f"urn:cytosae:{kind}:v1":
        raise _bad("Expected a kind of statement that this party makes.")
    _check(predicate, BASE | kinds[kind], kind)
    if not (predicate["seq"] == 0) == (predicate["prev"] == FIRST) == (kind == "enrol"):
        raise _bad("Expected enrol as the first statement of a log, and only there.", "SEQ")
    if kind == "enrol" and predicate["keys"]["signing"] != signer:
        raise _bad("Expected an enrolment signed by the key that it names.", "SIG")
    subjects = tuple((item["name"], item["digest"]["sha256"]) for item in content["subject"])
    return Statement(kind, predicate, subjects, signer)


def _check(value: Any, wanted: Any, name: str) -> None:
    """Raise unless `value` is what the table wants. Names are keys of the table, never data."""
    if isinstance(wanted, tuple):
        wanted = next((item for item in wanted if _fits(value, item)), wanted[-1])
    if isinstance(wanted, re.Pattern):
        text = value if isinstance(value, str) else "\n"
        fits = text.isprintable() and wanted.fullmatch(text) and unicodedata.is_normalized("NFC", text)
    elif isinstance(wanted, range):
        fits = type(value) is int and value in wanted
    elif isinstance(wanted, set):
        fits = isinstance(value, str) and value in wanted
    else:
        fits = isinstance(value, type(wanted))
    if not fits:
        raise _bad(f"Expected {name} as the audit format defines it.")
    if isinstance(wanted, list):
        for item in value:
            _check(item, wanted[0], name)
    elif isinstance(wanted, dict):
        _check_object(value, wanted, name)


def _check_object(value: dict[str, Any], wanted: dict[Any, Any], name: str) -> None:
    pattern = next(iter(wanted))
    if not isinstance(pattern, str):
        for key, item in value.items():
            _check(key, pattern, name)
            _check(item, wanted[pattern], name)
        return
    if value.keys() != wanted.keys():
        raise _bad(f"Expected exactly the fields {sorted(wanted)} in {name}.")
    for key, item in value.items():
        _check(item, wanted[key], key)


def _fits(value: Any, wanted: Any) -> bool:
    try:
        _check(value, wanted, "")
    except VerificationError:
        return False
    return True


def _canonical(data: bytes) -> Any:
    if len(data) > MAX_LEAF_BYTES:
        raise _bad(f"Expected a leaf of at most {MAX_LEAF_BYTES} bytes, got {len(data)}.", "SIZE")
    try:
        value = parse_json(data, max_bytes=MAX_LEAF_BYTES)
        same = canonical_json(value) == data
    except MessageError as error:
        raise _bad(str(error), error.reason or "CANON") from error
    if not same:
        raise _bad("Expected canonical JSON (RFC 8785).", "CANON")
    return value


def _bad(message: str, reason: str = "SCHEMA") -> VerificationError:
    return VerificationError(message, hint="The format is in docs/audit-format.md.", reason=reason)


@dataclass
class Chain:
    """One party's log read leaf by leaf: order, links, and which keys count at every index."""

    party: str
    protocol: str  # digest; empty: the first leaf's
    signing: str  # the pinned first signing key, hex
    size: int = 0  # leaves read
    prev: str = FIRST  # SHA-256 of the last one
    # By role, from enrol on: `signing` in hex, others vkeys.
    keys: dict[str, str] = field(default_factory=dict)
    # (role, key in hex): index from which it does not count; before the revocation: distrust what it signed since
    revoked: dict[tuple[str, str], int] = field(default_factory=dict)

    def read(self, leaf: bytes) -> Statement:
        """The next leaf's statement. Raises VerificationError: read_leaf's, and SEQ, LINK, BIND, REVOKED."""
        key = self.keys.get("signing", self.signing)
        found = read_leaf(leaf, {key[:16]: key})
        fields = found.predicate
        bound = (fields["party"], fields["protocol"]) == (self.party, self.protocol or fields["protocol"])
        for reason, holds in (
            ("BIND", bound),
            ("SEQ", fields["seq"] == self.size),
            ("LINK", fields["prev"] == self.prev),
            ("REVOKED", self.size < self.revoked.get(("signing", key), self.size + 1)),
        ):
            if not holds:
                raise _bad(f"Expected the next statement (seq={self.size}) of this party's log.", reason)
        self._follow(found)
        self.size, self.prev, self.protocol = self.size + 1, sha256_hex(leaf), fields["protocol"]
        return found

    def _follow(self, found: Statement) -> None:
        fields = found.predicate
        if found.kind == "enrol":
            self.keys = dict(fields["keys"])
        elif found.kind == "key_rotate":
            role, name = fields["role"], self.keys["log"].partition("+")[0]
            old, new = fields["old"], fields["new"]
            if self.keys[role] != (old if role == "signing" else vkey(name, role, old)):
                raise _bad(f"Expected a rotation of the current {role} key.", "SIG")
            self.keys[role] = new if role == "signing" else vkey(name, role, new)
        elif found.kind == "key_revoke":
            place = fields["role"], fields["key"]
            self.revoked[place] = min(fields["from_seq"], self.revoked.get(place, fields["from_seq"]))


def keys_at(leaves: Iterable[bytes], chain: Chain) -> list[str]:
    """The signing key (hex) of every leaf of a log, by index; `chain` is new and is read to the end."""
    return [chain.read(leaf).signer for leaf in leaves]
