"""One log entry in plain sentences: what it says, what it commits to, how it is bound to everything else."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cytosae_core.audit.note import unbase64
from cytosae_core.audit.statement import read_leaf
from cytosae_core.audit.tiles import TILE_WIDTH
from cytosae_core.audit.verify.bundle import Bundle
from cytosae_core.audit.verify.logs import PartyLog, open_log
from cytosae_core.canonical import canonical_json, parse_json, sha256_hex
from cytosae_core.errors import VerificationError

Json = Mapping[str, Any]
SAYS = {
    "enrol": "{party} opened its log as {role} of study {study!r}, with software {software} and three public keys.",
    "policy": "{party} put policy {name!r} (profile {profile}, approval {approval}) in force.",
    "release": "The coordinator is about to ask {site} for {kind} {round}, with a body of {body_bytes} bytes.",
    "accepted": "{party} checked the dictionary that came with {kind} {round}, and it passed every check.",
    "rejected": "{party} checked the dictionary that came with {kind} {round} and refused to use it.",
    "refused": "{party} refused a request for {kind} {round}: {code}.",
    "blocked": "{party}'s door stopped its own reply to {kind} {round} in gate step {step}: {code}. Nothing left.",
    "egress": "{party} let a reply to {kind} {round} leave, status {status}.",
    "ingress": "The coordinator received {site}'s reply to {kind} {round}, status {status}.",
    "fault": "{site} gave no usable answer to {kind} {round}: {code}.",
    "aggregate": "The coordinator made the dictionary after round {round} with rule {rule}.",
    "report": "The coordinator published a report.",
    "withdraw": "{party} withdrew (scope {scope}); {payloads_deleted} replies were deleted.",
    "key_rotate": "{party} replaced its {role} key; old and new key signed this.",
    "key_revoke": "{party} revoked a {role} key: nothing that it signed from entry {from_seq} on counts.",
    "incident": "{party} saw a contradiction: {code}.",
}
COMMITS = {
    "policy_sha256": "the policy file with SHA-256 {0}",
    "body_sha256": "the request's body with SHA-256 {0}",
    "dictionary_sha256": "the dictionary with SHA-256 {0}",
    "request_sha256": "the request with SHA-256 {0}",
    "wire": "{0[bytes]} sealed bytes on the wire with SHA-256 {0[sha256]}",
    "payload": "the signed reply of {0[bytes]} bytes with SHA-256 {0[sha256]}",
    "site_log": "entry {0[index]} of the site's log, under its head of {0[size]} entries",
    "coordinator": "the coordinator's head of {0[size]} entries that the site had seen and cosigned",
    "base_sha256": "the dictionary that it started from, SHA-256 {0}",
    "result_sha256": "the dictionary that came out, SHA-256 {0}",
    "report_sha256": "report.json with SHA-256 {0}",
    "evidence_sha256": "the evidence with SHA-256 {0}",
}


def explain(where: str) -> list[str]:
    """Sentences about BUNDLE/PARTY/INDEX (verified with all of that log), or about a file that holds one entry.

    Raises:
        VerificationError: no such entry, or it does not hold.
    """
    path = Path(where)
    if path.is_file():
        return _lone(path.read_bytes())
    folder, party, index = path.parent.parent, path.parent.name, path.name
    log = _log(folder, party)
    if not index.isdigit() or int(index) >= len(log.statements):
        raise VerificationError(
            f"Expected an entry of {party} below {len(log.statements)}, got {index}.", hint="Count from 0."
        )
    found = log.statements[int(index)]
    lines = _content(found.kind, found.predicate)
    width = f"logs/{party}, leaf {index} of {log.head.size}"
    return [
        *lines,
        "How it is bound:",
        f"  - It is {width}; its bytes are in the entry bundle {int(index) // TILE_WIDTH} and under the signed head.",
        f"  - {party} signed it with the key that it enrolled or rotated to: {found.signer[:16]}...",
        f"  - It names the entry before it by SHA-256: {found.predicate['prev'][:16]}...",
        "  - This command verified all of that for this log. For the other parties: cytosae audit verify.",
    ]


def _log(folder: Path, party: str) -> PartyLog:
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in [folder / "keys.json", folder / "protocol.json", *(folder / "logs" / party).rglob("*")]
        if path.is_file() and not path.is_symlink()
    }
    if f"logs/{party}/checkpoint" not in files:
        raise VerificationError(
            f"Expected a bundle with a log of {party} in {folder}.",
            hint="Write BUNDLE/PARTY/INDEX, as b/site-a/12.",
        )
    return open_log(Bundle(files), party)


def _lone(data: bytes) -> list[str]:
    """An entry without its log: only its form can be checked, and that the key it names signed it."""
    predicate = parse_json(unbase64(parse_json(data)["payload"]))["predicate"]
    lines = [
        f"An entry on its own (SHA-256 {sha256_hex(data)}): neither its signature nor its place was checked."
    ]
    if isinstance(predicate, dict) and "keys" in predicate:
        signing = predicate["keys"]["signing"]
        read_leaf(data, {signing[:16]: signing})
        lines = ["An enrolment on its own: signed with the key that it names. Compare that key by phone."]
    kind = str(parse_json(unbase64(parse_json(data)["payload"]))["predicateType"]).split(":")[2]
    return [*lines, *_content(kind, predicate)]


def _content(kind: str, fields: Json) -> list[str]:
    who = {**fields, "site": "every site" if fields.get("site") == "*" else fields.get("site", "")}
    when = datetime.fromtimestamp(fields["at"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    lines = [f"{SAYS[kind].format(**who)} ({fields['party']}'s clock: {when})"]
    bound = [text.format(fields[name]) for name, text in COMMITS.items() if fields.get(name)]
    lines += ["It commits to:", *(f"  - {item}" for item in bound)] if bound else []
    lines += [f"  - {item['site']}'s reply {item['payload_sha256']}" for item in fields.get("inputs", [])]
    if kind == "egress":
        lines += _left(fields)
    lines += [
        f"  check {item['id']}: {item['value']} (limit {item['limit']})" for item in fields.get("checks", [])
    ]
    return [*lines, "All of it:", canonical_json(dict(fields)).decode()]


def _left(fields: Json) -> list[str]:
    tensors = [
        f"  - {item['name']} {item['dtype']}{item['shape']}, {item['suppressed']} values withheld"
        for item in fields["tensors"]
    ]
    again = (
        f"a repeat of entry {fields['repeats']}" if fields["repeats"] >= 0 else "nothing that had left before"
    )
    return [
        "What left:" if tensors else "No tensor left.",
        *tensors,
        f"  under profile {fields['profile']}, smallest group {fields['min_units']}; it is {again}.",
        f"  differential privacy: {fields['dp']['mechanism']}.",
        f"  budget after it: {fields['budget']['messages']} messages, {fields['budget']['bytes']} bytes.",
        *(f"  gate {item['id']}: {item['value']} (limit {item['limit']})" for item in fields["gate"]),
    ]
