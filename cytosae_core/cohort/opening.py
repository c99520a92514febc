"""Opening one file of a cohort: through folder descriptors, no links, plain files only, a size limit.

The file that is checked is the file that is read: all questions are asked of one descriptor, so a file or folder
that is swapped in between is either refused or never seen.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..limits import MAX_FILE_BYTES
from .words import refusal

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not make us wait


def read_input(path: Path, root: Path | None = None, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a plain file; with a `root`, no folder between it and the file may be a link.

    Raises:
        DataError: a link (SYMLINK), not a plain file (NOT_REG), too large (FILE_LIMIT). OSError: cannot be read.
    """
    with open_input(path, root, max_bytes) as (descriptor, size):
        with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as stream:
            data = stream.read(size + 1) or b""
            while 0 < len(data) < size and (more := stream.read(size - len(data))):
                data += more
        if len(data) > size:
            raise OSError(errno.EAGAIN, "grew while it was read")
        return data


@contextmanager
def open_input(path: Path, root: Path | None, max_bytes: int) -> Iterator[tuple[int, int]]:
    """Descriptor and size of a plain file: see `read_input`."""
    descriptor = _open(path, root)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise refusal("NOT_REG")
        if found.st_nlink > 1:
            raise refusal("SYMLINK")
        if found.st_size > max_bytes:
            raise refusal("FILE_LIMIT", max_bytes=max_bytes)
        yield descriptor, found.st_size
    finally:
        os.close(descriptor)


def _open(path: Path, root: Path | None) -> int:
    base = path.parent if root is None else root
    parts = path.relative_to(base).parts
    place = os.open(base, FOLDER if root is not None else FOLDER & ~os.O_NOFOLLOW)
    try:
        for part in parts[:-1]:
            inner = _step(place, part, FOLDER)
            os.close(place)
            place = inner
        return _step(place, parts[-1], FILE)
    finally:
        os.close(place)


def _step(place: int, name: str, flags: int) -> int:
    try:
        return os.open(name, flags, dir_fd=place)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK) and _is_link(place, name):
            raise refusal("SYMLINK") from None
        if error.errno == errno.ENXIO:  # a socket
            raise refusal("NOT_REG") from None
        raise


def _is_link(place: int, name: str) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode)
