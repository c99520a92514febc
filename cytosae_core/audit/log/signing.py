"""Signing notes: a log's checkpoints (0x01) and cosignatures of others' (0x04)."""

from __future__ import annotations

import base64
import struct

from ...keys import SigningKey
from ..note import DASH, checkpoint_text, cosigned_message, parse_vkey, vkey


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
