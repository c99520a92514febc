"""The token store's folder: who owns it, who is at which shard, and writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SetupError
from ..tensors import write_atomic

OWN_FILES = (
    *("tokens-*.npy", "masks-*.npy", "facts-*.npy", "shard-*.json", "index.json", "golden.npy"),
    ".lock-*",
)
LEFTOVERS = (".lock-*", ".key.*.tmp", ".golden.npy.*.tmp", ".index.json.*.tmp")  # of killed builders


@contextlib.contextmanager
def turn(folder: Path, part: str = "", *, wait: bool = True) -> Iterator[bool]:
    """One builder at a time for the folder, or for a part of it; false when taken and not to `wait`.

    The kernel ends a lock with its process. Some network file systems have no locks: then nobody waits, and two
    builders at one shard would write the same bytes twice.
    """
    place, flags = (folder / f".lock-{part}", os.O_RDWR | os.O_CREAT) if part else (folder, os.O_RDONLY)
    handle = os.open(place, flags, 0o666)
    try:
        free = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            free = False
        except OSError:
            pass
        yield free
        if part and free:
            place.unlink(missing_ok=True)
    finally:
        os.close(handle)


def claim(folder: Path, key: str, rebuild: bool) -> None:
    """Make the folder this key's, emptied of what was another's; call it in the folder's `turn`."""
    owner = folder / "key"
    found = owner.read_text() if owner.exists() else ""
    if found not in ("", key) and not rebuild:
        raise SetupError(
            "Expected a folder for this token store, found one of other images, encoder or version.",
            hint="Delete it, or use another folder.",
        )
    if found != key:
        remove(folder, (*OWN_FILES, *(f".{pattern}.*.tmp" for pattern in OWN_FILES)))
        write_bytes(owner, key.encode())


def remove(folder: Path, patterns: tuple[str, ...]) -> None:
    """Delete the files of these patterns."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def write_array(path: Path, values: NDArray[Any]) -> None:
    """A .npy file, whole or not at all."""
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    write_bytes(path, stream.getvalue())


def write_bytes(path: Path, data: bytes) -> None:
    """A file, whole or not at all. Where locks are missing, another builder may have put the same bytes there."""
    try:
        write_atomic(path, data)
    except FileNotFoundError:
        if not path.is_file() or path.read_bytes() != data:
            raise
