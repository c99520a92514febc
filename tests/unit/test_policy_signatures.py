"""Officers sign the policy and every change of it; the pinned officers decide about new ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cytosae_core.errors import SetupError
from cytosae_core.keys import SigningKey, verify_signature
from cytosae_core.policy import (
    SitePolicy,
    check_signed,
    load_officers,
    load_policy,
    load_signed,
    read_signatures,
    sign_policy,
    write_policy,
)

OLD, NEW, THIRD = (SigningKey.generate() for _ in range(3))
BASE = SitePolicy("p", "masked", site="a", valid_from="2026-11-01", valid_until="2027-05-01")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A policy without officers."""
    write_policy(tmp_path / "site-policy.yaml", BASE)
    return tmp_path / "site-policy.yaml"


def rewrite(path: Path, **changes: object) -> None:
    write_policy(path, replace(load_policy(path), **changes))


def refused(path: Path, home: Path) -> str:
    with pytest.raises(SetupError) as error:
        load_signed(path, home)
    assert (error.value.code, error.value.reason) == ("policy", "POLICY")
    return str(error.value)


def test_first_signing_names_and_pins_the_officer(path: Path) -> None:
    home = path.parent / "home"
    assert "makes the first officer's key" in refused(path, home)
    assert not (home / "officers.json").exists()
    comments = path.read_text().count("#")
    sign_policy(path, OLD)
    assert path.read_text().count("#") == comments  # only the line of the officers changed
    policy = load_signed(path, home)
    assert policy.officers == (OLD.public_hex,) and load_officers(home) == ((OLD.public_hex,), 1)
    verify_signature(
        OLD.public_hex, "urn:cytosae:policy:v1", policy.digest.encode(),
        bytes.fromhex(read_signatures(path)[OLD.public_hex]),
    )  # fmt: skip


def test_a_changed_policy_needs_a_new_signature(path: Path) -> None:
    home = path.parent / "home"
    sign_policy(path, OLD)
    load_signed(path, home)
    rewrite(path, rounds=99_000)
    message = refused(path, home)
    assert "changed after it was signed" in message
    assert "site-policy.yaml" in message and "cytosae site policy sign" in message
    sign_policy(path, OLD)
    assert load_signed(path, home).rounds == 99_000


def test_a_comment_or_layout_may_change(path: Path) -> None:
    sign_policy(path, OLD)
    path.write_text(path.read_text().replace("# Who looks", "# We decided on Monday who looks"))
    load_signed(path, path.parent)


def test_new_officers_must_be_signed_by_the_old_ones(path: Path) -> None:
    home = path.parent
    sign_policy(path, OLD)
    load_signed(path, home)
    rewrite(path, officers=(NEW.public_hex,))
    sign_policy(path, NEW)
    assert "pinned in officers.json" in refused(path, home)
    assert load_officers(home)[0] == (OLD.public_hex,)
    sign_policy(path, OLD, home)  # not in the new list, but pinned
    assert load_signed(path, home).officers == (NEW.public_hex,)
    assert load_officers(home)[0] == (NEW.public_hex,)
    rewrite(path, rounds=1)
    with pytest.raises(SetupError, match="Expected the key of an officer"):
        sign_policy(path, OLD, home)  # no officer any more


def test_the_new_officers_must_sign_as_well(path: Path) -> None:
    sign_policy(path, OLD)
    load_signed(path, path.parent)
    rewrite(path, officers=(NEW.public_hex,))
    sign_policy(path, OLD)
    assert "its officers" in refused(path, path.parent)


def test_two_persons(path: Path) -> None:
    home = path.parent
    rewrite(path, officers=(OLD.public_hex, NEW.public_hex, THIRD.public_hex), signatures_needed=2)
    sign_policy(path, OLD)
    sign_policy(path, OLD)
    assert "2 of its officers" in refused(path, home)
    sign_policy(path, THIRD)
    load_signed(path, home)
    rewrite(path, signatures_needed=1)
    sign_policy(path, OLD)
    assert "2 of the officers that this site pinned" in refused(
        path, home
    )  # one officer cannot lower the number
    sign_policy(path, NEW)
    assert load_signed(path, home).signatures_needed == 1


def test_a_stranger_cannot_sign(path: Path) -> None:
    sign_policy(path, OLD)
    load_signed(path, path.parent)
    with pytest.raises(SetupError, match="Expected the key of an officer"):
        sign_policy(path, THIRD)


def test_signatures_of_another_policy_or_purpose_do_not_count(path: Path) -> None:
    policy = replace(BASE, officers=(OLD.public_hex,))
    other = replace(policy, rounds=1)
    for text in (
        OLD.sign("urn:cytosae:policy:v1", other.digest.encode()).hex(),
        OLD.sign("urn:cytosae:approval:v1", policy.digest.encode()).hex(),
        "00" * 64,
        "not hex",
        "",
    ):
        with pytest.raises(SetupError):
            check_signed(policy, {OLD.public_hex: text})
    check_signed(policy, {OLD.public_hex: OLD.sign("urn:cytosae:policy:v1", policy.digest.encode()).hex()})


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"urn":"x","urn":"x"}', b"\xff",
                                  b'{"urn":"urn:cytosae:policy-signatures:v1","signatures":[]}',
                                  b'{"urn":"urn:cytosae:policy-signatures:v1","signatures":{"x":"y"}}'])  # fmt: skip
def test_a_damaged_signature_file_is_named(path: Path, data: bytes) -> None:
    sign_policy(path, OLD)
    path.with_name("site-policy.yaml.sig").write_bytes(data)
    assert "site-policy.yaml.sig" in refused(path, path.parent)


PINS = '{"urn":"urn:cytosae:officers:v1","signatures_needed":1,"officers":%s}'


@pytest.mark.parametrize("data", [b"", b"{}", (PINS % "[]").encode(), (PINS % '["x"]').encode()])
def test_damaged_pins_close_the_door(path: Path, data: bytes) -> None:
    """A damaged file of pins is not taken for no pins."""
    sign_policy(path, OLD)
    (path.parent / "officers.json").write_bytes(data)
    assert "officers.json" in refused(path, path.parent)


def test_without_the_signature_file_nothing_is_served(path: Path) -> None:
    sign_policy(path, OLD)
    path.with_name("site-policy.yaml.sig").unlink()
    refused(path, path.parent)
