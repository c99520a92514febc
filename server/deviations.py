"""What was done otherwise than the protocol says: `deviations.json`, dated, signed by the study key, chained.

Each entry holds the SHA-256 of the one before, so none can be changed or taken out of the middle. The report, which
is in the coordinator's log, prints all that stood there when it was made: none can be taken off the end later either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cytosae_core.canonical import canonical_json, digest_of, parse_json
from cytosae_core.config import StudyConfig
from cytosae_core.errors import CytosaeError, StudyError
from cytosae_core.keys import SigningKey, verify_signature
from cytosae_core.report.inputs import StudyResult
from cytosae_core.tensors import write_atomic

URN = "urn:cytosae:deviations:v1"
FILE = "deviations.json"
FIRST = "0" * 64
COORDINATOR, PROGRAM = "coordinator", "program"
FIELDS = {"at", "what", "why", "by", "stage", "protocol", "prev", "signature"}
MAX_TEXT = 500
_DAY = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}")
# What a code of a fault means, for people. Other codes stand as they are.
FAULTS = {
    "withdrawn": "it withdrew from the study",
    "deadline": "it did not answer in time",
    "unreachable": "it could not be reached",
    "encoder": "its encoder gives other features than the other sites'",
    "policy": "its policy does not allow what was asked",
}


class Deviations:
    """The deviations of one study, in its folder.

    Args:
        folder: the study folder, or that of one of its stages.
        key: the study key.
        study: the protocol; of a stage, the stage's.

    Raises:
        StudyError: the file was changed, or is of another study.
    """

    def __init__(self, folder: Path, key: SigningKey, study: StudyConfig) -> None:
        self._path, self._key, self._study = folder / FILE, key, study
        self._protocol = study.part_of or study.digest
        self.entries: list[dict[str, str]] = self._read()

    def add(self, what: str, why: str, *, by: str = COORDINATOR, today: str = "") -> bool:
        """Record a deviation; False when the same one stands there with the same day.

        Args:
            what, why: one sentence each, 1 to 500 printable characters.
            by: `coordinator` for what people decided, `program` for what the program saw by itself.
            today: YYYY-MM-DD, for tests; empty: now, UTC.
        """
        at = today or datetime.now(UTC).date().isoformat()
        for name, text in (("what", what), ("why", why)):
            if not _is_text(text):
                raise StudyError(
                    f"Expected {name} as one printable sentence of 1 to {MAX_TEXT} characters.",
                    hint="Names of patients do not belong here: everybody who gets the report reads it.",
                )
        same = {"at": at, "what": what, "why": why, "by": by, "stage": self._study.stage}
        if any(
            same.items() <= entry.items() and entry["protocol"] == self._protocol for entry in self.entries
        ):
            return False
        entry = {**same, "protocol": self._protocol, "prev": self._last()}
        entry["signature"] = self._key.sign(URN, canonical_json(entry)).hex()
        self.entries.append(entry)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path, canonical_json({"urn": URN, "entries": self.entries}))
        return True

    def printed(self) -> list[dict[str, str]]:
        """What the report prints: {at, what, why} of this protocol, oldest first; those of earlier stages say so."""
        return [
            {"at": entry["at"], "what": self._with_stage(entry), "why": entry["why"]}
            for entry in self.entries
            if entry["protocol"] == self._protocol
        ]

    def _with_stage(self, entry: dict[str, str]) -> str:
        if entry["stage"] == self._study.stage:
            return entry["what"]
        place = f"Stage {entry['stage']}" if entry["stage"] else "Before the first stage"
        return f"{place}: {entry['what']}"

    def of_run(self, result: StudyResult, *, skipped: str = "") -> list[dict[str, str]]:
        """Record what a finished run shows by itself: sites that dropped out, and `skipped` parts.

        Returns what the report prints.
        """
        for site, code, steps in _grouped(result.faults):
            reason = FAULTS.get(code, f"code {code}")
            self.add(f"{site} gave no usable answer in {steps}.", f"As logged: {reason}.", by=PROGRAM)
        if skipped:
            self.add(f"Left out: {skipped}.", "Asked for when the study was started.", by=PROGRAM)
        return self.printed()

    @contextmanager
    def stops(self) -> Iterator[None]:
        """Record that a run stopped before its end, for example because a quorum was missed."""
        try:
            yield
        except StudyError as error:
            why = " ".join(str(error.args[0]).split())[:MAX_TEXT]
            if _is_text(why):
                self.add("The run stopped before its end and was resumed or given up.", why, by=PROGRAM)
            raise

    def _last(self) -> str:
        return digest_of(self.entries[-1]) if self.entries else FIRST

    def _read(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        try:
            content = parse_json(self._path.read_bytes())
            entries = content["entries"] if isinstance(content, dict) and content.get("urn") == URN else None
            if not isinstance(entries, list):
                raise StudyError("no list of deviations")
            previous = FIRST
            for entry in entries:
                _check(entry, previous, self._key.public_hex)
                previous = digest_of(entry)
        except (CytosaeError, KeyError, TypeError, ValueError) as error:
            raise StudyError(
                f"Expected {self._path} as the study key signed it.",
                hint="It was changed by hand or by another study: restore it from a backup.",
            ) from error
        return entries


def _check(entry: Any, previous: str, public: str) -> None:
    """Raise unless `entry` is a signed deviation that follows `previous`."""
    if not isinstance(entry, dict) or set(entry) != FIELDS or entry["prev"] != previous:
        raise StudyError("not a deviation that follows the one before")
    if not all(isinstance(value, str) for value in entry.values()) or not _DAY.fullmatch(entry["at"]):
        raise StudyError("not a deviation")
    signed = {name: value for name, value in entry.items() if name != "signature"}
    verify_signature(public, URN, canonical_json(signed), bytes.fromhex(entry["signature"]))


def _is_text(text: str) -> bool:
    return len(text.strip()) >= 1 and len(text) <= MAX_TEXT and text.isprintable()


def _grouped(faults: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """(site, code, steps in words) of everything that did not answer."""
    found: dict[tuple[str, str], list[str]] = {}
    for site, step, code in faults:
        found.setdefault((site, code), []).append(step or "a step")
    return [
        (site, code, steps[0] if len(steps) == 1 else f"{len(steps)} steps, {steps[0]} to {steps[-1]}")
        for (site, code), steps in found.items()
    ]
