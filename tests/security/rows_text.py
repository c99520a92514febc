"""Rows 46 to 73: JSON, signatures, logs, policies, messages."""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import struct
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_client.agent import HEADER, AgentServer, call_agent
from cytosae_core.audit.log.signing import make_leaf, sign_checkpoint
from cytosae_core.audit.log.tree import Tree
from cytosae_core.audit.log.witness import Witness
from cytosae_core.audit.merkle import leaf_hash, verify_consistency, verify_inclusion
from cytosae_core.audit.note import open_checkpoint, origin_of, parse_checkpoint, vkey
from cytosae_core.audit.statement import FIRST, Chain, read_leaf
from cytosae_core.canonical import canonical_json, sha256_hex
from cytosae_core.envelope import MAGIC, REQUEST, unpack
from cytosae_core.errors import MessageError
from cytosae_core.keys import SigningKey
from cytosae_core.policy import SitePolicy, load_policy, render_policy
from cytosae_core.tensors import pack_tensors, unpack_tensors
from tests.federation import Federation, study_config

from .harness import HELLO, Case
from .rows import row

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "'click", DeprecationWarning)
    from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

    from cytosae_client.flower_blob import from_records, to_records

PROTOCOL = sha256_hex(b"protocol")
LOG, COSIGN, SIGN, OTHER = (SigningKey.generate() for _ in range(4))
ORIGIN = origin_of(PROTOCOL, "coordinator")
VKEY = vkey(ORIGIN, "log", LOG.public_hex)


def federation(case: Case) -> Federation:
    """Two sites in memory, their events kept."""
    made = Federation(case.home / "federation", study_config(2))
    made.logs = case.events
    for session in made.sessions.values():
        session.events._sink = case.events.append
    case.federation = made
    return made


def close(made: Federation) -> None:
    """Close what the row opened."""
    for session in made.sessions.values():
        session.close()


# JSON, as the signed header of a request: nothing of it is believed before it is parsed strictly


def header_row(case: Case, reason: str, *heads: bytes) -> None:
    """A request with this header, signed with the study's own key: no answer, and the reason in the local log."""
    made = federation(case)
    try:
        for head in heads:
            signature = made.key.sign(REQUEST, head)
            body = pack_tensors({})
            request = (
                MAGIC + struct.pack(">I", len(head)) + head + struct.pack(">Q", len(body)) + body + signature
            )
            assert made.sessions["site-0"].handle(request) == b""
            assert (case.events[-1].code, case.events[-1].values["reason"]) == ("unverified", reason)
    finally:
        close(made)


@row(46)
def json_duplicate(case: Case) -> None:
    header_row(case, "JSON_DUP", f'{{"study":"{case.canary}","study":"b"}}'.encode())


@row(47)
def json_constants(case: Case) -> None:
    header_row(case, "JSON_CONST", *(b'{"round":%s}' % word for word in (b"NaN", b"Infinity", b"-Infinity")))


@row(48)
def json_depth(case: Case) -> None:
    header_row(case, "JSON_DEPTH", b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000)


@row(49)
def json_numbers(case: Case) -> None:
    header_row(case, "JSON_NUM", b'{"round":1e400}', b'{"round":%d}' % 2**60, b'{"round":-%d}' % 2**60)


@row(50)
def json_utf8(case: Case) -> None:
    text = f'{{"study":"{case.canary}"}}'
    header_row(case, "JSON_BOM", b"\xef\xbb\xbf" + text.encode())
    header_row(case, "JSON_UTF8", text.encode("utf-16"), b'{"study":"\xff"}', b'{"study":"\\ud800"}')


