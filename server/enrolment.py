"""Who takes part: invites, enrolments that wait, confirmations. Files in the study folder, nothing in memory.

OUT/net/invites/SITE.json    token's SHA-256, end, endpoint     OUT/net/pending/SITE.json    a signed enrolment
OUT/net/confirmed/SITE.json  a signed confirmation              OUT/site-keys.json           pinned site keys
OUT/net/nodes/SITE.pub       the SuperNode's public key         OUT/net/events.jsonl         what happened, when
"""

from __future__ import annotations

import hmac
import json
from datetime import UTC, datetime
from pathlib import Path

from cytosae_core.canonical import canonical_json, parse_json
from cytosae_core.config import StudyConfig
from cytosae_core.errors import MessageError, StudyError
from cytosae_core.invite import Enrolment, make_confirmation, make_invite, read_enrolment, token_sha256
from cytosae_core.keys import SigningKey, fingerprint
from cytosae_core.tensors import write_atomic

from .pki import Authority, pem_days_left
from .study import read_protocol, read_site_keys

Json = dict[str, object]
RENEW_SITE_DAYS = 60.0


class Enrolments:
    """The enrolments of the study in `folder`.

    Raises:
        StudyError: no protocol there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.net = folder, folder / "net"
        self.study: StudyConfig = read_protocol(folder / "study.yaml")
        self.key = SigningKey.load_or_create(folder / "study.key")
        self.authority = Authority(self.net, name=self.study.name)
        for name in ("invites", "pending", "confirmed", "nodes"):
            (self.net / name).mkdir(exist_ok=True, mode=0o700)

    def event(self, code: str, site: str = "", **more: str) -> None:
        """One line of what happened, with the time (UTC)."""
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with open(self.net / "events.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"at": at, "event": code, "site": site, **more}) + "\n")

    def invite(self, site: str, endpoint: str, *, days: int = 14) -> bytes:
        """A new invite; an older one of this site is no longer good.

        Raises:
            StudyError: no such site, no endpoint, or the site has been confirmed already.
        """
        if self.confirmed(site):
            raise StudyError(
                f"Expected a site that has not joined yet, {site} has.",
                hint=f"To replace its keys remove net/confirmed/{site}.json and its line in site-keys.json.",
            )
        start = self.study.dictionary.digest if (self.folder / "start.safetensors").exists() else ""
        data, token = make_invite(
            self.key,
            self.study,
            site,
            endpoint=endpoint,
            ca=self.authority.pem,
            start_sha256=start,
            days=days,
        )
        expires = json.loads(data)["expires"]
        write_atomic(self._file("invites", site), canonical_json({"token_sha256": token, "expires": expires}))
        self.event("invited", site)
        return data

    def receive(self, data: bytes) -> str:
        """Keep an enrolment until somebody confirms it; the site's name.

        Raises:
            VerificationError, MessageError: unsigned, of another study, or without a token that is good.
        """
        found = read_enrolment(data, self.study)
        invite = self._file("invites", found.site)
        if not invite.exists():
            raise MessageError("Expected an enrolment of an invited site.")
        known = parse_json(invite.read_bytes())
        late = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") > str(known["expires"])
        if late or not hmac.compare_digest(token_sha256(found.token), str(known["token_sha256"])):
            raise MessageError("Expected the token of a current invite.", hint="Ask for a new invite.")
        before = self.pending(found.site)
        if before is not None and before.site_key != found.site_key:
            raise MessageError(
                "Expected the keys that this site enrolled with first.", hint="Ask for a new invite."
            )
        write_atomic(self._file("pending", found.site), data)
        if before is None:
            self.event("enrolled", found.site, fingerprint=fingerprint(found.site_key))
        return found.site

    def pending(self, site: str) -> Enrolment | None:
        """A site's enrolment, confirmed or not."""
        path = self._file("pending", site)
        return read_enrolment(path.read_bytes(), self.study) if path.exists() else None

    def confirm(self, site: str, said: str) -> str:
        """Pin a site's key after its fingerprint was read out by phone; the fingerprint.

        Raises:
            StudyError: nothing to confirm, or another fingerprint.
        """
        found = self.pending(site) if site in self.study.sites else None
        if found is None:
            raise StudyError(
                f"Expected an enrolment of {site}, got none.", hint="The site runs: cytosae site join INVITE."
            )
        mine = fingerprint(found.site_key)
        if not hmac.compare_digest(_plain(said), _plain(mine)):
            raise StudyError(
                "Expected the fingerprint that the site read out to be that of its enrolment: it is another.",
                hint="Do not go on. Somebody else may have enrolled in its name: invite the site again.",
            )
        certificate = self.authority.site(found.csr, site)
        path = self.folder / "site-keys.json"
        keys = read_site_keys(path) if path.exists() else {}
        write_atomic(path, canonical_json({**keys, site: found.site_key}))
        write_atomic(self.net / "nodes" / f"{site}.pub", f"{found.node_key}\n".encode())
        write_atomic(self._file("confirmed", site), make_confirmation(self.key, found, certificate))
        self.event("confirmed", site, fingerprint=mine)
        return mine

    def renew(self, days: float = RENEW_SITE_DAYS) -> list[str]:
        """New certificates for sites whose own ends within `days`: same key, same site; `site serve` fetches it.
        Names of these sites."""
        renewed = []
        for site in self.study.sites:
            data, found = self.confirmed(site), self.pending(site)
            if data is None or found is None or pem_days_left(str(parse_json(data)["certificate"])) > days:
                continue
            fresh = make_confirmation(self.key, found, self.authority.site(found.csr, site))
            write_atomic(self._file("confirmed", site), fresh)
            self.event("renewed", site)
            renewed.append(site)
        return renewed

    def to_carry(self, site: str) -> Path:
        """A folder with what a site without a network needs next: its confirmation, the start file."""
        folder = self.net / "mail" / site / "out"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(folder / "confirmation.json", self._file("confirmed", site).read_bytes())
        start = self.folder / "start.safetensors"
        if start.exists():
            write_atomic(folder / "start.safetensors", start.read_bytes())
        return folder

    def confirmed(self, site: str) -> bytes | None:
        """A site's confirmation."""
        path = self._file("confirmed", site)
        return path.read_bytes() if path.exists() else None

    def states(self) -> dict[str, str]:
        """Site -> invited, pending, confirmed, or empty."""
        out = {}
        for site in self.study.sites:
            found = [name for name in ("invites", "pending", "confirmed") if self._file(name, site).exists()]
            out[site] = {"invites": "invited"}.get(found[-1], found[-1]) if found else ""
        return out

    def _file(self, kind: str, site: str) -> Path:
        if site not in self.study.sites:
            raise StudyError(f"Expected a site of the study, one of {', '.join(self.study.sites)}.")
        return self.net / kind / f"{site}.json"


def _plain(text: str) -> bytes:
    return "".join(text.lower().replace("-", " ").split()).encode()
