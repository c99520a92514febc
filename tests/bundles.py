"""Tiny bundles made with real keys, logs and signed replies, to be broken in tests: no images, no torch.

Every party's log is written through `edit`, so that a test can let a party lie in what it signs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cytosae_core.aggregate.rules import RowAverage
from cytosae_core.audit.log import Log, tile_files
from cytosae_core.audit.log.signing import cosign_text
from cytosae_core.audit.note import origin_of, split_note, vkey
from cytosae_core.canonical import canonical_json, sha256_hex
from cytosae_core.config import (
    DictionaryConfig,
    EncoderConfig,
    RoundsConfig,
    StatisticsConfig,
    StudyConfig,
    TrainingConfig,
)
from cytosae_core.envelope import REPLY, pack
from cytosae_core.keys import SigningKey
from cytosae_core.lineage import dictionary_digest
from cytosae_core.plan import Endpoint, PlanConfig
from cytosae_core.report.build import build_report
from cytosae_core.report.inputs import RoundRecord, StudyResult
from cytosae_core.tensors import pack_tensors

COORDINATOR = "coordinator"
Files = dict[str, bytes]
Fields = dict[str, Any]
Edit = Callable[[str, str, Fields], Fields | None]
Tables = Mapping[str, np.ndarray]
AT = 1_790_000_000
METRICS = ("counts", "quality", "auroc", "auroc_se", "auroc_shuffled", "firing_rate", "reliability")


def keep(party: str, kind: str, fields: Fields) -> Fields | None:
    """An honest party."""
    return fields


def relisted(files: Mapping[str, bytes]) -> Files:
    """The same files under a manifest of what is there now: what somebody who changes a bundle would do."""
    rest = {name: data for name, data in files.items() if name != "bundle.json"}
    manifest = json.loads(files["bundle.json"])
    manifest["files"] = {name: sha256_hex(data) for name, data in rest.items()}
    return {**rest, "bundle.json": canonical_json(manifest)}


@dataclass
class Party:
    """One party: keys by role, and its log."""

    name: str
    keys: dict[str, SigningKey]
    log: Log
    protocol: str

    @property
    def public(self) -> dict[str, str]:
        origin = origin_of(self.protocol, self.name)
        made = {role: vkey(origin, role, self.keys[role].public_hex) for role in ("log", "cosign")}
        return {"signing": self.keys["signing"].public_hex, **made}

    def cosign(self, other: Party, note: bytes) -> None:
        """Cosign another's head and give it the line."""
        line = cosign_text(split_note(note)[0], origin_of(self.protocol, self.name), self.keys["cosign"], AT)
        other.log.add_cosignature(line, self.public["cosign"])


