"""Signed replies and the safetensors inside, read without numpy; tensors that nobody asks for are not decoded."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from ...canonical import canonical_json, parse_json, sha256_hex
from ...keys import SIGNATURE_BYTES, verify_signature

REPLY = "urn:cytosae:reply:v1"
MAGIC = b"CYTOSAE1"
CODES = {"F32": ("float32", "f", 4), "F16": ("float16", "e", 2)}


@dataclass(frozen=True)
class Tensor:
    """One tensor as it lies in the file."""

    dtype: str
    shape: list[int]
    raw: bytes

    def values(self) -> list[float]:
        """All numbers, in C order."""
        code, width = next((code, width) for name, code, width in CODES.values() if name == self.dtype)
        return list(struct.unpack(f"<{len(self.raw) // width}{code}", self.raw))


def open_reply(data: bytes, signing: str) -> tuple[dict[str, Any], bytes]:
    """Header and body of a reply (format in cytosae_core/envelope.py) that `signing` signed."""
    start = 12 + int.from_bytes(data[8:12], "big")
    head, body, signature = data[12:start], data[start + 8 : -SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
    verify_signature(signing, REPLY, head, signature)
    header: dict[str, Any] = parse_json(head)
    said = {"type": REPLY, "body_bytes": len(body), "body_sha256": sha256_hex(body)}
    framed = MAGIC + struct.pack(">I", len(head)) + head + struct.pack(">Q", len(body)) + body + signature
    if data != framed or canonical_json(header) != head or any(header[name] != said[name] for name in said):
        raise ValueError("Expected a reply of exactly the announced content.")
    return header, body


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file without metadata, gaps or trailing bytes."""
    start, end, found = 8 + int.from_bytes(data[:8], "little"), 0, {}
    entries = sorted(parse_json(data[8:start]).items(), key=lambda item: item[1]["data_offsets"])
    for name, entry in entries:
        dtype, _, width = CODES[entry["dtype"]]
        size, begin = width * math.prod(entry["shape"]), end
        end += size
        if entry["data_offsets"] != [begin, end] or len(entry) != 3:
            raise ValueError(f"Expected tensor={name} right after the one before it.")
        found[name] = Tensor(dtype, entry["shape"], data[start + begin : start + end])
    if start + end != len(data):
        raise ValueError("Expected no bytes after the tensors.")
    return found
