"""Keys and the signed envelope: one changed byte anywhere is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cytosae_core.envelope import REPLY, REQUEST, pack, unpack
from cytosae_core.errors import CytosaeError, MessageError, SetupError, VerificationError
from cytosae_core.keys import SigningKey, fingerprint, verify_signature


def test_round_trip() -> None:
    key = SigningKey.generate()
    envelope = unpack(pack({"kind": "hello"}, b"body", REQUEST, key), REQUEST, key.public_hex)
    assert envelope.header["kind"] == "hello" and envelope.body == b"body"


def test_every_changed_byte_is_found() -> None:
    key = SigningKey.generate()
    data = pack({"kind": "hello", "round": 3}, b"some body", REPLY, key)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(CytosaeError):
            unpack(bytes(changed), REPLY, key.public_hex)


@pytest.mark.parametrize("cut", [0, 5, 20, -1, -64])
def test_truncated_is_refused(cut: int) -> None:
    key = SigningKey.generate()
    with pytest.raises(MessageError):
        unpack(pack({}, b"body", REPLY, key)[:cut], REPLY, key.public_hex)


def test_another_key_or_purpose_is_refused() -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    data = pack({}, b"", REQUEST, key)
    with pytest.raises(VerificationError):
        unpack(data, REQUEST, other.public_hex)
    with pytest.raises(VerificationError):
        unpack(data, REPLY, key.public_hex)


def test_key_file_is_private_and_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "home" / "site.key"
    first = SigningKey.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load_or_create(path).public_hex == first.public_hex
    assert len(fingerprint(first.public_hex)) == 24
    path.chmod(0o644)
    with pytest.raises(SetupError):
        SigningKey.load_or_create(path)


def test_damaged_key_file_is_a_setup_error(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    path.write_text("not a key")
    path.chmod(0o600)
    with pytest.raises(SetupError):
        SigningKey.load_or_create(path)


@pytest.mark.shared
def test_wycheproof_ed25519(shared: Path) -> None:
    """Independent signatures, good and bad: ours wraps the message, so the raw primitive is checked."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    groups = json.loads((shared / "vectors" / "wycheproof" / "ed25519_test.json").read_text())["testGroups"]
    checked = 0
    for group in groups:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(group["publicKey"]["pk"]))
        for case in group["tests"]:
            try:
                key.verify(bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"]))
                good = True
            except InvalidSignature:
                good = False
            assert good == (case["result"] == "valid"), case["comment"]
            checked += 1
    assert checked > 100


def test_verify_signature_refuses_nonsense() -> None:
    with pytest.raises(VerificationError):
        verify_signature("zz", REPLY, b"", b"")
