"""`cytosae study backup | restore`: a stopped study as one file, with keys, logs and everything that arrived.

Flower's own database, logs of programs and sockets are left out: they are made again. Restore only the newest backup:
sites remember the longest log that they were shown, and refuse a study whose log became shorter (`rollback`).
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cytosae_core.canonical import canonical_json, parse_json
from cytosae_core.errors import StudyError, VerificationError
from cytosae_core.processes import only_one

from .study import read_protocol

MANIFEST, URN, CHUNK = "MANIFEST.json", "urn:cytosae:study-backup:v1", 1 << 20
MADE_AGAIN = ("net/logs", "net/caddy", "net/flower", "net/app", "net/lock", "run/log/lock")


def backup(folder: Path, target: Path) -> dict[str, object]:
    """Write `folder` to the new file `target` (mode 0600: it holds the study's private keys); its facts.

    Raises:
        StudyError: no study there, or the target exists. SetupError: the study runs.
    """
    study = read_protocol(folder / "study.yaml")
    lock = (
        only_one(folder / "net" / "lock", "start of this study", "cytosae study stop") if _net(folder) else -1
    )
    try:
        files = {path.relative_to(folder).as_posix(): _sha256(path) for path in _files(folder)}
        facts: dict[str, object] = {"urn": URN, "study": study.name, "protocol": study.digest, "files": files}
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise StudyError("Expected a new file for the backup.", hint="Choose another --to.") from error
        with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            head = canonical_json(facts)
            entry = tarfile.TarInfo(MANIFEST)
            entry.size = len(head)
            tar.addfile(entry, io.BytesIO(head))
            for name in files:
                tar.add(folder / name, arcname=name, recursive=False)
            stream.flush()
    finally:
        if lock >= 0:
            os.close(lock)
    return {"study": study.name, "files": len(files), "bytes": target.stat().st_size, "path": str(target)}


def restore(source: Path, folder: Path) -> dict[str, object]:
    """Make `folder` (new or empty) from a backup; every file's digest is compared.

    Raises:
        StudyError: the folder is not empty. VerificationError: not a backup, or a changed one; nothing is left.
    """
    if folder.exists() and any(folder.iterdir()):
        raise StudyError("Expected a new or empty folder.", hint="Move the old one away first.")
    partial = folder.with_name(f".{folder.name}.restoring")
    try:
        with tarfile.open(source, mode="r:") as tar:
            facts = _manifest(tar)
            tar.extractall(partial, members=_wanted(tar, facts), filter="data")
    except (tarfile.TarError, OSError, ValueError) as error:
        _remove(partial)
        raise VerificationError(f"Expected a backup of a study, got {type(error).__name__}.") from error
    files = dict(facts["files"])  # type: ignore[call-overload]
    found = {path.relative_to(partial).as_posix(): _sha256(path) for path in _files(partial)}
    if found != files:
        _remove(partial)
        raise VerificationError(
            "Expected the files that the backup lists, unchanged.", hint="Use another copy."
        )
    if folder.exists():
        folder.rmdir()
    os.replace(partial, folder)
    return {"study": facts["study"], "files": len(files), "path": str(folder)}


def _net(folder: Path) -> bool:
    return (folder / "net").is_dir()


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        again = any(name == part or name.startswith(f"{part}/") for part in MADE_AGAIN)
        if path.is_file() and not path.is_symlink() and not again and not name.startswith("net/superlink.db"):
            yield path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _manifest(tar: tarfile.TarFile) -> dict[str, object]:
    first = tar.next()
    stream = tar.extractfile(first) if first is not None and first.name == MANIFEST else None
    found = parse_json(stream.read()) if stream else None
    if not isinstance(found, dict) or found.get("urn") != URN or not isinstance(found.get("files"), dict):
        raise ValueError("no manifest")
    return dict(found)


def _wanted(tar: tarfile.TarFile, facts: dict[str, object]) -> Iterator[tarfile.TarInfo]:
    listed = dict(facts["files"])  # type: ignore[call-overload]
    for entry in tar:
        if entry.name == MANIFEST:
            continue
        if entry.name not in listed or not entry.isreg() or ".." in PurePosixPath(entry.name).parts:
            raise ValueError("a file that is not listed")
        yield entry


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
