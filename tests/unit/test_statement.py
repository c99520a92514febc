"""Leaves: every kind of the table, and that anything else is refused before anybody acts on it."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest

from cytosae_core.audit.log.signing import make_leaf
from cytosae_core.audit.note import origin_of, vkey
from cytosae_core.audit.statement import (
    COMMON_KINDS,
    COORDINATOR_KINDS,
    FIRST,
    MAX_LEAF_BYTES,
    SITE_KINDS,
    Chain,
    keys_at,
    pae,
    read_leaf,
)
from cytosae_core.canonical import canonical_json, sha256_hex
from cytosae_core.errors import VerificationError
from cytosae_core.keys import SigningKey

PROTOCOL = sha256_hex(b"protocol")
KEY, LOG, COSIGN, NEW = (SigningKey.generate() for _ in range(4))
KEYS = {KEY.public_hex[:16]: KEY.public_hex}
HASH = sha256_hex(b"x")
JOB: dict[str, Any] = {"kind": "round", "round": 3, "request_sha256": HASH}
SIZED = {"bytes": 7, "sha256": HASH}
CHECK = {"id": "fvu", "value": "0.31", "limit": "1"}


def enrol_keys(party: str) -> dict[str, str]:
    origin = origin_of(PROTOCOL, party)
    return {
        "signing": KEY.public_hex,
        "log": vkey(origin, "log", LOG.public_hex),
        "cosign": vkey(origin, "cosign", COSIGN.public_hex),
    }


EGRESS: dict[str, Any] = {
    **JOB,
    "job": HASH,
    "status": "ok",
    "wire": SIZED,
    "payload": SIZED,
    "tensors": [{"name": "delta", "dtype": "float16", "shape": [64, 384], "suppressed": 12}],
    "policy_sha256": HASH,
    "profile": "masked",
    "min_units": 11,
    "dp": {"mechanism": "none"},
    "gate": [CHECK],
    "budget": {"rounds": 3, "messages": 9, "bytes": 123456},
    "approval": "automatic",
    "repeats": -1,
}
EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "enrol": ("site-1", {"role": "site", "software": "0.1.0", "keys": enrol_keys("site-1")}),
    "policy": (
        "site-1",
        {
            "policy_sha256": HASH,
            "profile": "masked",
            "name": "clinic",
            "approval": "each",
            "officers": ["0" * 16],
        },
    ),
    "release": (
        "coordinator",
        {
            "kind": "round",
            "round": 3,
            "site": "*",
            "body_sha256": HASH,
            "body_bytes": 9,
            "dictionary_sha256": "",
        },
    ),
    "accepted": (
        "site-1",
        {**JOB, "body_sha256": HASH, "coordinator": {"size": 4, "root": HASH}, "checks": [CHECK]},
    ),
    "rejected": ("site-1", {**JOB, "body_sha256": HASH, "checks": [CHECK]}),
    "refused": ("site-1", {**JOB, "code": "replay"}),
    "blocked": ("site-1", {**JOB, "code": "egress", "step": 4}),
    "egress": ("site-1", EGRESS),
    "ingress": (
        "coordinator",
        {
            **JOB,
            "site": "site-1",
            "status": "ok",
            "wire": SIZED,
            "payload": SIZED,
            "site_log": {"index": 2, "size": 3, "root": HASH},
        },
    ),
    "fault": (
        "coordinator",
        {"site": "site-1", "kind": "round", "round": 3, "code": "expired", "requests": [HASH]},
    ),
    "aggregate": (
        "coordinator",
        {
            "round": 3,
            "rule": "rows",
            "server_learning_rate": "1.0",
            "base_sha256": HASH,
            "result_sha256": HASH,
            "inputs": [{"site": "site-1", "payload_sha256": HASH}],
        },
    ),
    "report": ("coordinator", {"report_sha256": HASH, "heads": {"Site-2.b": {"size": 5, "root": HASH}}}),
    "withdraw": ("site-1", {"scope": "site", "payloads_deleted": 3}),
    "key_revoke": ("site-1", {"role": "signing", "key": NEW.public_hex, "from_seq": 9}),
    "incident": ("coordinator", {"code": "fork", "evidence_sha256": HASH}),
}


def base(kind: str, party: str) -> dict[str, Any]:
    first = kind == "enrol"
    places = {"seq": 0 if first else 5, "prev": FIRST if first else HASH}
    return {
        "study": "Granules, München 2026",
        "protocol": PROTOCOL,
        "party": party,
        "at": 1_700_000_000,
        **places,
    }


def make(kind: str, fields: dict[str, Any], party: str, subjects: Any = (), keys: Any = (KEY,)) -> bytes:
    return make_leaf(kind, {**base(kind, party), **fields}, subjects, list(keys))


def refused(reason: str, call: Any, *arguments: Any) -> None:
    with pytest.raises(VerificationError) as caught:
        call(*arguments)
    assert caught.value.reason == reason, caught.value


def made(kind: str, predicate: dict[str, Any]) -> bool:
    try:
        make_leaf(kind, predicate, (), [KEY])
    except VerificationError:
        return False
    return True


def test_every_kind_has_an_example() -> None:
    assert set(EXAMPLES) | {"key_rotate"} == set(SITE_KINDS) | set(COORDINATOR_KINDS) | set(COMMON_KINDS)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_round_trip(kind: str) -> None:
    party, fields = EXAMPLES[kind]
    leaf = make(kind, fields, party, [("wire", HASH), ("body", HASH)])
    found = read_leaf(leaf, KEYS)
    assert found.kind == kind and found.signer == KEY.public_hex
    assert found.predicate == {**base(kind, party), **fields}
    assert found.subjects == (("wire", HASH), ("body", HASH))


@pytest.mark.parametrize("kind", EXAMPLES)
def test_each_missing_unknown_or_mistyped_field_is_refused(kind: str) -> None:
    party, fields = EXAMPLES[kind]
    good = {**base(kind, party), **fields}
    for name, value in good.items():
        without = {key: item for key, item in good.items() if key != name}
        refused("SCHEMA", make_leaf, kind, without, (), [KEY])
        for bad in (
            True,
            None,
            1.5,
            ["x"],
            {"x": 1},
            "a\nb",
            "/etc",
            -2,
            2**53,
            "A" * 300,
            [None],
            {},
            "e\u0301",
        ):
            allowed = (name == "heads" and bad == {}) or (name == "code" and bad == "x") or bad == value
            assert allowed or not made(kind, {**good, name: bad}), (name, bad)
    refused("SCHEMA", make_leaf, kind, {**good, "note": "x"}, (), [KEY])


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        (("tensors", 0, "name"), "a/b"),
        (("tensors", 0, "name"), "C:\\x"),
        (("tensors", 0, "shape"), [1, -1]),
        (("tensors", 0, "shape"), [1.5]),
        (("tensors", 0, "more"), 1),
        (("gate", 0, "value"), 0.31),
        (("gate", 0, "id"), "\u202egnp"),
        (("dp",), {}),
        (("dp",), {"mechanism": "none", "epsilon": "3"}),
        (("dp",), {"mechanism": "gaussian"}),
        (("wire", "sha256"), HASH.upper()),
        (("wire", "bytes"), "7"),
        (("wire", "path"), "x"),
        (("status",), "OK"),
        (("repeats",), -2),
        (("budget", "rounds"), False),
    ],
)
def test_nested_fields_of_an_egress_are_exact(path: tuple[Any, ...], bad: Any) -> None:
    fields = copy.deepcopy(EGRESS)
    place: Any = fields
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = bad
    refused("SCHEMA", make, "egress", fields, "site-1")


def test_the_dp_form_of_an_egress() -> None:
    dp = {
        **{"mechanism": "gaussian", "unit": "patient", "clip": "1.0", "noise_multiplier": "0.8"},
        **{"epsilon": "0.41", "epsilon_total": "2.87", "delta": "1e-05", "accountant": "rdp"},
    }
    assert read_leaf(make("egress", {**EGRESS, "dp": dp}, "site-1"), KEYS).predicate["dp"] == dp


def test_who_may_say_what() -> None:
    for kind, party in (
        ("egress", "coordinator"),
        ("release", "site-1"),
        ("report", "site-1"),
        ("policy", "coordinator"),
    ):
        refused("SCHEMA", make, kind, EXAMPLES[kind][1], party)
    refused("SCHEMA", make, "enrol", EXAMPLES["enrol"][1], "coordinator")
    more = {
        "role": "coordinator",
        "software": "1",
        "keys": enrol_keys("coordinator"),
        "sites": {"site-1": HASH},
    }
    assert read_leaf(make("enrol", more, "coordinator"), KEYS).predicate["sites"] == {"site-1": HASH}
    refused("SCHEMA", make, "enrol", {**more, "sites": {"../site": HASH}}, "coordinator")


def test_enrolment_is_the_first_statement_and_names_its_own_key() -> None:
    party, fields = EXAMPLES["enrol"]
    for changed in ({"seq": 1}, {"prev": HASH}, {"seq": 1, "prev": HASH}):
        refused("SEQ", make, "enrol", {**fields, **changed}, party)
    refused("SEQ", make, "refused", {**EXAMPLES["refused"][1], "seq": 0, "prev": FIRST}, party)
    refused("SIG", make, "enrol", fields, party, (), (NEW,))


def test_subjects_are_from_a_closed_set() -> None:
    refused("SCHEMA", make, "incident", EXAMPLES["incident"][1], "coordinator", [("image.png", HASH)])
    refused("SCHEMA", make, "incident", EXAMPLES["incident"][1], "coordinator", [("wire", HASH[:-1])])


# The envelope


def test_pae_of_the_dsse_specification() -> None:
    assert pae(b"hello world", "http://example.com/HelloWorld") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


LEAF = make("refused", EXAMPLES["refused"][1], "site-1")


def rewritten(change: Any, *, sign: bool = True) -> bytes:
    """LEAF with another payload object, signed again."""
    envelope = json.loads(LEAF)
    payload = change(json.loads(base64.b64decode(envelope["payload"])))
    data = payload if isinstance(payload, bytes) else canonical_json(payload)
    envelope["payload"] = base64.b64encode(data).decode()
    if sign:
        envelope["signatures"][0]["sig"] = base64.b64encode(KEY.sign_raw(pae(data))).decode()
    return canonical_json(envelope)


def test_no_bit_of_a_leaf_can_be_turned() -> None:
    value = int.from_bytes(LEAF, "big")
    for bit in range(8 * len(LEAF)):
        with pytest.raises(VerificationError):
            read_leaf((value ^ (1 << bit)).to_bytes(len(LEAF), "big"), KEYS)


def test_the_signature_is_checked_before_the_payload_is_read() -> None:
    refused("SIG", read_leaf, rewritten(lambda payload: b"{not json", sign=False), KEYS)
    refused("SIG", read_leaf, LEAF, {NEW.public_hex[:16]: NEW.public_hex})
    refused("SIG", read_leaf, LEAF, {KEY.public_hex[:16]: NEW.public_hex})
    refused("SIG", read_leaf, LEAF, {})


def test_payloads_that_are_signed_but_not_statements() -> None:
    def put(name: str, value: Any) -> Any:
        return lambda payload: {**payload, name: value}

    assert read_leaf(rewritten(lambda payload: payload), KEYS).kind == "refused"
    for change in (
        put("_type", "https://in-toto.io/Statement/v0.1"),
        put("predicateType", "urn:cytosae:refused:v2"),
        put("predicateType", "urn:cytosae:other:v1"),
        put("predicateType", "refused"),
        put("predicate", []),
        put("predicate", {}),
        put("subject", {}),
        put("subject", [{"name": "wire"}]),
        put("more", 1),
        lambda payload: {key: item for key, item in payload.items() if key != "predicate"},
        lambda payload: [payload],
        lambda payload: b"1",
        lambda payload: b"null",
    ):
        refused("SCHEMA", read_leaf, rewritten(change), KEYS)
    refused("JSON_SYNTAX", read_leaf, rewritten(lambda payload: b"{"), KEYS)
    refused("JSON_DUP", read_leaf, rewritten(lambda payload: b'{"a":1,"a":1}'), KEYS)
    refused("JSON_TRAIL", read_leaf, rewritten(lambda payload: canonical_json(payload) + b"{}"), KEYS)
    refused("CANON", read_leaf, rewritten(lambda payload: canonical_json(payload) + b" "), KEYS)
    refused("CANON", read_leaf, rewritten(lambda payload: json.dumps(payload).encode()), KEYS)
    refused(
        "CANON", read_leaf, rewritten(lambda p: canonical_json(p).replace(b'"round":3', b'"round":3.0')), KEYS
    )


def test_envelopes_that_are_not_ours() -> None:
    envelope = json.loads(LEAF)
    signature = envelope["signatures"][0]
    for name, value in (
        ("payloadType", "application/json"),
        ("payload", 7),
        ("signatures", {}),
        ("signatures", [{**signature, "cert": "x"}]),
        ("signatures", [{**signature, "keyid": "zz"}]),
        ("more", 1),
    ):
        refused("SCHEMA", read_leaf, canonical_json({**envelope, name: value}), KEYS)
    refused("SIG", read_leaf, canonical_json({**envelope, "signatures": []}), KEYS)
    refused("SIG", read_leaf, canonical_json({**envelope, "signatures": [signature, signature]}), KEYS)
    refused("SIG", read_leaf, canonical_json({**envelope, "payload": "!" + envelope["payload"]}), KEYS)
    refused("CANON", read_leaf, LEAF + b"\n", KEYS)
    refused("JSON_TRAIL", read_leaf, LEAF + LEAF, KEYS)
    refused("SIZE", read_leaf, b" " * (MAX_LEAF_BYTES + 1), KEYS)
    for junk in (b"", b"[]", b"\xff", b"7", b"null", b"[" * 60_000, b'"' + b'\\"' * 30_000):
        with pytest.raises(VerificationError):
            read_leaf(junk, KEYS)


def test_a_leaf_too_large_for_a_tile_cannot_be_made() -> None:
    many = [{"id": f"check {index}", "value": "x" * 150, "limit": "1"} for index in range(300)]
    refused("SIZE", make, "egress", {**EGRESS, "gate": many}, "site-1")


# The chain, rotation and revocation


class Party:
    """A log's leaves without a disk."""

    def __init__(self) -> None:
        self.key, self.leaves = KEY, [make("enrol", EXAMPLES["enrol"][1], "site-1")]

    def add(self, kind: str, fields: dict[str, Any], *more: SigningKey) -> Party:
        place = {"seq": len(self.leaves), "prev": sha256_hex(self.leaves[-1])}
        self.leaves.append(make(kind, {**fields, **place}, "site-1", (), [self.key, *more]))
        return self

    def rotate(self, role: str, old: SigningKey, new: SigningKey, *signers: SigningKey) -> Party:
        return self.add("key_rotate", {"role": role, "old": old.public_hex, "new": new.public_hex}, *signers)

    def chain(self) -> Chain:
        return Chain("site-1", PROTOCOL, KEY.public_hex)


