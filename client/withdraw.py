"""A site or a patient leaves: logged, local payloads deleted, later releases without them.

What a site remembers of a patient who left is a salted digest, so that the patient's images are left out again when
the folder of images still holds them. Nothing that left before can be called back: the log says what that was.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cytosae_core.audit.log import Log
from cytosae_core.audit.note import origin_of
from cytosae_core.canonical import canonical_json, parse_json
from cytosae_core.cohort import Cohort
from cytosae_core.config import StudyConfig, study_from_dict
from cytosae_core.errors import DataError, SetupError
from cytosae_core.keys import SigningKey
from cytosae_core.tensors import write_atomic

SALT_BYTES = 32
# What a study leaves at a site beside its log, its seen requests and its ledger.
PAYLOADS = ("pending", "approved", "accepted.safetensors", "rows.json")


class Withdrawn:
    """Who left, in the site's home.

    Args:
        home: the folder that holds key, state and token store.
    """

    def __init__(self, home: Path) -> None:
        self._home, self._file = home, home / "state" / "withdrawn.json"

    def contains(self, unit: str) -> bool:
        """Whether this patient left."""
        return self._name(unit) in self._names()

    def keep(self, cohort: Cohort) -> Cohort:
        """The cohort without those who left.

        Raises:
            DataError: nobody is left.
        """
        images = tuple(image for image in cohort.images if not self.contains(image.unit))
        if not images:
            raise DataError(
                "Expected a patient who did not leave.", hint="The site has no data for this study."
            )
        return cohort if len(images) == len(cohort.images) else replace(cohort, images=images)

    def patient(self, unit: str, cohort: Cohort) -> int:
        """A patient leaves all studies of this site: remembered, token store and payloads deleted, logged.

        Returns how many payloads were deleted. Raises DataError when the cohort has no such patient.
        """
        if not any(image.unit == unit for image in cohort.images):
            raise DataError("Expected a patient of this cohort.", hint="Compare with the column patient.")
        names = sorted({*self._names(), self._name(unit)})
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._file, canonical_json(names))
        with contextlib.ExitStack() as stack:
            logs = [(folder, stack.enter_context(self._log(folder))) for folder in self._studies()]
            deleted = _delete([self._home / "store"])
            return deleted + sum(_leave(folder, log, "patient") for folder, log in logs)

    def site(self, study: StudyConfig) -> int:
        """The site leaves one study; later requests are refused with code `withdrawn`."""
        folder = self._home / "state" / study.digest[:16]
        if not (folder / "study.json").exists():
            raise SetupError("Expected a study that this site took part in.", hint="Check --study.")
        write_atomic(folder / "withdrawn", b"withdrawn\n")
        with self._log(folder) as log:
            return _leave(folder, log, "site")

    def _log(self, folder: Path) -> Log:
        """The site's log of one study. Opened before anything is deleted: an agent that runs holds it."""
        study = study_from_dict(parse_json((folder / "study.json").read_bytes()))
        site = _site_of(study, folder)
        return Log.open(
            folder / "log",
            origin=origin_of(study.digest, site),
            party=site,
            study=study.name,
            protocol=study.digest,
            signing=SigningKey.load_or_create(self._home / "site.key"),
            log_key=SigningKey.load_or_create(self._home / "state" / "log.key"),
        )

    def _studies(self) -> Sequence[Path]:
        return sorted(path.parent for path in (self._home / "state").glob("*/study.json"))

    def _names(self) -> list[str]:
        return list(parse_json(self._file.read_bytes())) if self._file.exists() else []

    def _name(self, unit: str) -> str:
        return hmac.new(self._salt(), unit.encode(), hashlib.sha256).hexdigest()

    def _salt(self) -> bytes:
        path = self._home / "state" / "withdrawn.salt"
        if not path.exists() and not self._file.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_secret(path, secrets.token_bytes(SALT_BYTES))
        salt = path.read_bytes() if path.exists() else b""
        if len(salt) != SALT_BYTES:  # without it nobody who left would be recognised
            raise SetupError("Expected the salt of the list of those who left.", hint="Restore state/.")
        return salt


def _write_secret(path: Path, data: bytes) -> None:
    """Like `write_atomic`, readable by the owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)


def _leave(folder: Path, log: Log, scope: str) -> int:
    deleted = _delete([folder / name for name in PAYLOADS])
    if not log.size:  # killed at its first start: nothing ever left, and the first entry is the session's
        return deleted
    log.append("withdraw", {"scope": scope, "payloads_deleted": deleted})
    log.checkpoint()
    return deleted


def _site_of(study: StudyConfig, folder: Path) -> str:
    name = str(parse_json((folder / "site.json").read_bytes())["site"])
    if name not in study.sites:
        raise SetupError("Expected a site of the study in its state.", hint="Was the state moved?")
    return name


def _delete(paths: Sequence[Path]) -> int:
    """Delete files and folders; how many files went."""
    count = 0
    for path in paths:
        if path.is_dir():
            count += sum(1 for item in path.rglob("*") if item.is_file())
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
            count += 1
    return count
