"""The site's side of the transparency logs: its own log, and its witness of the coordinator's.

Write-ahead: a leaf and the signed checkpoint over it are on disk before the bytes that they commit to are sent.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cytosae_core.audit.log import Log, Witness
from cytosae_core.audit.merkle import leaf_hash, verify_inclusion
from cytosae_core.audit.note import open_checkpoint, origin_of, vkey
from cytosae_core.audit.statement import read_leaf
from cytosae_core.canonical import canonical_json, parse_json, sha256_hex
from cytosae_core.config import COORDINATOR, StudyConfig
from cytosae_core.egress import Outgoing
from cytosae_core.errors import MessageError, VerificationError
from cytosae_core.keys import SigningKey
from cytosae_core.tensors import write_atomic

from .facts import software_version

if TYPE_CHECKING:
    from .site import Site

SMALL = ("kind", "round", "request_sha256")


class SiteRecord:
    """One site's log of one study.

    Args:
        site, study: whose log of which protocol.
        coordinator: the pinned study key, 64 hex digits.
    """

    def __init__(self, site: Site, study: StudyConfig, coordinator: str) -> None:
        self._site, self._study, self._coordinator = site, study, coordinator
        self._folder = site.state / study.digest[:16]
        self._cosignature, self._since = "", 0
        self._head = (0, "")
        log_key = SigningKey.load_or_create(site.state / "log.key")
        cosign_key = SigningKey.load_or_create(site.state / "cosign.key")
        self._keys = {
            "signing": site.key.public_hex,
            "log": vkey(origin_of(study.digest, site.name), "log", log_key.public_hex),
            "cosign": vkey(origin_of(study.digest, site.name), "cosign", cosign_key.public_hex),
        }
        self.log = Log.open(
            self._folder / "log",
            origin=origin_of(study.digest, site.name),
            party=site.name,
            study=study.name,
            protocol=study.digest,
            signing=site.key,
            log_key=log_key,
        )
        self._witness = Witness(self._folder / "witness", cosign_key, name=origin_of(study.digest, site.name))
        self._jobs = self._answered()
        self._open_log()

    def _open_log(self) -> None:
        policy = self._site.policy
        if self.log.size == 0:
            self.log.append("enrol", {"role": "site", "software": software_version(), "keys": self._keys})
        if self._last_policy() != policy.digest:
            self.log.append(
                "policy",
                {
                    "policy_sha256": policy.digest,
                    "profile": policy.profile,
                    "name": policy.name,
                    "approval": policy.approval,
                    "officers": [officer[:16] for officer in policy.officers],
                },
                [("policy", policy.digest)],
            )

    def _statements(self) -> Sequence[Any]:
        keys = {self._site.key.public_hex[:16]: self._site.key.public_hex}
        return [read_leaf(leaf, keys) for leaf in self.log.leaves(0, self.log.size)]

    def _last_policy(self) -> str:
        found = [item.predicate["policy_sha256"] for item in self._statements() if item.kind == "policy"]
        return str(found[-1]) if found else ""

    def _answered(self) -> dict[str, int]:
        """Job -> index of its newest good egress leaf, read back after a restart."""
        return {
            str(item.predicate["job"]): int(item.predicate["seq"])
            for item in self._statements()
            if item.kind == "egress" and item.predicate["status"] == "ok"
        }

    # The coordinator's log

    def witness(self, header: Mapping[str, Any]) -> None:
        """Check that the coordinator logged what it asks and that its log only grew; cosign its head.

        Raises:
            VerificationError: code `rollback` or `fork` when the log contradicts what this site saw before.
            MessageError: the part is missing or malformed.
        """
        part = header.get("log")
        if not isinstance(part, dict) or set(part) != PART:
            raise MessageError("Expected a request with its log entry.", reason="SCHEMA")
        keys = self._pinned({"log": str(part["vkey"]), "cosign": str(part["cosign"])})
        note = str(part["checkpoint"]).encode()
        origin = origin_of(self._study.digest, COORDINATOR)
        head = open_checkpoint(note, keys["log"], origin=origin)
        leaf = _unbase64(part["leaf"])
        inclusion = [_unhex(item) for item in _list(part["inclusion"])]
        verify_inclusion(_int(part["index"]), head.size, leaf_hash(leaf), inclusion, head.root)
        self._check_release(leaf, header)
        seen, _ = self._witness.seen(origin) or (0, b"")
        proofs = part["consistency"] if isinstance(part["consistency"], dict) else {}
        proof = [_unhex(item) for item in _list(proofs.get(str(min(seen, head.size)), []))]
        self._cosignature = self._witness.cosign(note, keys["log"], proof, from_size=seen)
        self._since = _int(part["site_size"])
        self._head = (head.size, head.root.hex())
        if part["cosignature"]:
            self.log.add_cosignature(str(part["cosignature"]), keys["cosign"])

    def _pinned(self, keys: dict[str, str]) -> dict[str, str]:
        """The coordinator's log keys: pinned with the first request that the study key signed."""
        path = self._folder / "coordinator.json"
        if not path.exists():
            write_atomic(path, canonical_json(keys))
        if parse_json(path.read_bytes()) != keys:
            raise VerificationError(
                "Expected the coordinator's pinned log keys.",
                hint="A new key needs a rotation.",
                reason="KEYS",
            )
        return keys

    def _check_release(self, leaf: bytes, header: Mapping[str, Any]) -> None:
        statement = read_leaf(leaf, {self._coordinator[:16]: self._coordinator})
        found = statement.predicate
        wanted = {
            "protocol": self._study.digest,
            "party": COORDINATOR,
            "kind": header["kind"],
            "round": header["round"],
            "body_sha256": header["body_sha256"],
            "dictionary_sha256": header.get("base", ""),
        }
        same = statement.kind == "release" and all(found.get(name) == value for name, value in wanted.items())
        if not same or found.get("site") not in ("*", self._site.name):
            raise VerificationError("Expected a request that the coordinator's log holds.", reason="LINEAGE")

    # This site's log

    def accepted(
        self, context: Mapping[str, Any], body_sha256: str, checks: Sequence[Mapping[str, str]]
    ) -> None:
        """The base dictionary passed the gate."""
        size, root = self._head
        more = {
            "body_sha256": body_sha256,
            "coordinator": {"size": size, "root": root},
            "checks": list(checks),
        }
        self.log.append("accepted", {**_small(context), **more}, [("body", body_sha256)])

    def rejected(
        self, context: Mapping[str, Any], body_sha256: str, checks: Sequence[Mapping[str, str]]
    ) -> None:
        """The base dictionary did not pass the gate."""
        more = {"body_sha256": body_sha256, "checks": list(checks)}
        self.log.append("rejected", {**_small(context), **more}, [("body", body_sha256)])

    def refused(self, context: Mapping[str, Any], code: str) -> None:
        """A signed request was refused."""
        self.log.append("refused", {**_small(context), "code": code})

    def blocked(self, context: Mapping[str, Any], code: str, step: int) -> None:
        """The door stopped a reply in gate step `step`."""
        self.log.append("blocked", {**_small(context), "code": code, "step": step})

    def incident(self, code: str, evidence: bytes) -> None:
        """The other party's log contradicts itself; `evidence` is the request that shows it."""
        self.log.append("incident", {"code": code, "evidence_sha256": sha256_hex(evidence)})

    def withdrawn(self, scope: str, deleted: int) -> None:
        """The site (`site`) or patients (`patient`) left the study."""
        self.log.append("withdraw", {"scope": scope, "payloads_deleted": deleted})
        self.log.checkpoint()

    def egress(
        self, outgoing: Outgoing, job: str, payload: bytes, box: bytes, spent: Mapping[str, Any]
    ) -> None:
        """Commit to a reply before it leaves: leaf and checkpoint are on disk when this returns."""
        policy = self._site.policy
        status = "ok" if spent else "refused"
        fields = {
            **_small(outgoing.context),
            "job": job,
            "status": status,
            "wire": {"bytes": len(box), "sha256": sha256_hex(box)},
            "payload": {"bytes": len(payload), "sha256": sha256_hex(payload)},
            "tensors": [
                {
                    "name": name,
                    "dtype": values.dtype.name,
                    "shape": list(values.shape),
                    "suppressed": outgoing.suppressed.get(name, 0),
                }
                for name, values in outgoing.tensors.items()
            ],
            "policy_sha256": policy.digest,
            "profile": policy.profile,
            "min_units": policy.min_units,
            "dp": _promise(outgoing, spent),
            "gate": outgoing.gate,
            "budget": {name: int(spent.get(name, 0)) for name in ("rounds", "messages", "bytes")},
            "approval": policy.approval,
            "repeats": self._jobs.get(job, -1) if status == "ok" else -1,
        }
        subjects = [("wire", sha256_hex(box)), ("payload", sha256_hex(payload))]
        index = self.log.append("egress", fields, subjects)
        if status == "ok":
            self._jobs[job] = index
        self.log.checkpoint()

    def private_releases(self) -> list[tuple[str, str]]:
        """(job, noise multiplier) of every private release in the log, for the privacy ledger to know."""
        return [
            (str(item.predicate["job"]), str(item.predicate["dp"]["noise_multiplier"]))
            for item in self._statements()
            if item.kind == "egress" and item.predicate["dp"]["mechanism"] != "none"
        ]

    def section(self) -> bytes:
        """What travels beside a reply: the leaves that the coordinator lacks, the head, this site's cosignature."""
        start = min(self._since, self.log.size)
        leaves = self.log.leaves(start, self.log.size)
        content = {
            "start": start,
            "leaves": [base64.b64encode(leaf).decode() for leaf in leaves],
            "checkpoint": self.log.checkpoint().decode(),
            "cosignature": self._cosignature,
            "policy": self._site.policy.to_dict(),
        }
        return canonical_json(content)

    def close(self) -> None:
        """Release the log's lock."""
        self.log.close()


