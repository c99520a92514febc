"""Tiny bundles made with real keys, logs and signed replies, to be broken in tests: no images, no torch.

Every party's log is written through `edit`, so that a test can let a party lie in what it signs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.special import expit

from cytosae_core.aggregate.rules import RowAverage
from cytosae_core.audit.log import Log, tile_files
from cytosae_core.audit.log.signing import cosign_text
from cytosae_core.audit.note import origin_of, split_note, vkey
from cytosae_core.canonical import canonical_json, sha256_hex
from cytosae_core.envelope import REPLY, pack
from cytosae_core.keys import SigningKey
from cytosae_core.lineage import dictionary_digest
from cytosae_core.plan import Endpoint
from cytosae_core.report.agreement import VERDICTS, verdict_table
from cytosae_core.report.build_concepts import decimals, significant
from cytosae_core.report.build_headlines import headline
from cytosae_core.report.concept_table import logit_effects
from cytosae_core.report.endpoints import SiteValues
from cytosae_core.report.inputs import quality_dict, total_fvu
from cytosae_core.report.meta import probability_above, random_effects_table
from cytosae_core.tensors import pack_tensors

COORDINATOR = "coordinator"
Files = dict[str, bytes]
Fields = dict[str, Any]
Edit = Callable[[str, str, Fields], Fields | None]
AT = 1_790_000_000


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
        hello: with counts. page: report.html. most: messages that the policy allows.
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
    parties: dict[str, Party] = field(default_factory=dict)
    payloads: Files = field(default_factory=dict)
    received: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    leaves: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    replies: dict[tuple[str, int, str], dict[str, np.ndarray]] = field(default_factory=dict)
    spent: dict[str, dict[str, int]] = field(default_factory=dict)
    enrolled: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.protocol = {
            "dictionary": {"model": "pursuit" if self.rounds else "topk", "n": self.n},
            "kind": "train" if self.rounds else "validate",
            "name": "tiny",
            "sites": list(self.sites),
            "statistics": {"attributes": [], "classes": ["x", "y"]},
        }
        self.digest = sha256_hex(canonical_json(self.protocol))
        self.rng = np.random.default_rng(0)
        self.policy = {
            "disclosure": {"min_units": 11},
            "limits": {"bytes_per_message": 99_999, "bytes_total": 10**7, "messages_total": self.most, "rounds": 9},
            "name": "tiny", "profile": "masked",
            "release": {
                "metrics": ["counts", "quality", "auroc", "auroc_se", "firing_rate", "balanced_accuracy"],
                "tensors": ["delta", "fired"],
            },
        }  # fmt: skip
        rows = self.rng.standard_normal((self.n, 2))
        self.dictionary = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        self.first = self.dictionary
        for name in (COORDINATOR, *self.sites):
            self._enrol(name)

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
        asked = {"kind": kind, "round": number, "site": "*", "body_sha256": body, "body_bytes": 9}
        self.append(COORDINATOR, "release", {**asked, "dictionary_sha256": base})
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

    def _describe(self) -> dict[str, np.ndarray]:
        auroc = self.rng.uniform(0.55, 0.95, (self.n, 2)).round(3).astype(np.float32)
        return {
            "quality": self._quality(),
            "auroc": auroc,
            "auroc_se": np.full((self.n, 2), 0.03, np.float32),
            "firing_rate": self.rng.uniform(0, 1, self.n).astype(np.float32),
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

    def report(self) -> Fields:
        """report.json's values, as the report's own code computes them."""
        final = {site: self.replies["describe", 0, site] for site in self.sites}
        effects = np.stack([final[s]["auroc"] for s in self.sites]).astype(np.float64) - 0.5
        errors = np.stack([final[s]["auroc_se"] for s in self.sites]).astype(np.float64)
        quality = {site: quality_dict(tables["quality"]) for site, tables in final.items()}
        rounds = [self._round(number) for number in range(1, self.rounds + 1)]
        return {
            "concepts": self._concepts(final, effects, errors),
            "headlines": [self._headline(quality)],
            "integrity": self._integrity(),
            "dictionary": {"sha256": sha256_hex(self.dictionary.tobytes())},
            "egress": {
                "sites": {
                    s: {"by_kind": {k: {"bytes": b, "count": c} for k, (c, b) in kinds.items()}}
                    for s, kinds in self.received.items()
                }
            },
            "overall": {
                "federated_fvu": total_fvu({s: t["quality"] for s, t in final.items()}),
                "l0": float(np.mean([q["l0"] for q in quality.values()])),
                "dead_fraction": float(np.mean([q["dead_fraction"] for q in quality.values()])),
            },
            "rounds": rounds,
            "study": {"protocol_sha256": self.digest},
            "sites": {site: self._site(site, quality[site]) for site in self.sites},
        }  # fmt: skip

    def _headline(self, quality: Mapping[str, Any]) -> Fields:
        """The share of the variance that stays unexplained, as the number that decides."""
        values = SiteValues({site: found["fvu"] for site, found in quality.items()})
        evidence: Any = SimpleNamespace(result=SimpleNamespace(leaves=self.leaves))
        return headline("fvu", Endpoint("fvu", 1.5, True), values, [], evidence)

    def _integrity(self) -> Fields:
        size = 1 + max(i for kinds in self.leaves.values() for places in kinds.values() for i in places)
        root = self.parties[COORDINATOR].log.tree.root(size).hex()
        return {"status": "logged", "log_size": size, "root": root, "leaves": self.leaves}

    def _round(self, number: int) -> Fields:
        tables = {site: self.replies["round", number, site]["quality"] for site in self.sites}
        each = {site: quality_dict(values)["fvu"] for site, values in tables.items()}
        return {"round": number, "fvu": total_fvu(tables), "sites": each}

    def _site(self, site: str, quality: Mapping[str, float | None]) -> Fields:
        kinds = self.received.get(site, {}).values()
        out = {name: quality[name] for name in ("fvu", "fvu_own_mean", "l0", "dead_fraction")}
        out |= {"bytes_out": sum(b for _, b in kinds), "messages_out": sum(c for c, _ in kinds)}
        if self.hello:
            counts = self.replies["hello", 0, site]["counts"]
            out |= dict(zip(("images", "units", "train_units", "test_units"), map(int, counts), strict=False))
            out["classes"] = {"x": int(counts[4]), "y": int(counts[5])}
        return out

    def _concepts(self, final: Any, effects: np.ndarray, errors: np.ndarray) -> Fields:
        """Columns, rows in the order of the dictionary."""
        found, rows = verdict_table(effects, errors), np.arange(self.n)
        at, named = np.maximum(found.target, 0), found.target >= 0
        own = np.where(named, effects[:, rows, at] + 0.5, np.nan)
        own_se = np.where(named, errors[:, rows, at], np.nan)
        fit = random_effects_table(*(table.T for table in logit_effects(own, own_se)))
        ends = {
            name: expit(getattr(fit, name)) for name in ("low", "high", "prediction_low", "prediction_high")
        }
        above = probability_above(fit, 0.0)
        shares = {
            "mean": found.mean,
            "estimate": expit(fit.mean),
            **ends,
            "probability_new_site": np.where(fit.mean >= 0, above, 1 - above),
        }
        columns = {
            "id": [f"c{row:04d}" for row in rows],
            "row": rows.tolist(),
            "digest": [sha256_hex(self.dictionary[row].tobytes())[:16] for row in rows],
            "target": found.target.tolist(),
            "verdict": found.verdict.tolist(),
            "sites": np.where(named, (~np.isnan(own)).sum(axis=0), found.sites).tolist(),
            **{name: decimals(values) for name, values in shares.items()},
            **{name: significant(getattr(fit, name)) for name in ("tau2", "i2", "h2", "p")},
        }
        rates = np.stack([final[site]["firing_rate"] for site in self.sites])
        tables = {
            "auroc": (own, decimals),
            "auroc_se": (own_se, significant),
            "firing_rate": (rates, significant),
        }
        return {
            "count": self.n,
            "targets": ["x", "y"],
            "verdicts": list(VERDICTS),
            "columns": columns,
            "tables": {
                name: {"sites": {site: shown(values[i]) for i, site in enumerate(self.sites)}}
                for name, (values, shown) in tables.items()
            },
        }

    def build(self) -> Files:
        """Run everything; the bundle's files."""
        self.open_logs()
        if self.hello:
            counts = np.array([60, 30, 20, 10, 30, 30], np.float32)
            self.step("hello", 0, {site: {"counts": counts} for site in self.sites})
        if self.rounds:
            self.train()
        final = dictionary_digest({"dictionary": self.dictionary})
        self.step("describe", 0, {site: self._describe() for site in self.sites}, final)
        self.extra(self)
        report = self.report()
        self.report_edit(report)
        return self.close(json.dumps(report).encode())

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
