"""Checking Ed25519 signatures (RFC 8032). Public keys are 64 hex digits."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .errors import VerificationError

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64


def verify_signature(public_hex: str, purpose: str, message: bytes, signature: bytes) -> None:
    """Raise VerificationError unless `signature` is `public_hex`'s over `purpose` and `message`."""
    verify_raw(public_hex, purpose.encode() + b"\0" + message, signature)


def verify_raw(public_hex: str, message: bytes, signature: bytes) -> None:
    """Raise VerificationError (SIG) unless `signature` (64 bytes) is `public_hex`'s over exactly `message`."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
        key.verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise VerificationError("Expected a valid signature of the pinned key.", reason="SIG") from error
