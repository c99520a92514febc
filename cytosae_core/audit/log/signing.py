"""Signing: statements, a log's checkpoints (0x01) and cosignatures of others' (0x04)."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...canonical import canonical_json
from ...errors import MessageError, VerificationError
from ...keys import SigningKey
from ..note import DASH, checkpoint_text, cosigned_message, parse_vkey, vkey
from ..statement import PAYLOAD_TYPE, STATEMENT, pae, read_leaf


def make_leaf(
    kind: str,
    predicate: Mapping[str, Any],
    subjects: Iterable[tuple[str, str]],
    signers: Sequence[SigningKey],
) -> bytes:
    """The bytes of a leaf. `signers`: the party's signing key; for `key_rotate` also the old and the new key.

    Raises:
        VerificationError: reason SCHEMA, CANON or SIZE: no reader would accept it.
    """
    subject = [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects]
    content = {"_type": STATEMENT, "predicateType": f"urn:cytosae:{kind}:v1", "predicate": dict(predicate)}
    try:
        payload = canonical_json({**content, "subject": subject})
    except MessageError as error:
        raise VerificationError("Expected values that canonical JSON has.", reason="SCHEMA") from error
    signatures = [
        {"keyid": key.public_hex[:16], "sig": base64.b64encode(key.sign_raw(pae(payload))).decode()}
        for key in signers
    ]
    encoded = base64.b64encode(payload).decode()
    leaf = {"payload": encoded, "payloadType": PAYLOAD_TYPE, "signatures": signatures}
    data = canonical_json(leaf)
    read_leaf(data, {key.public_hex[:16]: key.public_hex for key in signers})
    return data


def sign_checkpoint(origin: str, size: int, root: bytes, key: SigningKey) -> bytes:
    """A checkpoint as a signed note. The same head and key give the same bytes (Ed25519 has no randomness)."""
    text = checkpoint_text(origin, size, root)
    return f"{text}\n{_line(origin, 'log', key, key.sign_raw(text.encode()))}\n".encode()


def cosign_text(text: str, name: str, key: SigningKey, seconds: int) -> str:
    """The cosignature line (without newline) of a checkpoint's text at a unix time, under a witness's name."""
    signature = key.sign_raw(cosigned_message(text, seconds))
    return _line(name, "cosign", key, struct.pack(">Q", seconds) + signature)


def _line(name: str, role: str, key: SigningKey, signature: bytes) -> str:
    key_id = parse_vkey(vkey(name, role, key.public_hex)).key_id
    return f"{DASH}{name} {base64.b64encode(key_id + signature).decode()}"
