"""Signed replies and the tensors inside, read without numpy; tensors that nobody asks for are not decoded."""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from ...canonical import canonical_json, parse_json, sha256_hex
from ...signatures import SIGNATURE_BYTES, verify_signature
from ..statement import COORDINATOR
from .bundle import Bundle
from .logs import Fields, Logs, PartyLog, at
from .verdict import MALFORMED, Broken, Missing, need

REPLY, MAGIC = "urn:cytosae:reply:v1", b"CYTOSAE1"
TYPES = {"F32": ("float32", 4), "F16": ("float16", 2), "I64": ("int64", 8)}
TYPES |= {"U32": ("uint32", 4), "U8": ("uint8", 1)}
HEADER = ("study", "protocol", "kind", "round", "request_sha256", "status")


@dataclass(frozen=True)
class Tensor:
    """One tensor as it lies in the file."""

    dtype: str
    shape: list[int]
    raw: bytes


@dataclass
class Replies:
    """Verified replies that arrived before the first report, by (kind, round, site), None when not in the bundle; and
    the `ingress` entries of each site's messages until then."""

    tensors: dict[tuple[str, int, str], dict[str, Tensor] | None] = field(default_factory=dict)
    received: dict[str, list[Fields]] = field(default_factory=lambda: defaultdict(list))


def check_replies(bundle: Bundle, logs: Logs, held: Replies) -> str:
    """Every reply in the bundle is signed by its site and holds what the site's log says."""
    named = {f["payload"]["sha256"]: (log, f) for log in logs.values() for f in log.of("egress")}
    opened: dict[str, dict[str, Tensor]] = {}
    for path in sorted(bundle.under("payloads/")):
        digest = path.removesuffix(".reply")
        need(digest in named, "A reply that no site logged.", f"payloads/{path}")
        try:
            opened[digest] = _open(bundle.get(f"payloads/{path}"), f"payloads/{path}", *named[digest])
        except MALFORMED as error:
            raise Broken(f"Not a reply as its site signs it: {error}", f"payloads/{path}") from error
    closed = min((fields["seq"] for fields in logs[COORDINATOR].of("report")), default=0)
    for fields in logs[COORDINATOR].of("ingress"):
        if fields["seq"] < closed:
            held.received[fields["site"]].append(fields)
            step = (fields["kind"], fields["round"], fields["site"])
            if fields["status"] == "ok":
                held.tensors[step] = opened.get(fields["payload"]["sha256"]) or held.tensors.get(step)
    arrived = {fields["payload"]["sha256"] for fields in logs[COORDINATOR].of("ingress")}
    if absent := arrived - opened.keys():
        raise Missing(f"{len(opened)} replies hold; {len(absent)} that arrived are not in the bundle.")
    return f"{len(opened)} replies are signed by their sites and hold what the logs say."


def _open(data: bytes, link: str, log: PartyLog, fields: Fields) -> dict[str, Tensor]:
    leaf, size = at(log.party, fields), {"bytes": len(data), "sha256": sha256_hex(data)}
    need(size == fields["payload"], f"Not the reply of {leaf}.", link)
    header, body = open_reply(data, log.statements[fields["seq"]].signer)
    same = all(header.get(name) == fields[name] for name in HEADER) and header["site"] == log.party
    need(same, f"The reply says other things of itself than {leaf}.", link)
    tensors, withheld = read_tensors(body), header["suppressed"]
    held = {(name, item.dtype, *item.shape, withheld.get(name, 0)) for name, item in tensors.items()}
    said = {(item["name"], item["dtype"], *item["shape"], item["suppressed"]) for item in fields["tensors"]}
    need(held == said, f"The reply holds other tensors than {leaf} lists.", link)
    return tensors


def open_reply(data: bytes, signing: str) -> tuple[dict[str, Any], bytes]:
    """Header and body of a reply (format in cytosae_core/envelope.py) that `signing` signed."""
    start = 12 + int.from_bytes(data[8:12], "big")
    head, body, signature = data[12:start], data[start + 8 : -SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
    verify_signature(signing, REPLY, head, signature)
    header: dict[str, Any] = parse_json(head)
    framed = MAGIC + struct.pack(">I", len(head)) + head + struct.pack(">Q", len(body)) + body + signature
    said = {"type": REPLY, "body_bytes": len(body), "body_sha256": sha256_hex(body)}
    if data != framed or canonical_json(header) != head or header | said != header:
        raise ValueError("Expected a reply of exactly the announced content.")
    return header, body


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file without metadata, gaps or trailing bytes."""
    start, end, found = 8 + int.from_bytes(data[:8], "little"), 0, dict[str, Tensor]()
    for name, entry in sorted(parse_json(data[8:start]).items(), key=lambda item: item[1]["data_offsets"]):
        dtype, width = TYPES[entry["dtype"]]
        begin, end = end, end + width * math.prod(entry["shape"])
        if entry["data_offsets"] != [begin, end] or len(entry) != 3:
            raise ValueError(f"Expected tensor={name} right after the one before it.")
        found[name] = Tensor(dtype, entry["shape"], data[start + begin : start + end])
    if start + end != len(data):
        raise ValueError("Expected no bytes after the tensors.")
    return found