@row(51)
def names_that_look_alike(case: Case) -> None:
    values = np.ones(3, np.float32)
    for name in ("d\u0435lta", "de\u0301lta", "delta\u200b", "\uff44elta"):
        head = json.dumps({name: {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
        head += b" " * (-len(head) % 8)
        blob = struct.pack("<Q", len(head)) + head + values.tobytes()
        case.refused("ALLOWLIST", lambda blob=blob: unpack_tensors(blob))
    for name in ("cafe\u0301", "st\u0443dy"):
        fields = {**ENROL, "software": name}
        if name == "st\u0443dy":
            fields = {**ENROL, name: "x"}
        case.refused("SCHEMA", lambda fields=fields: make_leaf("enrol", fields, (), [SIGN]))


@row(52)
def json_trailing(case: Case) -> None:
    header_row(case, "JSON_TRAIL", b'{"study":"a"}{"study":"b"}', b'{"study":"a"} ' + case.canary.encode())


ENROL: dict[str, Any] = {
    "role": "site", "software": "0.1.0", "study": "s", "protocol": PROTOCOL, "party": "site-1", "seq": 0,
    "prev": FIRST, "at": 1_800_000_000,
    "keys": {
        "signing": SIGN.public_hex, "log": vkey(origin_of(PROTOCOL, "site-1"), "log", LOG.public_hex),
        "cosign": vkey(origin_of(PROTOCOL, "site-1"), "cosign", COSIGN.public_hex),
    },
}  # fmt: skip
KEYS = {SIGN.public_hex[:16]: SIGN.public_hex}


def signed(payload: bytes, key: SigningKey = SIGN) -> bytes:
    """A leaf over any payload, correctly signed."""
    from cytosae_core.audit.statement import PAYLOAD_TYPE, pae

    signature = base64.b64encode(key.sign_raw(pae(payload))).decode()
    encoded = base64.b64encode(payload).decode()
    leaf = {
        "payload": encoded,
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key.public_hex[:16], "sig": signature}],
    }
    return canonical_json(leaf)


def payload_of(leaf: bytes) -> dict[str, Any]:
    """A leaf's payload."""
    return dict(json.loads(base64.b64decode(json.loads(leaf)["payload"])))


@row(53)
def unknown_field(case: Case) -> None:
    payload = payload_of(make_leaf("enrol", ENROL, (), [SIGN]))
    payload["predicate"]["note"] = case.canary
    case.refused("SCHEMA", lambda: read_leaf(signed(canonical_json(payload)), KEYS))


@row(54)
def not_canonical(case: Case) -> None:
    payload = payload_of(make_leaf("enrol", ENROL, (), [SIGN]))
    for text in (json.dumps(payload), json.dumps(payload, indent=1), canonical_json(payload).decode() + "\n"):
        case.refused("CANON", lambda text=text: read_leaf(signed(text.encode()), KEYS))


# Keys, signatures, proofs


@row(55)
def foreign_keys(case: Case) -> None:
    made = federation(case)
    assert made.ask("site-0", HELLO, key=SigningKey.generate()) is None
    assert (case.events[-1].code, case.events[-1].values["reason"]) == ("unverified", "SIG")
    close(made)
    head = sign_checkpoint(ORIGIN, 0, Tree().root(), LOG)
    wrong_role = vkey(ORIGIN, "cosign", LOG.public_hex)
    case.refused("SIG", lambda: open_checkpoint(head, wrong_role, origin=ORIGIN))
    case.refused("SIG", lambda: open_checkpoint(head, vkey(ORIGIN, "log", OTHER.public_hex), origin=ORIGIN))
    leaf = make_leaf("enrol", ENROL, (), [SIGN])
    place = {name: ENROL[name] for name in ("study", "protocol", "party", "at")}
    revoke = {
        **place,
        "seq": 1,
        "prev": sha256_hex(leaf),
        "role": "signing",
        "key": SIGN.public_hex,
        "from_seq": 2,
    }
    second = make_leaf("key_revoke", revoke, (), [SIGN])
    third = {**place, "seq": 2, "prev": sha256_hex(second), "code": "fork", "evidence_sha256": PROTOCOL}
    chain = Chain("site-1", PROTOCOL, SIGN.public_hex)
    chain.read(leaf)
    chain.read(second)
    case.refused("REVOKED", lambda: chain.read(make_leaf("incident", third, (), [SIGN])))


@row(56)
def flipped_bits(case: Case) -> None:
    made = federation(case)
    request, _ = made.desk.request("site-0", HELLO)
    for at in range(16, len(request), max(1, len(request) // 40)):
        changed = bytearray(request)
        changed[at] ^= 1
        assert made.sessions["site-0"].handle(bytes(changed)) == b""
        assert case.events[-1].code == "unverified"
    close(made)
    tree = Tree()
    for index in range(20):
        tree.append(leaf_hash(b"%d" % index))
    root, proof = tree.root(), tree.inclusion(7, 20)
    for place in range(len(proof)):
        bad = [bytes([item[0] ^ (place == position)]) + item[1:] for position, item in enumerate(proof)]
        case.refused("PROOF", lambda bad=bad: verify_inclusion(7, 20, leaf_hash(b"7"), bad, root))
    wrong = bytes([root[0] ^ 1]) + root[1:]
    case.refused("PROOF", lambda: verify_inclusion(7, 20, leaf_hash(b"7"), proof, wrong))
    note = bytearray(sign_checkpoint(ORIGIN, 20, root, LOG))
    note[len(ORIGIN) + 2] ^= 1
    case.refused("SIG", lambda: open_checkpoint(bytes(note), VKEY, origin=ORIGIN))


def grown(count: int, word: bytes = b"leaf") -> Tree:
    """A tree of so many leaves."""
    tree = Tree()
    for index in range(count):
        tree.append(leaf_hash(word + b"%d" % index))
    return tree


def watched(case: Case) -> Witness:
    """A witness that has seen 20 leaves."""
    witness = Witness(case.home / "witness", COSIGN, "witness")
    witness.cosign(sign_checkpoint(ORIGIN, 20, grown(20).root(), LOG), VKEY, [], from_size=0)
    return witness


@row(57)
def rollback(case: Case) -> None:
    witness, small = watched(case), grown(19)
    note = sign_checkpoint(ORIGIN, 19, small.root(), LOG)
    assert case.refused("ROLLBACK", lambda: witness.cosign(note, VKEY, [], from_size=20)).code == "rollback"


@row(58)
def fork(case: Case) -> None:
    witness, other = watched(case), grown(20, b"other")
    note = sign_checkpoint(ORIGIN, 20, other.root(), LOG)
    assert case.refused("FORK", lambda: witness.cosign(note, VKEY, [], from_size=20)).code == "fork"


@row(59)
def odd_proofs(case: Case) -> None:
    tree = grown(20)
    root, proof = tree.root(), tree.inclusion(7, 20)
    leaf = leaf_hash(b"leaf7")
    verify_inclusion(7, 20, leaf, proof, root)
    for bad in (
        [bytes(32)] * 64,
        [proof[0][:31], *proof[1:]],
        [proof[0] + b"\0", *proof[1:]],
        [*proof, proof[0]],
    ):
        case.refused("PROOF", lambda bad=bad: verify_inclusion(7, 20, leaf, bad, root))
        case.refused("PROOF", lambda bad=bad: verify_consistency(7, 20, root, root, bad))


@row(60)
def checkpoint_sizes(case: Case) -> None:
    root = base64.b64encode(bytes(32)).decode()
    for size in ("007", "-1", "+5", str(2**64), "", "1e3", "\u0661", "1 ", "0x1"):
        case.refused("CKPT", lambda size=size: parse_checkpoint(f"{ORIGIN}\n{size}\n{root}\n"))


@row(61)
def odd_notes(case: Case) -> None:
    note = sign_checkpoint(ORIGIN, 20, grown(20).root(), LOG)
    line = note.split(b"\n\n")[1]
    junk = b"".join(
        b"\xe2\x80\x94 other%d " % index + base64.b64encode(bytes(68)) + b"\n" for index in range(17)
    )
    for bad in (note[:-1], note.replace(b"\n", b"\r\n"), note + junk, note[: -len(line)], b"", note + b"\0"):
        case.refused("NOTE", lambda bad=bad: open_checkpoint(bad, VKEY, origin=ORIGIN))


# Requests


def header_changed(case: Case, reason: str, code: str, *changes: dict[str, Any]) -> None:
    """A request that the study key signed, with another header: a logged, sealed refusal with one code."""
    made = federation(case)
    try:
        for change in changes:
            reply = made.ask("site-0", HELLO, **change)
            assert reply is not None and (reply.header["status"], reply.header["code"]) == ("refused", code)
            assert case.events[-1].values["reason"] == reason, case.events[-1]
            case.leaving.append(json.dumps(reply.header).encode() + reply.body)
    finally:
        close(made)


@row(62)
def replay_and_order(case: Case) -> None:
    made = federation(case)
    session = made.sessions["site-0"]
    first, sent = made.desk.request("site-0", HELLO)
    second, later = made.desk.request("site-0", HELLO)
    assert made.opened("site-0", session.handle(second), later.reply_key, sha256_hex(second)) is not None
    for request, key, code, reason in (
        (second, later.reply_key, "replay", "REPLAY"), (first, sent.reply_key, "order", "SEQ"),
    ):  # fmt: skip
        reply = made.opened("site-0", session.handle(request), key, sha256_hex(request))
        assert (
            reply is not None and reply.header["code"] == code and case.events[-1].values["reason"] == reason
        )
    close(made)
    chain = Chain("site-1", PROTOCOL, SIGN.public_hex)
    leaf = make_leaf("enrol", ENROL, (), [SIGN])
    chain.read(leaf)
    place = {name: ENROL[name] for name in ("study", "protocol", "party", "at")}
    gap = {**place, "seq": 2, "prev": sha256_hex(leaf), "code": "fork", "evidence_sha256": PROTOCOL}
    case.refused("SEQ", lambda: chain.read(make_leaf("incident", gap, (), [SIGN])))


@row(63)
def round_numbers(case: Case) -> None:
    made = federation(case)
    for number in (-1, 2**45, True, 1.5, "1"):
        reply = made.ask("site-0", HELLO, round=number)
        assert reply is not None and (reply.header["status"], reply.header["round"]) == ("refused", 0)
        assert case.events[-1].values["reason"] == "MSG_TYPE"
    reply = made.ask("site-0", HELLO, round=2**31)  # a number, but not the job that was logged
    assert reply is not None and case.events[-1].values["reason"] == "BIND"
    reply = made.ask("site-0", HELLO, seq=-1)
    assert reply is not None and case.events[-1].values["reason"] == "RANGE"
    close(made)


@row(64)
def other_federation(case: Case) -> None:
    changes = (
        {"study": "other"},
        {"protocol": "0" * 64},
        {"site": "site-1"},
        {"simulation": False},
        {"job": "0" * 64},
    )
    header_changed(case, "BIND", "message", *changes)


# Policies


def policy_row(case: Case, reason: str, *pairs: tuple[str, str]) -> None:
    """A good policy file with one replacement each."""
    good = render_policy(
        SitePolicy("p", "masked", site="a", valid_from="2026-11-01", valid_until="2027-05-01")
    )
    for old, new in pairs:
        assert old in good, old
        path = case.home / "site-policy.yaml"
        path.write_text(good.replace(old, new, 1))
        assert case.refused(reason, lambda path=path: load_policy(path)).code == "policy"


@row(65)
def policy_time(case: Case) -> None:
    policy = SitePolicy("p", "masked", site="a", valid_from="2026-11-01", valid_until="2027-05-01")
    for now in (0.0, 1_793_534_400 - 86_400, 4e9):
        assert case.refused("POLICY_TIME", lambda now=now: policy.check_time(now)).code == "policy"
    policy.check_time(1_800_000_000)


@row(66)
def yaml_tags(case: Case) -> None:
    marker = case.home / "executed"
    call = f"!!python/object/apply:os.system ['touch {marker}']"
    policy_row(
        case, "YAML_TAG", ("min_units: 11", f"min_units: {call}"), ("min_units: 11", "min_units: !!int 11")
    )
    assert not marker.exists()


@row(67)
def yaml_aliases(case: Case) -> None:
    bomb = "limits:\n  a: &a [x,x]\n  b: &b [*a,*a]\n  c: [*b,*b]\n"
    policy_row(case, "YAML_ALIAS", ("limits:\n", bomb))


@row(68)
def yaml_types(case: Case) -> None:
    words = [
        ("min_units: 11", f"min_units: {text}") for text in ("1_000", "010", "0x10", "1e3", "11.0", "NO")
    ]
    policy_row(case, "YAML_TYPE", *words)
    policy_row(case, "YAML_DUP", ("limits:\n", "limits:\n  rounds: 1\n"))


@row(69)
def policy_values(case: Case) -> None:
    policy_row(case, "POLICY", ("rounds: 100", "rounds: -1"), ("  - delta", '  - "*"'))
    policy_row(case, "YAML_ALIAS|YAML_SYNTAX", ("  - delta", "  - *"), ("  - delta", "  - *all"))
    for changes in (
        {"tensors": ("*",)},
        {"rounds": -1},
        {"profile": "dp", "epsilon_total": "inf", "delta_max": "1e-6"},
    ):
        case.refused(
            "POLICY", lambda changes=changes: SitePolicy(**{"name": "p", "profile": "masked", **changes})
        )


# Messages on their way


def serving(
    case: Case, handle: Callable[[bytes], bytes], use: Callable[[Path], None], limit: int = 1 << 20
) -> None:
    """An agent's socket for the time of a test."""
    folder = Path(tempfile.mkdtemp(prefix="cy", dir="/tmp"))  # a socket's address is short
    path = folder / "s"
    server = AgentServer(
        path, handle, allowed_uids=frozenset({os.getuid()}), max_request_bytes=limit, request_deadline_s=5.0
    )
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        use(path)
    finally:
        server.stop()
        thread.join()
        assert list(folder.iterdir()) == []
        folder.rmdir()


@row(70)
def huge_messages(case: Case) -> None:
    seen: list[bytes] = []

    def use(path: Path) -> None:
        for size in (10 << 30, 2 << 30, 2**64 - 1):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5)
                connection.connect(str(path))
                start = time.monotonic()
                connection.sendall(HEADER.pack(size))
                assert connection.recv(1) == b"" and time.monotonic() - start < 3

    serving(case, lambda data: seen.append(data) or b"", use)
    assert seen == []
    head = canonical_json({})
    lie = MAGIC + struct.pack(">I", len(head)) + head + struct.pack(">Q", 10 << 30) + bytes(64)
    with pytest.raises(MessageError, match="announced length"):
        unpack(lie, REQUEST, OTHER.public_hex)


@row(71)
def compressed_bomb(case: Case) -> None:
    """Nothing of ours unpacks what comes in: compressed bytes are just bytes that are no message."""
    bomb = gzip.compress(bytes(64 << 20), 9)
    made = federation(case)

    def use(path: Path) -> None:
        with pytest.raises(MessageError):
            call_agent(path, bomb, timeout_s=10)

    serving(case, made.sessions["site-0"].handle, use)
    assert case.events[-1].code == "unverified" and case.events[-1].values["bytes"] == len(bomb)
    close(made)
    case.refused("FORMAT", lambda: unpack_tensors(bomb))


@row(72)
def unknown_messages(case: Case) -> None:
    header_changed(
        case, "MSG_TYPE", "message", {"kind": "run_code"}, {"params": {"path": "/etc"}}, {"params": []}
    )
    blob = np.zeros(4, np.uint8)
    for content in (
        RecordDict({}),
        RecordDict({"other": ArrayRecord({"blob": Array("uint8", (4,), "cytosae.blob", b"1234")})}),
        RecordDict({"cytosae": ArrayRecord({"blob": Array("uint8", (4,), "numpy.ndarray", blob.tobytes())})}),
        RecordDict({"cytosae": MetricRecord({"blob": 1.0})}),
    ):
        with pytest.raises(MessageError, match="one array"):
            from_records(content)


@row(73)
def config_records(case: Case) -> None:
    config = ConfigRecord({"path": f"/etc/{case.canary}", "code": case.canary.encode()})
    with pytest.raises(MessageError, match="one array"):
        from_records(RecordDict({"cytosae": config}))
    both = to_records(b"message")
    both["config"] = config
    data = from_records(both)
    assert data == b"message"  # the rest is not looked at, and the reply is a new record
    case.leaving.append(data)