def test_a_chain_refuses_gaps_repeats_other_orders_and_other_parties() -> None:
    party = Party()
    for _ in range(4):
        party.add("refused", EXAMPLES["refused"][1])
    leaves = party.leaves
    assert keys_at(leaves, party.chain()) == [KEY.public_hex] * 5
    for bad in (
        leaves[1:],
        [*leaves[:2], *leaves[3:]],
        [*leaves, leaves[-1]],
        [leaves[0], leaves[2], leaves[1]],
    ):
        refused("SEQ", keys_at, bad, party.chain())
    other = Party().add("incident", EXAMPLES["incident"][1])
    other.add("refused", EXAMPLES["refused"][1])
    refused("LINK", keys_at, [*leaves[:2], other.leaves[2]], party.chain())
    refused("BIND", keys_at, leaves, Chain("site-2", PROTOCOL, KEY.public_hex))
    refused("BIND", keys_at, leaves, Chain("site-1", HASH, KEY.public_hex))
    refused("SIG", keys_at, leaves, Chain("site-1", PROTOCOL, NEW.public_hex))
    free = Chain("site-1", "", KEY.public_hex)
    assert keys_at(leaves, free) and free.protocol == PROTOCOL


def test_signing_keys_rotate_with_both_signatures() -> None:
    party = Party().rotate("signing", KEY, NEW, NEW)
    party.key = NEW
    party.add("refused", EXAMPLES["refused"][1])
    assert keys_at(party.leaves, party.chain()) == [KEY.public_hex, KEY.public_hex, NEW.public_hex]
    party.key = KEY
    party.add("refused", EXAMPLES["refused"][1])
    refused("SIG", keys_at, party.leaves, party.chain())


