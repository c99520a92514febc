"""Officers sign the policy, and every change of it.

`site-policy.yaml.sig` beside the policy holds signatures over its digest. The first signed policy pins its officers
in `officers.json`; from then on the pinned officers must sign every new policy, also one that names other officers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..canonical import canonical_json, parse_json
from ..errors import MessageError, SetupError, VerificationError
from ..keys import SigningKey, fingerprint, verify_signature
from ..tensors import write_atomic
from .files import load_policy, parse_policy
from .keys import OFFICER
from .site_policy import SitePolicy

PURPOSE = "urn:cytosae:policy:v1"
SIGNATURES_URN = "urn:cytosae:policy-signatures:v1"
OFFICERS_URN = "urn:cytosae:officers:v1"
Signatures = Mapping[str, str]  # officer's public key -> signature, both hex


def signature_path(path: Path) -> Path:
    """`site-policy.yaml.sig` beside `site-policy.yaml`."""
    return path.with_name(path.name + ".sig")


def read_signatures(path: Path) -> dict[str, str]:
    """Signatures beside the policy at `path`; empty when there is no such file.

    Raises:
        SetupError: the file is not one that `cytosae site policy sign` wrote.
    """
    values = _read(signature_path(path), SIGNATURES_URN)
    found = values.get("signatures", {}) if values else {}
    if not isinstance(found, dict) or not all(
        OFFICER.fullmatch(officer) and isinstance(text, str) for officer, text in found.items()
    ):
        raise SetupError(
            f"Expected signatures by officer in {signature_path(path).name}.",
            hint=f"Delete it and sign again: cytosae site policy sign {path.name} --key officer.key",
            code="policy", reason="POLICY",
        )  # fmt: skip
    return dict(found)


def _read(path: Path, urn: str) -> dict[str, object] | None:
    try:
        values = parse_json(path.read_bytes(), max_bytes=64 * 1024)
    except FileNotFoundError:
        return None
    except (OSError, MessageError) as error:
        raise SetupError(f"Expected a readable {path.name}.", code="policy", reason="POLICY") from error
    if not isinstance(values, dict) or values.get("urn") != urn:
        raise SetupError(f"Expected urn {urn} in {path.name}.", code="policy", reason="POLICY")
    return values


def load_officers(home: Path) -> tuple[tuple[str, ...], int]:
    """Officers that this site pinned, and how many of them must sign; nobody before the first signing."""
    values = _read(home / "officers.json", OFFICERS_URN)
    if values is None:
        return (), 0
    officers, needed = values.get("officers"), values.get("signatures_needed")
    if (
        not isinstance(officers, list) or not officers or not isinstance(needed, int)
        or not all(isinstance(item, str) and OFFICER.fullmatch(item) for item in officers)
    ):  # fmt: skip
        raise SetupError("Expected officers in officers.json.", code="policy", reason="POLICY")
    return tuple(officers), max(1, needed)


def pin_officers(home: Path, policy: SitePolicy) -> None:
    """Keep the policy's officers as those who must sign the next one. Call only after `check_signed`."""
    values = {
        "urn": OFFICERS_URN,
        "officers": list(policy.officers),
        "signatures_needed": policy.signatures_needed,
    }
    if _read(home / "officers.json", OFFICERS_URN) != values:
        home.mkdir(parents=True, exist_ok=True)
        write_atomic(home / "officers.json", canonical_json(values))


def check_signed(
    policy: SitePolicy,
    signatures: Signatures,
    trusted: Sequence[str] = (),
    needed: int = 0,
    *,
    file: str = "site-policy.yaml",
) -> None:
    """Refuse a policy that its officers, and the site's pinned officers, did not sign.

    Args:
        signatures: officer -> signature over the policy's digest.
        trusted, needed: pinned officers and how many of them must sign (`load_officers`); empty before the first
            signing.
        file: named in the message.

    Raises:
        SetupError: code `policy`: which file, and what to run.
    """
    sign = f"cytosae site policy sign {file} --key officer.key"
    if not policy.officers:
        raise SetupError(
            f"Expected approval.officers in {file}.", hint=f"{sign} makes the first officer's key.",
            code="policy", reason="POLICY",
        )  # fmt: skip
    good = {officer for officer, text in signatures.items() if _holds(officer, policy.digest, text)}
    for who, officers, count in (
        ("the officers that this site pinned in officers.json", trusted, needed if trusted else 0),
        ("its officers", policy.officers, policy.signatures_needed),
    ):
        have = len(good & set(officers))
        if have < count:
            changed = "It was changed after it was signed. " if signatures and not good else ""
            names = ", ".join(fingerprint(officer) for officer in officers)
            raise SetupError(
                f"Expected {file} to be signed by {count} of {who} ({names}), got {have}.",
                hint=f"{changed}Read it with `cytosae site policy explain {file}`, then: {sign}",
                code="policy", reason="POLICY",
            )  # fmt: skip


def _holds(officer: str, digest: str, signature: str) -> bool:
    try:
        verify_signature(officer, PURPOSE, digest.encode(), bytes.fromhex(signature))
    except (VerificationError, ValueError):
        return False
    return True


def load_signed(path: Path, home: Path) -> SitePolicy:
    """The policy that this site serves under: read, signed, and its officers pinned in `home`.

    Raises:
        SetupError: not readable, or not signed by those who must sign it.
    """
    policy = load_policy(path)
    check_signed(policy, read_signatures(path), *load_officers(home), file=path.name)
    pin_officers(home, policy)
    return policy


def sign_policy(path: Path, key: SigningKey, home: Path | None = None) -> SitePolicy:
    """Add an officer's signature beside the policy. A policy without officers gets this one as its first.

    Args:
        home: the agent's folder with `officers.json`; the policy's folder when None.

    Raises:
        SetupError: the key is nobody who has to sign: neither among the officers of the file nor pinned beside it.
    """
    policy = load_policy(path)
    if not policy.officers:
        policy = _first_officer(path, policy, key.public_hex)
    pinned, _ = load_officers(home or path.parent)
    if key.public_hex not in policy.officers and key.public_hex not in pinned:
        raise SetupError(
            f"Expected the key of an officer of {path.name}, got {fingerprint(key.public_hex)}.",
            hint=f"Add {key.public_hex} under approval.officers; the pinned officers must then sign too.",
            code="policy", reason="POLICY",
        )  # fmt: skip
    found = {o: s for o, s in read_signatures(path).items() if _holds(o, policy.digest, s)}
    found[key.public_hex] = key.sign(PURPOSE, policy.digest.encode()).hex()
    values = {"urn": SIGNATURES_URN, "policy_sha256": policy.digest, "signatures": found}
    write_atomic(signature_path(path), canonical_json(values))
    return policy


def _first_officer(path: Path, policy: SitePolicy, public_hex: str) -> SitePolicy:
    """Write the officer into the file's `officers: []`, keeping every other byte."""
    text = path.read_text("utf-8")
    changed = text.replace("officers: []", f'officers: ["{public_hex}"]', 1)
    new = parse_policy(changed.encode(), path.name)
    if new != replace(policy, officers=(public_hex,)):
        raise SetupError(
            f"Expected the line `officers: []` in {path.name}.", hint=f"Write officers: [\"{public_hex}\"]",
            code="policy", reason="POLICY",
        )  # fmt: skip
    write_atomic(path, changed.encode())
    return new
