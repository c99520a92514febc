"""Stages of a study: which one is open, and the check that opens the next.

OUT/study.yaml    the signed protocol with all stages        OUT/stage.json   which stages were opened, and by what
OUT/STAGE/        a whole study folder: the stage's protocol, its run, its report

A stage's protocol is derived from the signed one (`StudyConfig.for_stage`), so that its digest, which is in every
message, stands for both. `stage.json` is signed by the study key and holds the SHA-256 of the report that opened each
stage; as long as the study goes on, that report must stay as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from cytosae_core.audit.log import Log
from cytosae_core.audit.note import origin_of
from cytosae_core.audit.statement import read_leaf
from cytosae_core.canonical import canonical_json, parse_json, sha256_file, sha256_hex
from cytosae_core.config import COORDINATOR, StudyConfig
from cytosae_core.errors import CytosaeError, StudyError
from cytosae_core.keys import SigningKey, verify_signature
from cytosae_core.plan import Finding, check_criteria
from cytosae_core.report.text_json import report_bytes
from cytosae_core.tensors import write_atomic

from .deviations import FILE as DEVIATIONS
from .rebuild import rebuilt
from .study import read_protocol, read_site_keys

URN = "urn:cytosae:stage:v1"
FILE = "stage.json"
MAX_REPORT_BYTES = 1 << 28
# Found in a stage's folder as links to the study's own: one key and one start file for all stages.
SHARED = ("study.key", "study-key.pub", "start.safetensors", "start.json")


@dataclass(frozen=True)
class Opened:
    """One entry of stage.json: the stage, the day (UTC), and the SHA-256 of the report that opened it (empty for the
    first stage)."""

    stage: str
    at: str
    report_sha256: str


@dataclass(frozen=True)
class Outcome:
    """The open stage against its criteria.

    Attributes:
        stage: its name. report_sha256: of its report.json.
        findings: one per criterion, in the protocol's order.
        next: the stage after it; empty when it is the last one.
        opened: whether the next one was opened now.
    """

    stage: str
    report_sha256: str
    findings: list[Finding]
    next: str
    opened: bool = False

    @property
    def met(self) -> bool:
        """Whether all criteria are met; a stage without criteria passes with its report."""
        return all(item.met for item in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        rows = [item.to_dict() for item in self.findings]
        return {
            "stage": self.stage, "report_sha256": self.report_sha256, "met": self.met, "criteria": rows,
            "next": self.next or None, "opened": self.opened,
        }  # fmt: skip


class Stages:
    """The stages of the study in `home`.

    Raises:
        StudyError: the protocol has no stages, stage.json was changed, belongs to another protocol or is missing
            after a stage has run, or a report that opened a stage is not what it was.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.study = home, read_protocol(home / "study.yaml")
        if self.study.stage:
            raise StudyError(
                f"Expected the signed protocol, got that of its stage={self.study.stage}.",
                hint="Use the folder above: it knows which stage is open.",
            )
        if not self.study.plan.stages:
            raise StudyError(
                "Expected a protocol with plan.stages.",
                hint="A study without stages has nothing to open: run it.",
            )
        self.key = SigningKey.load_or_create(home / "study.key")
        self.opened: list[Opened] = self._read()

    @property
    def current(self) -> str:
        """The stage that is open; empty before the first."""
        return self.opened[-1].stage if self.opened else ""

    @property
    def folder(self) -> Path:
        """Study folder of the open stage; before the first is open, the study's own."""
        return self.home / self.current if self.current else self.home

    @property
    def protocol(self) -> StudyConfig:
        """Protocol of the open stage."""
        return self.study.for_stage(self.current)

    def start(self) -> Path:
        """Open the first stage if none is open; the folder of the open stage."""
        if not self.opened:
            self._open(self.study.plan.stages[0].name, "")
        return self.folder

    def check(self) -> Outcome:
        """The open stage's report against its criteria.

        Raises:
            StudyError: no report yet, or one that the coordinator's log does not hold.
        """
        if not self.opened:
            raise StudyError("Expected an open stage.", hint="Run the study first.")
        report, digest = checked_report(self.folder, self.protocol, self.key)
        names = [stage.name for stage in self.study.plan.stages]
        following = names[names.index(self.current) + 1 :]
        findings = check_criteria(self.study.plan.stage(self.current), report)
        return Outcome(self.current, digest, findings, following[0] if following else "")

    def advance(self) -> Outcome:
        """`check`, and open the next stage when all criteria are met and there is one."""
        found = self.check()
        if not found.met or not found.next:
            return found
        self._open(found.next, found.report_sha256)
        return Outcome(found.stage, found.report_sha256, found.findings, found.next, opened=True)

    def _open(self, name: str, report_sha256: str) -> None:
        entry = Opened(name, datetime.now(UTC).date().isoformat(), report_sha256)
        self._prepare(name)
        signed = self._content([*self.opened, entry])
        signature = self.key.sign(URN, canonical_json(signed)).hex()
        write_atomic(self.home / FILE, canonical_json({**signed, "signature": signature}))
        self.opened.append(entry)

    def _prepare(self, name: str) -> None:
        """The stage's folder: everything that a run needs. Deviations so far go along."""
        study, target = self.study.for_stage(name), self.home / name
        target.mkdir(exist_ok=True)
        values = parse_json(canonical_json(study.to_dict()))
        write_atomic(target / "study.yaml", yaml.safe_dump(values, sort_keys=False).encode())
        for item in SHARED:
            if (self.home / item).exists() and not (target / item).is_symlink():
                os.symlink(Path("..") / item, target / item)
        if (self.home / "site-keys.json").exists():
            keys = {s: k for s, k in read_site_keys(self.home / "site-keys.json").items() if s in study.sites}
            write_atomic(target / "site-keys.json", canonical_json(keys))
        if (self.folder / DEVIATIONS).exists():
            write_atomic(target / DEVIATIONS, (self.folder / DEVIATIONS).read_bytes())

    def _content(self, opened: list[Opened]) -> dict[str, Any]:
        return {
            "urn": URN, "study": self.study.name, "protocol": self.study.digest,
            "opened": [asdict(item) for item in opened],
        }  # fmt: skip

    def _read(self) -> list[Opened]:
        path = self.home / FILE
        if not path.exists():
            ran = [s.name for s in self.study.plan.stages if (self.home / s.name / "run").exists()]
            if ran:
                raise StudyError(
                    f"Expected stage.json: {', '.join(ran)} has run.", hint="Restore it from a backup."
                )
            return []
        opened = self._verified(path)
        if [item.stage for item in opened] != [s.name for s in self.study.plan.stages[: len(opened)]]:
            raise StudyError("Expected stages that were opened in the protocol's order in stage.json.")
        for before, item in pairwise(opened):
            report = self.home / before.stage / "report.json"
            if not report.exists() or sha256_file(report) != item.report_sha256:
                raise StudyError(
                    f"Expected {report} to be the report that opened stage={item.stage}, "
                    f"sha256={item.report_sha256[:16]}....",
                    hint="It was changed or removed: restore it from a backup.",
                )
        return opened

    def _verified(self, path: Path) -> list[Opened]:
        try:
            content = parse_json(path.read_bytes())
            signature = bytes.fromhex(content.pop("signature"))
            verify_signature(self.key.public_hex, URN, canonical_json(content), signature)
            opened = [Opened(**entry) for entry in content["opened"]]
        except (CytosaeError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise StudyError(
                "Expected stage.json as the study key signed it.",
                hint="It was changed: restore it from a backup.",
            ) from error
        if content != self._content(opened) or not opened:
            raise StudyError(
                "Expected the protocol that this study's first stage began with.",
                hint="A changed protocol is another study: choose a new folder. What was agreed stays as it was.",
            )
        return opened


def checked_report(folder: Path, study: StudyConfig, key: SigningKey) -> tuple[dict[str, Any], str]:
    """report.json of the finished study in `folder`, and its SHA-256.

    Raises:
        StudyError: there is none, it is of another protocol, or it is not what the coordinator's log or the sites'
            replies say.
    """
    path = folder / "report.json"
    if not path.exists():
        raise StudyError(
            f"Expected a report at {path}.", hint="Run the study (its open stage) to its end first."
        )
    if path.stat().st_size > MAX_REPORT_BYTES:
        raise StudyError(f"Expected a report of at most {MAX_REPORT_BYTES} bytes.")
    data = path.read_bytes()
    _check_logged(folder, study, key, data)
    report = parse_json(data, max_bytes=MAX_REPORT_BYTES)
    stated = report.get("protocol") if isinstance(report, dict) else None
    if not isinstance(stated, Mapping) or stated.get("sha256") != study.digest:
        raise StudyError(f"Expected the report of this protocol at {path}.")
    return report, sha256_hex(data)


def _check_logged(folder: Path, study: StudyConfig, key: SigningKey, data: bytes) -> None:
    """The report is the one in the coordinator's signed log, or what the run folder gives again (`study report`)."""
    if sha256_hex(data) in logged_reports(folder, study, key):
        return
    try:
        same = report_bytes(rebuilt(folder)) == data
    except (CytosaeError, KeyError, TypeError, ValueError):
        same = False
    if not same:
        raise StudyError(
            f"Expected {folder / 'report.json'} as the coordinator's log holds it.",
            hint="It was changed after it was made: `cytosae study report` makes it again from the sites' replies.",
        )


def logged_reports(folder: Path, study: StudyConfig, key: SigningKey) -> list[str]:
    """SHA-256 of the reports in the coordinator's log of the study in `folder`, oldest first."""
    run = folder / "run"
    if not (run / "log").is_dir() or not (run / "keys" / "log.key").exists():
        return []
    opened = Log.open(
        run / "log", origin=origin_of(study.digest, COORDINATOR), party=COORDINATOR, study=study.name,
        protocol=study.digest, signing=key, log_key=SigningKey.load_or_create(run / "keys" / "log.key"),
    )  # fmt: skip
    with closing(opened) as log:
        signers = {key.public_hex[:16]: key.public_hex}
        found = [read_leaf(leaf, signers) for leaf in log.leaves(0, log.size)]
    return [item.predicate["report_sha256"] for item in found if item.kind == "report"]