def test_a_rotation_without_both_signatures_cannot_be_made() -> None:
    refused("SIG", Party().rotate, "signing", KEY, NEW)
    refused("SIG", Party().rotate, "signing", KEY, NEW, LOG)
    refused("SIG", Party().rotate, "signing", LOG, NEW, NEW)
    refused("SIG", Party().rotate, "log", LOG, NEW, NEW)
    refused("SIG", Party().rotate, "log", LOG, NEW, LOG)
    refused("SIG", Party().add, "refused", EXAMPLES["refused"][1], NEW)


def test_log_and_cosign_keys_rotate_and_only_the_current_one_can() -> None:
    chain, origin = Party().chain(), origin_of(PROTOCOL, "site-1")
    keys_at(Party().rotate("log", LOG, NEW, LOG, NEW).leaves, chain)
    assert chain.keys["log"] == vkey(origin, "log", NEW.public_hex)
    assert chain.keys["cosign"] == enrol_keys("site-1")["cosign"]
    chain = Party().chain()
    keys_at(Party().rotate("cosign", COSIGN, NEW, COSIGN, NEW).leaves, chain)
    assert chain.keys["cosign"] == vkey(origin, "cosign", NEW.public_hex)
    stranger = SigningKey.generate()
    refused("SIG", keys_at, Party().rotate("log", stranger, NEW, stranger, NEW).leaves, Party().chain())


