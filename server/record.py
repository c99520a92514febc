"""The coordinator's side of the transparency logs: its own log, and a copy of every site's.

Nothing is asked before it is in the log; nothing received is read before its site's log entry was verified and the
receipt is in this log.

    log/ witness/ mirrors/SITE/    logs             policies/SITE.json  the sites' policies
    payloads/SHA256.reply          signed replies   keys/               log key and cosign key
    lists/SHA256.json              what is too long for an entry of the log
    sent/SITE.json                 the newest request's number, heads that the site was shown, what is out
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cytosae_core.audit.log import Log, Mirror, Witness
from cytosae_core.audit.note import origin_of, vkey
from cytosae_core.audit.statement import Statement, read_leaf
from cytosae_core.canonical import canonical_json, digest_of, parse_json, sha256_hex
from cytosae_core.config import COORDINATOR, StudyConfig
from cytosae_core.errors import MessageError, VerificationError
from cytosae_core.keys import SigningKey
from cytosae_core.tensors import write_atomic

Json = dict[str, Any]
# A site may have seen any head that was sent since its last good answer: proofs from the last ones go along.
MAX_SENT, SENT = 256, "sent"
RECEIPT = ("site", "kind", "round", "status", "wire", "payload", "seq")  # what a report says of what arrived
# Bytes of a list within an entry, which has at most 65,535 in base64; longer ones lie in `lists/`, named by digest.
MAX_LISTED, LISTS_FOLDER = 40_000, "lists"
MAX_OPEN = 256  # copies of logs open at once: two files each, of the 1,024 that a process may often have


def kept_list(run: Path, digest: str) -> bytes:
    """A list that an entry of the coordinator's log names by its SHA-256, from the run folder.

    Raises:
        VerificationError: it is missing, or not the one that the entry names.
    """
    path = run / LISTS_FOLDER / f"{digest}.json"
    data = path.read_bytes() if path.exists() else b""
    if sha256_hex(data) != digest:
        raise VerificationError(
            f"Expected the list that the log names in {LISTS_FOLDER}/ of the run folder.",
            hint="Restore it from a backup.",
        )
    return data


def pinned_keys(run: Path, first: Mapping[str, Any]) -> dict[str, str]:
    """Site -> the signing key that the coordinator enrolled it with, by the first entry (`enrol`) of its log.

    Raises:
        VerificationError: that of `kept_list`.
    """
    sites = first["sites"]
    return dict(parse_json(kept_list(run, sites), max_bytes=1 << 28) if isinstance(sites, str) else sites)


class Record:
    """Logs of one study at the coordinator.

    Args:
        folder: the run folder.
        study: the protocol.
        key: the study key.
        site_keys: pinned signing keys of the sites.

    Attributes:
        receipts: of what arrived before the first report, the fields `RECEIPT` of its `ingress` entries.
    """

    def __init__(
        self, folder: Path, study: StudyConfig, key: SigningKey, site_keys: Mapping[str, str]
    ) -> None:
        self._folder, self._study, self._key, self._site_keys = folder, study, key, dict(site_keys)
        self.origin = origin_of(study.digest, COORDINATOR)
        log_key = SigningKey.load_or_create(folder / "keys" / "log.key")
        cosign_key = SigningKey.load_or_create(folder / "keys" / "cosign.key")
        self.keys = {
            "signing": key.public_hex,
            "log": vkey(self.origin, "log", log_key.public_hex),
            "cosign": vkey(self.origin, "cosign", cosign_key.public_hex),
        }
        self.log = Log.open(
            folder / "log",
            origin=self.origin,
            party=COORDINATOR,
            study=study.name,
            protocol=study.digest,
            signing=key,
            log_key=log_key,
        )
        self._witness = Witness(folder / "witness", cosign_key, name=self.origin)
        self._mirrors: dict[str, Mirror] = {}  # open ones, the longest unused first
        self._seen: dict[str, str] = {}  # log key of every site that has sent its log
        self._cosignatures: dict[str, str] = {}
        self._sent: dict[str, Json] = self._read_sent()
        self._releases: dict[tuple[Any, ...], int] = {}
        self._aggregated: set[int] = set()
        self._report, self._report_size = "", 0
        self.receipts: list[Json] = []
        self._reread()

    def _reread(self) -> None:
        if self.log.size == 0:
            more = {"role": "coordinator", "software": _software(), "keys": self.keys}
            self.log.append("enrol", {**more, "sites": self._listed(self._site_keys)})
        explained: set[str] = set()
        for leaf in self.log.leaves(0, self.log.size):
            found = read_leaf(leaf, {self._key.public_hex[:16]: self._key.public_hex})
            if found.kind == "release":
                self._releases[_release_key(found.predicate)] = int(found.predicate["seq"])
            if found.kind == "aggregate":
                self._aggregated.add(int(found.predicate["round"]))
            if found.kind == "ingress":
                self._keep(found.predicate)
                explained.add(found.predicate["request_sha256"])
            if found.kind == "fault":
                explained |= set(found.predicate["requests"])
            if found.kind == "report":
                self._report = found.predicate["report_sha256"]
                self._report_size = int(found.predicate["seq"]) + 1
        self._explain_lost(explained)
        for site in self._study.sites:
            keys = self._folder / "keys" / f"{site}.json"
            if keys.exists():
                self._seen[site] = parse_json(keys.read_bytes())["log"]
                self._opened(site)

    def _keep(self, receipt: Json) -> None:
        """A report rests on what arrived before the first one was made."""
        if not self._report:
            self.receipts.append({name: receipt[name] for name in RECEIPT})

    # Asking

    def ask(self, site: str, kind: str, number: int, body: bytes, base: str, *, same_for_all: bool) -> Json:
        """Log what is asked, and what the site needs to check that it is logged: the header's `log`."""
        fields: Json = {
            "kind": kind,
            "round": number,
            "site": "*" if same_for_all else site,
            "body_sha256": sha256_hex(body),
            "body_bytes": len(body),
            "dictionary_sha256": base,
        }
        index = self._releases.get(_release_key(fields))
        if index is None:
            index = self.log.append("release", fields, [("body", fields["body_sha256"])])
            self._releases[_release_key(fields)] = index
        return self._part(site, index)

    def _part(self, site: str, index: int) -> Json:
        """Sites asked the same see the same head, right after its entry or the report, and cosign that: unless this
        site may have seen a longer log already."""
        earlier = sorted({0, *self._of(site)["heads"]})
        size = max(index + 1, earlier[-1], self._report_size)
        self._of(site)["heads"] = sorted({*earlier[-MAX_SENT:], size})
        mirror = self._opened(site) if site in self._seen else None
        return {
            "vkey": self.keys["log"],
            "cosign": self.keys["cosign"],
            "checkpoint": self.log.checkpoint_at(size).decode(),
            "consistency": {
                str(old): [item.hex() for item in self.log.consistency(old, size)] for old in earlier
            },
            "leaf": base64.b64encode(self.log.leaf(index)).decode(),
            "index": index,
            "inclusion": [item.hex() for item in self.log.inclusion(index, size)],
            "site_size": mirror.size if mirror else 0,
            "cosignature": self._cosignatures.get(site, ""),
        }

    def next_seq(self, site: str) -> int:
        """The sequence number of the next request to a site: grows over restarts."""
        self._of(site)["seq"] += 1
        return int(self._of(site)["seq"])

    def sending(self, site: str, kind: str, number: int, request_sha256: str) -> None:
        """Before a request leaves: its number, its digest and the head that the site is shown are on disk, because a
        site that answers nobody may still have seen and logged it."""
        self._of(site).setdefault("out", {})[request_sha256] = [kind, number]
        (self._folder / SENT).mkdir(exist_ok=True)
        write_atomic(self._folder / SENT / f"{site}.json", canonical_json(self._of(site)))

    def _explain_lost(self, explained: set[str]) -> None:
        """After a restart: what was out and has neither receipt nor fault will never be answered."""
        for site, entry in sorted(self._sent.items()):
            for request, (kind, number) in sorted(entry.pop("out", {}).items()):
                if request not in explained:
                    self.fault(site, kind, number, "lost", [request])

    def _of(self, site: str) -> Json:
        return self._sent.setdefault(site, {"seq": 0, "heads": []})

    def _read_sent(self) -> dict[str, Json]:
        found = sorted((self._folder / SENT).glob("*.json"))
        return {path.stem: dict(parse_json(path.read_bytes())) for path in found}

    # Receiving

    def receive(
        self, site: str, context: Json, box: bytes, payload: bytes, section: bytes, status: str
    ) -> None:
        """Verify the site's log up to the entry of exactly this reply, keep the reply, log its receipt.

        Args:
            context: kind, round and request_sha256 of the request.
            box, payload: the sealed reply as it came, and the signed reply in it (not read yet).
            section: the opened second box.
            status: `ok` or `refused`, from the reply's verified header.

        Raises:
            VerificationError, MessageError: no entry, or a log that contradicts what was seen; the reply must
            not be used.
        """
        content = _table(section)
        leaves = [_unbase64(item) for item in content["leaves"]]
        mirror = self._mirror(site, leaves)
        note = str(content["checkpoint"]).encode()
        try:
            mirror.extend(int(content["start"]), leaves, note)
        except VerificationError as error:
            self.incident(error.code, section)
            raise
        index = self._entry(site, leaves, context, box, payload, status)
        self._keep_policy(site, content["policy"], mirror)
        self._settle_heads(site, note, mirror, str(content["cosignature"]))
        self._keep_payload(payload)
        fields = {
            **context,
            "site": site,
            "status": status,
            "wire": {"bytes": len(box), "sha256": sha256_hex(box)},
            "payload": {"bytes": len(payload), "sha256": sha256_hex(payload)},
            "site_log": {"index": index, "size": mirror.size, "root": mirror.root.hex()},
        }
        subjects = [("wire", sha256_hex(box)), ("payload", sha256_hex(payload))]
        index = self.log.append("ingress", fields, subjects)  # signed for with the next request
        self._keep({**fields, "seq": index})
        self._of(site).get("out", {}).pop(context["request_sha256"], None)

    def _mirror(self, site: str, leaves: Sequence[bytes]) -> Mirror:
        """The copy of a site's log; its log keys come with its first leaf, signed by the pinned site key."""
        if site in self._seen:
            return self._opened(site)
        if not leaves:
            raise VerificationError("Expected a site's log from its first entry.", reason="SEQ")
        first = self._read(site, leaves[0])
        if first.kind != "enrol" or first.predicate["role"] != "site":
            raise VerificationError("Expected an enrolment as a site's first log entry.", reason="SEQ")
        keys = dict(first.predicate["keys"])
        write_atomic(self._folder / "keys" / f"{site}.json", canonical_json(keys))
        self._seen[site] = keys["log"]
        return self._opened(site)

    def _opened(self, site: str) -> Mirror:
        """The copy of a site's log. Each holds two files open, so that only so many are at a time."""
        mirror = self._mirrors.pop(site, None) or Mirror(
            self._folder / "mirrors" / site,
            origin=origin_of(self._study.digest, site),
            vkey=self._seen[site],
            party=site,
            signing=self._site_keys[site],
        )
        self._mirrors[site] = mirror
        if len(self._mirrors) > MAX_OPEN:
            self._mirrors.pop(next(iter(self._mirrors))).close()
        return mirror

    def _read(self, site: str, leaf: bytes) -> Statement:
        key = self._site_keys[site]
        return read_leaf(leaf, {key[:16]: key})

    def _entry(
        self, site: str, leaves: Sequence[bytes], context: Json, box: bytes, payload: bytes, status: str
    ) -> int:
        """Index of the egress entry of this reply: the newest entry of what came."""
        found = self._read(site, leaves[-1]) if leaves else None
        wanted = {**context, "status": status}
        if found is None or found.kind != "egress":
            raise VerificationError("Expected a reply with its log entry.", reason="UNLOGGED")
        hashes = (found.predicate["wire"]["sha256"], found.predicate["payload"]["sha256"])
        if any(found.predicate[name] != value for name, value in wanted.items()) or hashes != (
            sha256_hex(box),
            sha256_hex(payload),
        ):
            raise VerificationError("Expected a log entry of exactly this reply.", reason="UNLOGGED")
        return int(found.predicate["seq"])

    def _keep_policy(self, site: str, policy: Any, mirror: Mirror) -> None:
        announced = [
            found.predicate["policy_sha256"]
            for found in (self._read(site, leaf) for leaf in mirror.leaves(0, min(mirror.size, 64)))
            if found.kind == "policy"
        ]
        if not isinstance(policy, dict) or digest_of(policy) not in announced:
            raise VerificationError("Expected the policy that the site's log names.", reason="BIND")
        path = self._folder / "policies" / f"{site}.json"
        if not path.exists() or parse_json(path.read_bytes()) != policy:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, canonical_json(policy))

    def _settle_heads(self, site: str, note: bytes, mirror: Mirror, cosignature: str) -> None:
        origin = origin_of(self._study.digest, site)
        keys = parse_json((self._folder / "keys" / f"{site}.json").read_bytes())
        seen = (self._witness.seen(origin) or (0, b""))[0]
        proof = mirror.consistency(seen, mirror.size) if seen else []
        self._cosignatures[site] = self._witness.cosign(note, keys["log"], proof, from_size=seen)
        mirror.add_cosignature(self._cosignatures[site], self.keys["cosign"])
        if cosignature:
            size = self.log.add_cosignature(cosignature, keys["cosign"])
            self._of(site)["heads"] = [old for old in self._of(site)["heads"] if old >= size]

    def _keep_payload(self, payload: bytes) -> None:
        path = self._folder / "payloads" / f"{sha256_hex(payload)}.reply"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, payload)

    # Events

    def fault(self, site: str, kind: str, number: int, code: str, requests: Sequence[str]) -> None:
        """A site did not give a usable answer."""
        for request in requests:
            self._of(site).get("out", {}).pop(request, None)
        fields = {"site": site, "kind": kind, "round": number, "code": code, "requests": list(requests)}
        self.log.append("fault", fields)

    def aggregate(self, fields: Json) -> None:
        """A round's dictionary was made from these replies; logged once."""
        if fields["round"] not in self._aggregated:
            listed = {**fields, "inputs": self._listed(fields["inputs"])}
            self.log.append("aggregate", listed, [("dictionary", fields["result_sha256"])])
            self._aggregated.add(fields["round"])

    def report(self, report_sha256: str, page_sha256: str = "") -> None:
        """The report, its page, and the heads that they were made under. The same report is logged once."""
        if self._report == report_sha256:
            return
        heads = {}
        for site in sorted(self._seen):
            mirror = self._opened(site)
            heads[site] = {"size": mirror.size, "root": mirror.root.hex()}
        subjects = [("report", digest) for digest in (report_sha256, page_sha256) if digest]
        fields = {"report_sha256": report_sha256, "heads": self._listed(heads)}
        index = self.log.append("report", fields, subjects)
        self._report, self._report_size = report_sha256, index + 1

    def _listed(self, value: Any) -> Any:
        """`value`, or where it is too long for an entry its digest, after it was written to `lists/`."""
        data = canonical_json(value)
        if len(data) <= MAX_LISTED:
            return value
        digest = sha256_hex(data)
        (self._folder / LISTS_FOLDER).mkdir(exist_ok=True)
        write_atomic(self._folder / LISTS_FOLDER / f"{digest}.json", data)
        return digest

    def incident(self, code: str, evidence: bytes) -> None:
        """A party contradicted itself."""
        self.log.append("incident", {"code": code, "evidence_sha256": sha256_hex(evidence)})
        self.log.checkpoint()

    def close(self) -> None:
        """Release the locks of the logs."""
        for mirror in self._mirrors.values():
            mirror.close()
        self.log.close()


def _release_key(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(fields[name] for name in ("kind", "round", "site", "body_sha256", "dictionary_sha256"))


def _software() -> str:
    try:
        return version("cytosae-federation")
    except PackageNotFoundError:
        return "uninstalled"


def _table(section: bytes) -> Json:
    content = parse_json(section, max_bytes=1 << 26)
    if not isinstance(content, dict) or set(content) != {
        "start",
        "leaves",
        "checkpoint",
        "cosignature",
        "policy",
    }:
        raise MessageError("Expected the log part of a reply.", reason="SCHEMA")
    if not isinstance(content["leaves"], list) or not isinstance(content["start"], int):
        raise MessageError("Expected leaves in the log part of a reply.", reason="SCHEMA")
    return content


def _unbase64(value: Any) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except ValueError as error:
        raise MessageError("Expected base64 in a log entry.", reason="SCHEMA") from error
