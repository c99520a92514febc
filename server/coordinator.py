"""The coordinator's identity: makes signed requests, opens sealed replies. No network."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from cytosae_core import egress
from cytosae_core.canonical import sha256_hex
from cytosae_core.config import StudyConfig
from cytosae_core.envelope import REQUEST, pack
from cytosae_core.errors import StudyError
from cytosae_core.keys import SigningKey
from cytosae_core.tensors import pack_tensors

Array = NDArray[Any]


@dataclass(frozen=True)
class Ask:
    """One step for one site: kind, round, tensors and small parameters."""

    kind: str
    round: int
    tensors: Mapping[str, Array]
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Coordinator:
    """Study protocol, study key and the sites' pinned public keys (64 hex digits each)."""

    study: StudyConfig
    key: SigningKey
    site_keys: Mapping[str, str]

    def __post_init__(self) -> None:
        missing = [site for site in self.study.sites if site not in self.site_keys]
        if missing:
            raise StudyError(f"Expected a public key of every site, missing {missing}.")

    def request(self, site: str, ask: Ask) -> bytes:
        """A signed request: every retry is a new one, with its own nonce and expiry."""
        now = int(time.time())
        header = {
            "study": self.study.name,
            "protocol": self.study.digest,
            "site": site,
            "kind": ask.kind,
            "round": ask.round,
            "simulation": self.study.simulation,
            "nonce": secrets.token_hex(16),
            "issued": now,
            "expires": now + int(self.study.rounds.deadline_s) + 60,
            "params": dict(ask.params),
        }
        return pack(header, pack_tensors(ask.tensors), REQUEST, self.key)

    def open_reply(self, data: bytes, site: str, ask: Ask, request_sha256: str) -> egress.Reply:
        """The site's reply to exactly this request.

        Raises:
            VerificationError, MessageError: see `egress.open`. A refusal of a request that the site could not
            read carries kind `unknown`; it is accepted as a refusal only.
        """
        expected = {
            "study": self.study.name,
            "protocol": self.study.digest,
            "site": site,
            "request_sha256": request_sha256,
        }
        reply = egress.open(data, self.site_keys[site], expected, self.study.dims)
        if reply.status == "ok" and (reply.kind, reply.round) != (ask.kind, ask.round):
            raise StudyError(f"Expected a reply of kind={ask.kind} round={ask.round} from site={site}.")
        return reply


def request_digest(request: bytes) -> str:
    """What a reply names its request by."""
    return sha256_hex(request)