def test_a_revoked_key_signs_nothing_any_more() -> None:
    party = Party().add("key_revoke", {"role": "signing", "key": KEY.public_hex, "from_seq": 3})
    party.add("refused", EXAMPLES["refused"][1])
    chain = party.chain()
    keys_at(party.leaves, chain)
    assert chain.revoked == {("signing", KEY.public_hex): 3}
    party.add("refused", EXAMPLES["refused"][1])
    refused("REVOKED", keys_at, party.leaves, party.chain())


def test_a_revocation_cannot_be_put_off() -> None:
    party = Party().add("key_revoke", {"role": "signing", "key": KEY.public_hex, "from_seq": 3})
    party.add("key_revoke", {"role": "signing", "key": KEY.public_hex, "from_seq": 9})
    party.add("refused", EXAMPLES["refused"][1])
    refused("REVOKED", keys_at, party.leaves, party.chain())


def test_after_a_rotation_the_old_key_can_be_revoked_and_the_log_goes_on() -> None:
    party = Party().rotate("signing", KEY, NEW, NEW)
    party.key = NEW
    party.add("key_revoke", {"role": "signing", "key": KEY.public_hex, "from_seq": 1})
    party.add("refused", EXAMPLES["refused"][1])
    chain = party.chain()
    assert keys_at(party.leaves, chain)[-1] == NEW.public_hex
    assert chain.revoked == {("signing", KEY.public_hex): 1}  # index 1 is distrusted: for the auditor to say
