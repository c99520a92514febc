"""The transport port by files, for hospitals without any outgoing connection: sealed bytes on a stick.

OUT/net/mail/SITE/out/NAME.request    what to carry to the site       NAME: 16 digits of the request's SHA-256
OUT/net/mail/SITE/in/NAME.reply       what was carried back

A site has at most one request out; an older one is taken away, since its reply could not be opened any more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cytosae_core.canonical import canonical_json, parse_json, sha256_hex
from cytosae_core.tensors import write_atomic

from .transport import Incoming, Transport

MAX_REPLY_BYTES = 1 << 30
LISTED = "by-files.json"


class Mail:
    """`Transport` over folders below `folder`.

    Args:
        folder: OUT/net/mail.
        sites: who is reached this way.
    """

    def __init__(self, folder: Path, sites: Sequence[str]) -> None:
        self._folder, self._sites = folder, tuple(sorted(sites))
        self.in_flight = max(1, len(self._sites))
        self._pending: dict[str, tuple[str, float]] = {}  # ticket -> site, end (monotonic seconds)
        for site in self._sites:
            for name in ("out", "in"):
                (folder / site / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def sites(self) -> tuple[str, ...]:
        return self._sites

    def send(self, site: str, request: bytes, deadline_s: float) -> str:
        ticket, out = sha256_hex(request)[:16], self._folder / site / "out"
        for old in out.glob("*.request"):
            old.unlink()
        write_atomic(out / f"{ticket}.request", request)
        self._pending[ticket] = (site, time.monotonic() + deadline_s)
        return ticket

    def poll(self, wait_s: float) -> list[Incoming]:
        end = time.monotonic() + wait_s
        while True:
            answers = [found for ticket in list(self._pending) if (found := self._look(ticket))]
            if answers or time.monotonic() >= end:
                return answers
            time.sleep(min(0.2, wait_s))

    def _look(self, ticket: str) -> Incoming | None:
        site, end = self._pending[ticket]
        path = self._folder / site / "in" / f"{ticket}.reply"
        if path.is_file() and 0 < path.stat().st_size <= MAX_REPLY_BYTES:
            found = Incoming(ticket, site, path.read_bytes())
        elif time.monotonic() >= end:
            found = Incoming(ticket, site, None, "deadline")
        else:
            return None
        del self._pending[ticket]
        (self._folder / site / "out" / f"{ticket}.request").unlink(missing_ok=True)
        return found

    def close(self) -> None:
        self._pending.clear()


class Both:
    """Some sites by files, all others by another transport."""

    def __init__(self, mail: Mail, other: Transport) -> None:
        self._mail, self._other = mail, other
        self.in_flight = mail.in_flight + other.in_flight

    def sites(self) -> tuple[str, ...]:
        return tuple(sorted({*self._mail.sites(), *self._other.sites()}))

    def send(self, site: str, request: bytes, deadline_s: float) -> str:
        way: Transport = self._mail if site in self._mail.sites() else self._other
        return way.send(site, request, deadline_s)

    def poll(self, wait_s: float) -> list[Incoming]:
        return self._mail.poll(0.0) or self._other.poll(wait_s)

    def close(self) -> None:
        self._mail.close()
        self._other.close()


def list_sites(net: Path, sites: Sequence[str]) -> None:
    """Remember which sites of a study go by files."""
    write_atomic(net / LISTED, canonical_json(sorted(sites)))


def with_mail(transport: Transport, net: Path) -> Transport:
    """`transport`, or both ways when sites of the study in `net` go by files."""
    path = net / LISTED
    sites = [str(site) for site in parse_json(path.read_bytes())] if path.exists() else []
    return Both(Mail(net / "mail", sites), transport) if sites else transport
