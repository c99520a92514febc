"""A log's two files on disk: `journal`, appended and fsynced, and `checkpoint`, replaced after it.

    frame  u32 length (big-endian) | leaf | first 8 bytes of SHA-256(leaf)

The checkpoint says how much of the journal anybody may rely on. A crash can leave a torn last frame beyond it, which
is cut; every other difference is evidence of a changed disk and is never repaired.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import SetupError, VerificationError
from ...tensors import write_atomic
from ..merkle import leaf_hash
from ..statement import MAX_LEAF_BYTES
from .tree import Tree

HEAD = struct.Struct(">I")
CHECK_BYTES = 8


class Store:
    """The locked folder of one log. Not thread-safe: its owner holds a lock.

    Args:
        folder: made when missing.

    Raises:
        SetupError: another process (or object) has the folder open.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = open_lock(folder / "lock", wait=False)
        self._ends: list[int] = []  # where each frame ends in the journal
        self._journal = -1
        self.tree = Tree()

    @property
    def is_new(self) -> bool:
        """Nothing was ever written here."""
        return not (self._folder / "journal").exists() and not (self._folder / "checkpoint").exists()

    @property
    def checkpoint(self) -> bytes:
        """The checkpoint on disk; empty when there is none."""
        path = self._folder / "checkpoint"
        return path.read_bytes() if path.exists() else b""

    def load(self, proven: int) -> None:
        """Read the journal, of which the checkpoint covers `proven` leaves; cut a torn frame after them.

        Raises:
            VerificationError: code `rollback` (shorter than the checkpoint says) or `fork` (a damaged frame).
        """
        path = self._folder / "journal"
        data = path.read_bytes() if path.exists() else b""
        for end, leaf in _frames(data, proven):
            self._ends.append(end)
            self.tree.append(leaf_hash(leaf))
        if self.tree.size < proven:
            raise damaged(f"Expected {proven} leaves on disk, got {self.tree.size}.", "rollback")
        self._journal = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.cut(self.tree.size)
        _sync_folder(self._folder)

    def append(self, leaves: Sequence[bytes]) -> None:
        """Add leaves; they are on disk when this returns, and all or none of them count.

        Raises:
            SetupError: the disk does not take them; the journal is as before.
        """
        start = self._ends[-1] if self._ends else 0
        data = b"".join(HEAD.pack(len(leaf)) + leaf + _check(leaf) for leaf in leaves)
        try:
            _write_all(self._journal, data, start)
            os.fsync(self._journal)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._journal, start)
            raise SetupError(
                "Expected a disk that takes the audit log.", hint="Make room, then retry."
            ) from error
        for leaf in leaves:
            start += HEAD.size + len(leaf) + CHECK_BYTES
            self._ends.append(start)
            self.tree.append(leaf_hash(leaf))

    def cut(self, size: int) -> None:
        """Forget the leaves from index `size` on, in memory and on disk."""
        self.tree.cut(size)
        del self._ends[size:]
        os.ftruncate(self._journal, self._ends[-1] if self._ends else 0)
        os.fsync(self._journal)

    def leaf(self, index: int) -> bytes:
        """The bytes of leaf `index`. Raises VerificationError when the disk gives others than were written."""
        if not 0 <= index < self.tree.size:
            raise ValueError(f"Expected 0 <= index < {self.tree.size}, got index={index}.")
        start = (self._ends[index - 1] if index else 0) + HEAD.size
        leaf = os.pread(self._journal, self._ends[index] - start - CHECK_BYTES, start)
        if leaf_hash(leaf) != self.tree.subtrees(0, index, index + 1)[0]:
            raise damaged("Expected the leaf that was written.", "fork")
        return leaf

    def leaves(self, start: int, stop: int) -> list[bytes]:
        """Leaves `start` to `stop` - 1."""
        return [self.leaf(index) for index in range(start, min(stop, self.tree.size))]

    def write_checkpoint(self, note: bytes) -> None:
        """Replace the checkpoint; the journal is on disk already."""
        write_atomic(self._folder / "checkpoint", note)

    def close(self) -> None:
        """Close the files and release the lock."""
        for descriptor in (self._journal, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._journal = self._lock = -1


def damaged(message: str, code: str) -> VerificationError:
    """The error for a log that is not what it was: `code` is `rollback` or `fork`."""
    return VerificationError(
        message, hint="Stop, keep all files and tell the other parties.", code=code, reason=code.upper()
    )


def open_lock(path: Path, *, wait: bool) -> int:
    """A descriptor that holds an exclusive lock until it is closed. Raises SetupError when taken and not `wait`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        os.close(descriptor)
        raise SetupError(
            "Expected one process for an audit log.", hint="Stop the other one first."
        ) from error
    return descriptor


def _frames(data: bytes, proven: int) -> Iterator[tuple[int, bytes]]:
    """End and leaf of every whole frame. Raises VerificationError (`fork`) unless only the last one may be torn."""
    start = index = 0
    while start < len(data):
        (length,) = HEAD.unpack(data[start : start + HEAD.size].ljust(HEAD.size, b"\xff"))
        end = start + HEAD.size + length + CHECK_BYTES
        leaf = data[start + HEAD.size : end - CHECK_BYTES]
        whole = 0 < length <= MAX_LEAF_BYTES and data[end - CHECK_BYTES : end] == _check(leaf)
        if not whole:
            cut_off = len(data) - start < HEAD.size or (length <= MAX_LEAF_BYTES and end >= len(data))
            torn = cut_off or not any(data[start:])
            if not torn or (index < proven and end <= len(data)):
                raise damaged(f"Expected a whole frame, leaf {index} is damaged.", "fork")
            return
        yield end, leaf
        start, index = end, index + 1


def _check(leaf: bytes) -> bytes:
    return hashlib.sha256(leaf).digest()[:CHECK_BYTES]


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
