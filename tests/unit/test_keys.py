"""Keys: purposes, raw signatures, files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytosae_core.errors import SetupError, VerificationError
from cytosae_core.keys import SigningKey, fingerprint, verify_raw, verify_signature

KEY = SigningKey.generate()


def test_no_bit_of_a_signature_key_or_message_can_be_turned() -> None:
    message, signature = b"message", KEY.sign_raw(b"message")
    verify_raw(KEY.public_hex, message, signature)
    for name, data in (
        ("signature", signature),
        ("message", message),
        ("key", bytes.fromhex(KEY.public_hex)),
    ):
        value = int.from_bytes(data, "big")
        for bit in range(8 * len(data)):
            changed = (value ^ (1 << bit)).to_bytes(len(data), "big")
            given = {
                "signature": signature,
                "message": message,
                "key": bytes.fromhex(KEY.public_hex),
                name: changed,
            }
            with pytest.raises(VerificationError) as caught:
                verify_raw(given["key"].hex(), given["message"], given["signature"])
            assert caught.value.reason == "SIG"


def test_a_signature_is_for_one_purpose() -> None:
    signature = KEY.sign("urn:cytosae:reply:v1", b"x")
    verify_signature(KEY.public_hex, "urn:cytosae:reply:v1", b"x", signature)
    verify_raw(KEY.public_hex, b"urn:cytosae:reply:v1\0x", signature)
    for purpose, message in (("urn:cytosae:request:v1", b"x"), ("", b"x"), ("urn:cytosae:reply:v1", b"")):
        with pytest.raises(VerificationError):
            verify_signature(KEY.public_hex, purpose, message, signature)


@pytest.mark.parametrize("public", ["", "zz", "00" * 31, "00" * 33, "ab" * 31 + "a", "not hex at all"])
def test_what_is_not_a_key_verifies_nothing(public: str) -> None:
    with pytest.raises(VerificationError):
        verify_raw(public, b"x", KEY.sign_raw(b"x"))


@pytest.mark.parametrize("length", [0, 1, 32, 63, 65, 128])
def test_signatures_have_64_bytes(length: int) -> None:
    with pytest.raises(VerificationError):
        verify_raw(KEY.public_hex, b"x", (KEY.sign_raw(b"x") * 2)[:length])


def test_a_key_file_is_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "log.key"
    first = SigningKey.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load_or_create(path).public_hex == first.public_hex
    path.chmod(0o644)
    with pytest.raises(SetupError, match="only its owner"):
        SigningKey.load_or_create(path)


def test_a_file_that_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "log.key"
    for data in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff" * 100):
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(SetupError):
            SigningKey.load_or_create(path)


def test_fingerprints_are_for_the_telephone() -> None:
    assert fingerprint("00" * 32) == "6668-7aad-f862-bd77-6c8f"