@dataclass
class Study:
    """A study that runs to its bundle with `build`.

    Args:
        home: an empty folder. sites: names. rounds: of training; 0 is a frozen dictionary. n: concepts.
        edit: sees (party, kind, fields) of every entry before it is signed; returns what to log, None for nothing.
        extra: called before the report with the study, to log more.
        report_edit: changes the report before the coordinator logs it.
        hello: with counts. page: report.html. most, largest: messages that the policy allows, and their bytes.
        metrics: names that it releases.
    """

    home: Path
    sites: Sequence[str] = ("site-a", "site-b")
    rounds: int = 0
    n: int = 2
    edit: Edit = keep
    extra: Callable[[Study], None] = lambda study: None
    report_edit: Callable[[Fields], None] = lambda report: None
    hello: bool = True
    page: bytes = b"<html></html>"
    most: int = 99
    largest: int = 99_999
    metrics: Sequence[str] = METRICS
    parties: dict[str, Party] = field(default_factory=dict)
    payloads: Files = field(default_factory=dict)
    received: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    leaves: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    replies: dict[tuple[str, int, str], dict[str, np.ndarray]] = field(default_factory=dict)
    spent: dict[str, dict[str, int]] = field(default_factory=dict)
    enrolled: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = self.agreed()
        self.protocol = json.loads(canonical_json(self.config.to_dict()))
        self.digest = sha256_hex(canonical_json(self.protocol))
        self.rng = np.random.default_rng(0)
        self.policy = {
            "disclosure": {"min_units": 11},
            "limits": {
                "bytes_per_message": self.largest,
                "bytes_total": 100 * self.largest,
                "messages_total": self.most,
                "rounds": 9,
            },
            "name": "tiny", "profile": "masked",
            "release": {
                "metrics": list(self.metrics),
                "tensors": ["delta", "fired"],
            },
        }  # fmt: skip
        rows = self.rng.standard_normal((self.n, 2))
        self.dictionary = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        self.first = self.dictionary
        for name in (COORDINATOR, *self.sites):
            self._enrol(name)

    def agreed(self) -> StudyConfig:
        """The protocol."""
        train = self.rounds > 0
        return StudyConfig(
            name="tiny",
            sites=tuple(self.sites),
            kind="train" if train else "validate",
            encoder=EncoderConfig(d=2),
            dictionary=DictionaryConfig("pursuit" if train else "topk", n=self.n, k=1, init="random"),
            training=TrainingConfig(rounds=self.rounds),
            rounds=RoundsConfig(quorum=1),
            statistics=StatisticsConfig(classes=("x", "y")),
            plan=PlanConfig(endpoints=(Endpoint("fvu", 1.5, True),)),
        )

    def _enrol(self, name: str) -> None:
        keys = {
            role: SigningKey.load_or_create(self.home / name / f"{role}.key")
            for role in ("signing", "log", "cosign")
        }
        log = Log.open(
            self.home / name / "log", origin=origin_of(self.digest, name), party=name, study="tiny",
            protocol=self.digest, signing=keys["signing"], log_key=keys["log"], clock=lambda: AT,
        )  # fmt: skip
        self.parties[name] = Party(name, keys, log, self.digest)
        self.enrolled[name] = self.parties[name].public
        self.spent[name] = {"rounds": 0, "messages": 0, "bytes": 0}

    def append(self, party: str, kind: str, fields: Fields, subjects: Sequence[tuple[str, str]] = ()) -> int:
        """Log through `edit`; the index, -1 when `edit` said no."""
        edited = self.edit(party, kind, dict(fields))
        return -1 if edited is None else self.parties[party].log.append(kind, edited, subjects)

    def open_logs(self) -> None:
        """Enrolments and policies."""
        more = {"role": "coordinator", "software": "0", "keys": self.enrolled[COORDINATOR]}
        own = {site: self.enrolled[site]["signing"] for site in self.sites}
        self.append(COORDINATOR, "enrol", {**more, "sites": own})
        for site in self.sites:
            self.append(site, "enrol", {"role": "site", "software": "0", "keys": self.enrolled[site]})
            policy = {"policy_sha256": sha256_hex(canonical_json(self.policy)), "profile": "masked"}
            self.append(site, "policy", {**policy, "name": "tiny", "approval": "never", "officers": []})

    def step(
        self, kind: str, number: int, content: Mapping[str, Mapping[str, np.ndarray]], base: str = ""
    ) -> None:
        """Ask every site and log what it answers."""
        body = sha256_hex(f"{kind}{number}".encode())
        asked = {"kind": kind, "round": number, "body_sha256": body, "body_bytes": 9}
        for site in self.sites if kind == "score" else "*":
            self.append(COORDINATOR, "release", {**asked, "site": site, "dictionary_sha256": base})
        for site in self.sites:
            job = {
                "kind": kind,
                "round": number,
                "request_sha256": sha256_hex(f"{site}{kind}{number}".encode()),
            }
            if base:
                head = self.parties[COORDINATOR].log
                seen = {"size": head.size, "root": head.root.hex()}
                self.append(site, "accepted", {**job, "body_sha256": body, "coordinator": seen, "checks": []})
            self.send(site, job, content[site])

    def send(self, site: str, job: Fields, tensors: Mapping[str, np.ndarray], *, again: bool = False) -> None:
        """One reply: signed, logged by the site, logged by the coordinator."""
        header = {"study": "tiny", "protocol": self.digest, "site": site, **job, "status": "ok", "code": ""}
        header |= {"facts": {}, "suppressed": {name: int(np.isnan(v).sum()) for name, v in tensors.items()}}
        payload = pack(header, pack_tensors(tensors), REPLY, self.parties[site].keys["signing"])
        wire = b"box " + payload
        both = {
            "wire": {"bytes": len(wire), "sha256": sha256_hex(wire)},
            "payload": {"bytes": len(payload), "sha256": sha256_hex(payload)},
        }
        self.spent[site]["messages"] += 1
        self.spent[site]["bytes"] += len(payload)
        listed = [
            {
                "name": name,
                "dtype": v.dtype.name,
                "shape": list(v.shape),
                "suppressed": header["suppressed"][name],
            }
            for name, v in tensors.items()
        ]
        fields = {
            **job, **both, "status": "ok", "job": hashlib.sha256(f"{job['kind']}{job['round']}".encode()).hexdigest(),
            "tensors": listed, "policy_sha256": sha256_hex(canonical_json(self.policy)), "profile": "masked",
            "min_units": 11, "dp": {"mechanism": "none"}, "gate": [], "budget": dict(self.spent[site]),
            "approval": "never", "repeats": -1,
        }  # fmt: skip
        index = self.append(site, "egress", fields)
        self.payloads[f"payloads/{sha256_hex(payload)}.reply"] = payload
        log = self.parties[site].log
        place = {"index": max(index, 0), "size": log.size, "root": log.root.hex()}
        receipt = self.append(
            COORDINATOR, "ingress", {"site": site, **job, "status": "ok", **both, "site_log": place}
        )
        if receipt >= 0:
            entry = self.received.setdefault(site, {}).setdefault(job["kind"], [0, 0])
            entry[0], entry[1] = entry[0] + 1, entry[1] + len(wire)
            self.leaves.setdefault(site, {}).setdefault(job["kind"], []).append(receipt)
        self.replies[job["kind"], job["round"], site] = dict(tensors)

    def _quality(self) -> np.ndarray:
        return self.rng.uniform(1, 2, 6).astype(np.float32)

    def _hello(self, site: str) -> dict[str, np.ndarray]:
        return {"counts": np.array([60, 30, 20, 10, 30, 30], np.float32)}

    def evaluate(self, final: str) -> None:
        """What sites answer once training is over. `final`: the last dictionary's digest."""
        self.step("describe", 0, {site: self._describe() for site in self.sites}, final)

    def _describe(self) -> dict[str, np.ndarray]:
        auroc = self.rng.uniform(0.55, 0.95, (self.n, 2)).round(3).astype(np.float32)
        return {
            "quality": self._quality(),
            "auroc": auroc,
            "auroc_se": np.full((self.n, 2), 0.03, np.float32),
            "auroc_shuffled": self.rng.uniform(0.4, 0.6, (self.n, 2)).round(3).astype(np.float32),
            "firing_rate": self.rng.uniform(0, 1, self.n).astype(np.float32),
            "reliability": np.array([0.8], np.float32),
        }

    def train(self) -> None:
        """Rounds with real averaging."""
        base = dictionary_digest({"dictionary": self.dictionary})
        self.step("begin", 0, {site: {"quality": self._quality()} for site in self.sites}, base)
        for number in range(1, self.rounds + 1):
            content = {
                site: {
                    "delta": (self.rng.standard_normal((self.n, 2)) / 9).astype(np.float16),
                    "fired": np.full(self.n, 20, np.float32),
                    "quality": self._quality(),
                }
                for site in self.sites
            }
            before = len(self.payloads)
            self.step("round", number, content, base)
            average = RowAverage(self.dictionary, "firing-weighted", 1.0)
            for tensors in content.values():
                average.fold(tensors["delta"], tensors["fired"], 1.0)
            self.dictionary = average.result()
            result = dictionary_digest({"dictionary": self.dictionary})
            names = [path[9:73] for path in list(self.payloads)[before:]]
            used = [{"site": s, "payload_sha256": d} for s, d in zip(self.sites, names, strict=True)]
            fields = {
                "round": number,
                "rule": "firing-weighted",
                "server_learning_rate": "1.0",
                "inputs": used,
            }
            self.append(COORDINATOR, "aggregate", {**fields, "base_sha256": base, "result_sha256": result})
            base = result

    def result(self) -> StudyResult:
        """What the coordinator knows after the last step."""
        kinds = [kind for kind in ("final", "random", "init") if (kind != "init" or self.rounds)]
        tables: dict[str, dict[str, Tables]] = {}
        for (kind, number, site), tensors in self.replies.items():
            tables.setdefault(f"{kind} {number}", {})[site] = tensors
        described = {name: tables.get(f"describe {place}", {}) for place, name in enumerate(kinds)}
        quality = [{s: t["quality"] for s, t in tables[f"round {i + 1}"].items()} for i in range(self.rounds)]
        result = StudyResult(
            rounds=[RoundRecord(place + 1, found, 0, {}) for place, found in enumerate(quality)],
            describe={name: found for name, found in described.items() if found},
            scores=tables.get("score 0", {}),
            first=self.first,
            final=self.dictionary,
            received=self.received,
            leaves=self.leaves,
            log=self._head(),
        )
        result.take_counts(tables.get("hello 0", {}))
        return result

    def _head(self) -> tuple[int, str]:
        size = 1 + max(i for kinds in self.leaves.values() for places in kinds.values() for i in places)
        return size, self.parties[COORDINATOR].log.tree.root(size).hex()

    def report(self) -> Fields:
        """report.json's values, as the report's own code computes them."""
        return dict(build_report(self.config, self.result()))

    def build(self) -> Files:
        """Run everything; the bundle's files."""
        self.open_logs()
        if self.hello:
            self.step("hello", 0, {site: self._hello(site) for site in self.sites})
        if self.rounds:
            self.train()
        self.evaluate(dictionary_digest({"dictionary": self.dictionary}))
        self.extra(self)
        report = self.report()
        self.report_edit(report)
        return self.close(json.dumps(report, separators=(",", ":")).encode())

    def close(self, report: bytes) -> Files:
        """Log the report, cosign all heads, and write the files."""
        mine = self.parties[COORDINATOR]
        logs = {site: self.parties[site].log for site in self.sites}
        heads = {site: {"size": log.size, "root": log.root.hex()} for site, log in logs.items()}
        subjects = [("report", sha256_hex(report)), ("report", sha256_hex(self.page))]
        self.append(COORDINATOR, "report", {"report_sha256": sha256_hex(report), "heads": heads}, subjects)
        for site in self.sites:
            self.parties[site].cosign(mine, mine.log.checkpoint())
            mine.cosign(self.parties[site], logs[site].checkpoint())
        return self.files(report)

    def files(self, report: bytes) -> Files:
        """The bundle of what is in the logs now."""
        found: Files = {
            "protocol.json": canonical_json(self.protocol),
            "report.json": report,
            **self.payloads,
        }
        found |= {"report.html": self.page}
        found |= {f"policies/{site}.json": canonical_json(self.policy) for site in self.sites}
        found["keys.json"] = canonical_json(self.enrolled)
        for rows in (self.first, self.dictionary) if self.rounds else (self.dictionary,):
            data = pack_tensors({"dictionary": rows})
            found[f"dictionaries/{sha256_hex(data)}.safetensors"] = data
        for name, party in self.parties.items():
            note = party.log.cosigned_checkpoint(len(self.sites) if name == COORDINATOR else 1)
            tiles = tile_files(party.log, note or party.log.checkpoint())
            found |= {f"logs/{name}/{path}": data for path, data in tiles.items()}
            party.log.close()
        empty = canonical_json({"urn": "urn:cytosae:bundle:v1", "protocol": self.digest, "files": {}})
        return relisted({**found, "bundle.json": empty})
