"""Edge cases of the signatures and boxes, from C2SP wycheproof: valid and invalid exactly as listed there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cytosae_core.errors import VerificationError
from cytosae_core.keys import verify_raw

pytestmark = pytest.mark.shared


def cases(shared: Path, name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    content = json.loads((shared / "vectors" / "wycheproof" / name).read_text())
    found = [(group, case) for group in content["testGroups"] for case in group["tests"]]
    assert len(found) == content["numberOfTests"] > 0
    yield from found


def raw(case: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(case[name])


def test_ed25519_through_our_verification(shared: Path) -> None:
    results = []
    for group, case in cases(shared, "ed25519_test.json"):
        try:
            verify_raw(group["publicKey"]["pk"], raw(case, "msg"), raw(case, "sig"))
            found = "valid"
        except VerificationError:
            found = "invalid"
        assert found == case["result"], case
        results.append(found)
    assert results.count("valid") > 50 and results.count("invalid") > 50


def test_x25519(shared: Path) -> None:
    """Results marked acceptable may go either way in the list; all-zero secrets must be refused here (RFC 7748)."""
    refused = 0
    for _, case in cases(shared, "x25519_test.json"):
        private = X25519PrivateKey.from_private_bytes(raw(case, "private"))
        zero = case["shared"] == "00" * 32
        try:
            found = private.exchange(X25519PublicKey.from_public_bytes(raw(case, "public")))
        except ValueError:
            assert zero and case["result"] != "valid", case
            refused += 1
            continue
        assert found == raw(case, "shared") and not zero, case
    assert refused > 5


def test_chacha20_poly1305(shared: Path) -> None:
    for group, case in cases(shared, "chacha20_poly1305_test.json"):
        cipher = ChaCha20Poly1305(raw(case, "key"))
        sealed = raw(case, "ct") + raw(case, "tag")
        if group["ivSize"] != 96:
            assert case["result"] == "invalid"
            with pytest.raises(ValueError, match=r"[Nn]once"):
                cipher.decrypt(raw(case, "iv"), sealed, raw(case, "aad"))
            continue
        if case["result"] == "invalid":
            with pytest.raises(InvalidTag):
                cipher.decrypt(raw(case, "iv"), sealed, raw(case, "aad"))
            continue
        assert cipher.decrypt(raw(case, "iv"), sealed, raw(case, "aad")) == raw(case, "msg")
        assert cipher.encrypt(raw(case, "iv"), raw(case, "msg"), raw(case, "aad")) == sealed


def test_hkdf_sha256(shared: Path) -> None:
    for _, case in cases(shared, "hkdf_sha256_test.json"):
        if case["result"] == "invalid":
            with pytest.raises(ValueError, match="derive"):
                HKDF(SHA256(), case["size"], raw(case, "salt"), raw(case, "info"))
            continue
        derived = HKDF(SHA256(), case["size"], raw(case, "salt"), raw(case, "info")).derive(raw(case, "ikm"))
        assert derived == raw(case, "okm"), case
