"""The signed envelope that requests and replies travel in. Bytes in, value or error out; no IO.

    "CYTOSAE1" | u32 header length | header (canonical JSON) | u64 body length | body | Ed25519 signature (64)

The header carries the body's SHA-256 and length, and the signature covers purpose and header, so one check
covers all. The signature is verified before any byte of the header is parsed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from .canonical import canonical_json, parse_json, sha256_hex
from .errors import MessageError
from .keys import SIGNATURE_BYTES, SigningKey, verify_signature

MAGIC = b"CYTOSAE1"
MAX_HEADER_BYTES = 4 * 1024 * 1024
MAX_BODY_BYTES = 2 * 1024 * 1024 * 1024
REQUEST = "urn:cytosae:request:v1"
REPLY = "urn:cytosae:reply:v1"


@dataclass(frozen=True)
class Envelope:
    """A verified envelope: its header (JSON object), its body bytes and the SHA-256 of the whole."""

    header: dict[str, Any]
    body: bytes
    sha256: str


def pack(header: dict[str, Any], body: bytes, purpose: str, key: SigningKey) -> bytes:
    """Bytes of a signed envelope. `purpose` is `REQUEST` or `REPLY`."""
    full = {**header, "type": purpose, "body_bytes": len(body), "body_sha256": sha256_hex(body)}
    head = canonical_json(full)
    if len(head) > MAX_HEADER_BYTES:
        raise MessageError(f"Expected a header of at most {MAX_HEADER_BYTES} bytes, got {len(head)}.")
    signature = key.sign(purpose, head)
    return b"".join(
        (MAGIC, struct.pack(">I", len(head)), head, struct.pack(">Q", len(body)), body, signature)
    )


def unpack(data: bytes, purpose: str, public_hex: str) -> Envelope:
    """Verify and open an envelope signed by `public_hex` for `purpose`.

    Raises:
        MessageError: not an envelope, wrong sizes, wrong type, body digest differs.
        VerificationError: signature of another key or purpose.
    """
    head, body, signature = _split(data)
    verify_signature(public_hex, purpose, head, signature)
    header = parse_json(head, max_bytes=MAX_HEADER_BYTES)
    if not isinstance(header, dict) or header.get("type") != purpose:
        raise MessageError(f"Expected an envelope of type={purpose}.")
    if header.get("body_bytes") != len(body) or header.get("body_sha256") != sha256_hex(body):
        raise MessageError("Expected the body that the header was signed with.")
    return Envelope(header, body, sha256_hex(data))


def body_of(data: bytes) -> bytes:
    """The body of an envelope that was verified before, without verifying it again."""
    return _split(data)[1]


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
    if len(data) < len(MAGIC) + 12 + SIGNATURE_BYTES or not data.startswith(MAGIC):
        raise MessageError("Expected a CytoSAE envelope.", hint="Both sides must run the same version.")
    start = len(MAGIC) + 4
    (head_length,) = struct.unpack(">I", data[len(MAGIC) : start])
    if head_length > MAX_HEADER_BYTES or start + head_length + 8 + SIGNATURE_BYTES > len(data):
        raise MessageError("Expected an envelope header inside the message.")
    body_start = start + head_length + 8
    (body_length,) = struct.unpack(">Q", data[start + head_length : body_start])
    if body_length > MAX_BODY_BYTES or body_start + body_length + SIGNATURE_BYTES != len(data):
        raise MessageError("Expected an envelope of exactly the announced length.")
    return (
        data[start : start + head_length],
        data[body_start : body_start + body_length],
        data[-SIGNATURE_BYTES:],
    )
