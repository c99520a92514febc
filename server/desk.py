"""What goes out to a site and what comes back: signed requests, sealed and logged replies. No network.

Every request is logged before it is made, and is new: nonce, sequence number, expiry and a reply key of its own. A
repeat of the same question has the same `job`, so that a site can tell it from a new one.
"""

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
from cytosae_core.envelope import REPLY, REQUEST, pack, unpack
from cytosae_core.errors import MessageError
from cytosae_core.lineage import dictionary_digest, job_of
from cytosae_core.sealed import LOG_LABEL, REPLY_LABEL, ReplyKey, split_wire
from cytosae_core.tensors import pack_tensors

from .coordinator import Coordinator
from .record import Record

Array = NDArray[Any]
# Steps whose tensors differ from site to site; all other steps ask every site the same.
OWN_BODY = frozenset({"score", "sum_masked"})


@dataclass(frozen=True)
class Ask:
    """One step for one site: kind, round, tensors and small parameters."""

    kind: str
    round: int
    tensors: Mapping[str, Array]
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Sent:
    """A request that is out: what identifies its reply, and the key that opens it. Tensors are not kept."""

    site: str
    kind: str
    round: int
    request_sha256: str
    reply_key: ReplyKey


class Desk:
    """Makes requests and opens replies of one study.

    Args:
        coordinator: protocol and keys.
        record: the coordinator's logs.
    """

    def __init__(self, coordinator: Coordinator, record: Record) -> None:
        self._coordinator, self._record = coordinator, record
        self.study: StudyConfig = coordinator.study

    def request(self, site: str, ask: Ask) -> tuple[bytes, Sent]:
        """Bytes of a signed request, and what is needed to open its reply."""
        now, body, reply_key = int(time.time()), pack_tensors(ask.tensors), ReplyKey()
        base = dictionary_digest(ask.tensors)
        log = self._record.ask(site, ask.kind, ask.round, body, base, same_for_all=ask.kind not in OWN_BODY)
        header = {
            **self._identity(site),
            "kind": ask.kind,
            "round": ask.round,
            "simulation": self.study.simulation,
            "nonce": secrets.token_hex(16),
            "issued": now,
            "expires": now + int(self.study.rounds.deadline_s) + 60,
            "params": dict(ask.params),
            "base": base,
            "job": job_of(ask.kind, ask.round, sha256_hex(body), ask.params),
            "reply_key": reply_key.public_hex,
            "log": log,
            "seq": self._record.next_seq(site),
        }
        request = pack(header, body, REQUEST, self._coordinator.key)
        digest = sha256_hex(request)
        self._record.sending(site, ask.kind, ask.round, digest)
        return request, Sent(site, ask.kind, ask.round, digest, reply_key)

    def open_reply(self, data: bytes, sent: Sent) -> tuple[egress.Reply, bytes]:
        """The site's reply to exactly this request, and the signed bytes that it was read from.

        In this order: both boxes open, the site's signature holds, the site's log entry commits to these bytes,
        the receipt is in our log; only then are tensors read.

        Raises:
            VerificationError, MessageError: it is not the site's, not to this request, not logged, or outside
            the table of what may leave.
        """
        box, log_box = split_wire(data)
        payload = sent.reply_key.open_box(box, REPLY_LABEL, sent.request_sha256)
        section = sent.reply_key.open_box(log_box, LOG_LABEL, sent.request_sha256)
        envelope = unpack(payload, REPLY, self._coordinator.site_keys[sent.site])
        wanted: dict[str, Any] = {**self._identity(sent.site), "request_sha256": sent.request_sha256}
        refused = envelope.header.get("status") == "refused"
        wanted |= {} if refused else {"kind": sent.kind, "round": sent.round}
        for name, value in wanted.items():
            if envelope.header.get(name) != value:
                raise MessageError(f"Expected a reply with {name}={value!r}.", reason="BIND")
        context = {name: envelope.header[name] for name in ("kind", "round", "request_sha256")}
        self._record.receive(sent.site, context, box, payload, section, "refused" if refused else "ok")
        return egress.read(envelope, self.study.dims, len(data)), payload

    def unanswered(self, sent: Sent, code: str) -> None:
        """Log that no usable answer came to a request, and why: a code of faults or of errors."""
        self._record.fault(sent.site, sent.kind, sent.round, code, [sent.request_sha256])

    def _identity(self, site: str) -> dict[str, str]:
        return {"study": self.study.name, "protocol": self.study.digest, "site": site}