PART = {
    *("vkey", "cosign", "checkpoint", "consistency", "leaf", "index", "inclusion"),
    *("site_size", "cosignature"),
}


def _promise(outgoing: Outgoing, spent: Mapping[str, Any]) -> dict[str, str]:
    """What the noise in a reply promises. clip: of a patient over all of its sites; noise_multiplier over that."""
    plan = outgoing.private
    if plan is None or "epsilon" not in spent:
        return {"mechanism": "none"}
    return {
        "mechanism": "gaussian", "unit": plan.unit, "accountant": plan.accountant, "delta": repr(plan.delta),
        "clip": repr(plan.clip_norm * plan.sites_of_a_patient),
        "noise_multiplier": repr(plan.noise_multiplier / plan.sites_of_a_patient),
        "epsilon": f"{spent['epsilon']:.12g}", "epsilon_total": f"{spent['epsilon_total']:.12g}",
    }  # fmt: skip


def _small(context: Mapping[str, Any]) -> dict[str, Any]:
    return {name: context[name] for name in SMALL}


def _unbase64(value: Any) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except ValueError as error:
        raise MessageError("Expected base64 in a log entry.", reason="SCHEMA") from error


def _unhex(value: Any) -> bytes:
    try:
        return bytes.fromhex(str(value))
    except ValueError as error:
        raise MessageError("Expected hex in a proof.", reason="PROOF") from error


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise MessageError("Expected a list of hashes.", reason="PROOF")
    return value


def _int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise MessageError("Expected a size that is not negative.", reason="RANGE")
    return value
