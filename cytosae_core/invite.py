"""How a site joins a study: an invite, an enrolment, a confirmation. Signed JSON, small, no private key in any.

coordinator  --invite-->        site     protocol, endpoint, certificate authority, a token that is good once
coordinator  <--enrolment--     site     public keys that were made at the site, and a certificate request
coordinator  --confirmation-->  site     the certificate, once both compared the site key's fingerprint by phone
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from .canonical import canonical_json, parse_json
from .config import SITE_NAME, StudyConfig, study_from_dict
from .errors import CytosaeError, StudyError, VerificationError
from .keys import SigningKey
from .signatures import verify_signature

URN, ENROL_URN, CONFIRM_URN = (
    "urn:cytosae:invite:v1",
    "urn:cytosae:enrol:v1",
    "urn:cytosae:enrolled:v1",
)
MAX_BYTES = 1 << 20
TOKEN_BYTES = 32
_HEX = re.compile(r"[0-9a-f]{64}")
_ENDPOINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}:[0-9]{1,5}")
_DAY = "%Y-%m-%dT%H:%M:%SZ"
Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Invite:
    """What the coordinator sends to one site.

    Attributes:
        study, site: names. endpoint: host:port of the study's front door.
        ca: the study's certificate authority (PEM). study_key: its public key, 64 hex digits.
        protocol: the signed protocol. start_sha256: of the start file, "" when the study starts at random.
        token: enrolls once. expires: UTC.
    """

    study: str
    site: str
    endpoint: str
    ca: str
    study_key: str
    protocol: Json
    start_sha256: str
    token: str
    expires: str

    @property
    def config(self) -> StudyConfig:
        """The protocol as an object."""
        return study_from_dict(self.protocol)


@dataclass(frozen=True)
class Enrolment:
    """What a site answers: its public keys. `csr`: a certificate request in PEM, its subject is not used."""

    study: str
    protocol: str
    site: str
    token: str
    site_key: str
    node_key: str
    csr: str


@dataclass(frozen=True)
class Confirmation:
    """What the coordinator answers when both compared fingerprints."""

    study: str
    protocol: str
    site: str
    site_key: str
    certificate: str


def make_invite(
    key: SigningKey, study: StudyConfig, site: str, *, endpoint: str, ca: str, start_sha256: str, days: int
) -> tuple[bytes, str]:
    """An invite's bytes, and the SHA-256 of its token (which the coordinator keeps instead of the token).

    Raises:
        StudyError: not a site of the study, or an endpoint of another form.
    """
    if site not in study.sites:
        raise StudyError(f"Expected a site of the study, one of {', '.join(study.sites)}; got {site}.")
    if not _ENDPOINT.fullmatch(endpoint) or not 1 <= days <= 365:
        raise StudyError(
            "Expected --endpoint HOST:PORT and 1 to 365 --days.", hint="The address that sites reach."
        )
    token = base64.urlsafe_b64encode(os.urandom(TOKEN_BYTES)).decode().rstrip("=")
    expires = (datetime.now(UTC) + timedelta(days=days)).strftime(_DAY)
    invite = Invite(
        study.name, site, endpoint, ca, key.public_hex, study.to_dict(), start_sha256, token, expires
    )
    return _signed(key, URN, asdict(invite)), token_sha256(token)


def token_sha256(token: str) -> str:
    """What the coordinator keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_invite(data: bytes, *, now: datetime | None = None) -> Invite:
    """A verified invite.

    Raises:
        VerificationError: not signed by the key that it names, or not an invite.
        StudyError: it expired, or its protocol has no such site.
    """
    values = _verified(data, URN, lambda item: str(item["study_key"]))
    found = _build(Invite, values)
    if not _ENDPOINT.fullmatch(found.endpoint) or not SITE_NAME.fullmatch(found.site):
        raise VerificationError("Expected an endpoint host:port and a site's name in the invite.")
    study = found.config
    if found.site not in study.sites or study.name != found.study:
        raise StudyError("Expected an invite for a site of its own study.")
    if (now or datetime.now(UTC)) > datetime.strptime(found.expires, _DAY).replace(tzinfo=UTC):
        raise StudyError(
            f"Expected an invite that is still good, this one ended {found.expires}.",
            hint="Ask the coordinator for a new one: cytosae study invite.",
        )
    return found


def make_enrolment(key: SigningKey, invite: Invite, *, node_key: str, csr: str) -> bytes:
    """The site's answer to an invite."""
    made = Enrolment(
        invite.study, invite.config.digest, invite.site, invite.token, key.public_hex, node_key, csr
    )
    return _signed(key, ENROL_URN, asdict(made))


def read_enrolment(data: bytes, study: StudyConfig) -> Enrolment:
    """A verified enrolment for this very protocol.

    Raises:
        VerificationError: not signed by the site key in it, for another study, or of another form.
    """
    found = _build(Enrolment, _verified(data, ENROL_URN, lambda item: str(item["site_key"])))
    if (found.study, found.protocol) != (study.name, study.digest) or found.site not in study.sites:
        raise VerificationError("Expected an enrolment for this study's protocol.")
    if not found.node_key.startswith("ecdsa-sha2-nistp384 ") or len(found.node_key) > 400:
        raise VerificationError("Expected an ECDSA P-384 node key in OpenSSH form.")
    return found


def make_confirmation(key: SigningKey, enrolment: Enrolment, certificate: str) -> bytes:
    """The coordinator's answer to a site that it knows."""
    made = Confirmation(enrolment.study, enrolment.protocol, enrolment.site, enrolment.site_key, certificate)
    return _signed(key, CONFIRM_URN, asdict(made))


def read_confirmation(data: bytes, invite: Invite, site_key: str) -> Confirmation:
    """A verified confirmation of this invite and this site's key.

    Raises:
        VerificationError: signed by another key, for another site or another key of it.
    """
    found = _build(Confirmation, _verified(data, CONFIRM_URN, lambda item: invite.study_key))
    expected = (invite.study, invite.config.digest, invite.site, site_key)
    if (found.study, found.protocol, found.site, found.site_key) != expected:
        raise VerificationError("Expected a confirmation of this site and its key.")
    return found


def _signed(key: SigningKey, urn: str, values: Mapping[str, Any]) -> bytes:
    content = {"urn": urn, **values}
    return canonical_json({**content, "signature": key.sign(urn, canonical_json(content)).hex()})


def _verified(data: bytes, urn: str, signer: Any) -> Json:
    try:
        content = parse_json(data, max_bytes=MAX_BYTES)
        if not isinstance(content, dict) or content.get("urn") != urn:
            raise VerificationError(f"Expected {urn}.")
        signature = bytes.fromhex(content.pop("signature"))
        public = signer(content)
        if not _HEX.fullmatch(public):
            raise VerificationError("Expected a public key of 64 hex digits.")
        verify_signature(public, urn, canonical_json(content), signature)
    except CytosaeError as error:
        raise VerificationError(f"Expected a signed {urn.split(':')[2]}: {error.args[0]}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise VerificationError(f"Expected a signed {urn.split(':')[2]}.") from None
    content.pop("urn")
    return content


def _build(cls: type[T], values: Json) -> T:
    kinds = {item.name: dict if item.type == "Json" else str for item in fields(cls)}  # type: ignore[arg-type]
    if set(values) != set(kinds) or any(not isinstance(values[name], kind) for name, kind in kinds.items()):
        raise VerificationError("Expected the fields of this document, and no others.")
    return cls(**values)
