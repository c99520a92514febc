"""Ed25519 keys: make, keep, load, name. Private keys are made where they are used and never travel."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .canonical import sha256_hex
from .errors import SetupError
from .signatures import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, verify_raw, verify_signature

__all__ = [
    "PUBLIC_KEY_BYTES",
    "SIGNATURE_BYTES",
    "SigningKey",
    "fingerprint",
    "verify_raw",
    "verify_signature",
]


class SigningKey:
    """An Ed25519 private key. `sign` prefixes the purpose, so that a signature has one meaning only."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, path: Path) -> SigningKey:
        """The key in `path` (PEM, PKCS8), made with mode 0600 when missing.

        Raises:
            SetupError: not an Ed25519 key, or readable by others.
        """
        if not path.exists():
            cls.generate()._save(path)
        if path.stat().st_mode & 0o077:
            raise SetupError(
                "Expected a private key that only its owner can read.", hint="chmod 600 the key."
            )
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            raise SetupError(
                "Expected an Ed25519 private key in PEM form.", hint="Make a new key."
            ) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise SetupError("Expected an Ed25519 private key.", hint="Make a new key.")
        return cls(private)

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(pem)

    @property
    def public_hex(self) -> str:
        """The public key, 64 hex digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, purpose: str, message: bytes) -> bytes:
        """64 signature bytes over `purpose`, a zero byte and `message`."""
        return self.sign_raw(purpose.encode() + b"\0" + message)

    def sign_raw(self, message: bytes) -> bytes:
        """64 signature bytes over exactly `message` (RFC 8032), for formats that name their own purpose: DSSE's
        PAE begins with "DSSEv1 ", so no message signed by `sign` reads as one. Signed notes do not: they have
        keys of their own."""
        return self._private.sign(message)


def fingerprint(public_hex: str) -> str:
    """Short name of a public key for people to compare by phone: five groups of four hex digits."""
    digest = sha256_hex(bytes.fromhex(public_hex))[:20]
    return "-".join(digest[start : start + 4] for start in range(0, 20, 4))
