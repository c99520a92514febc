"""A party's own append-only log: write, fsync, sign the head, then send (write-ahead).

    folder/journal, checkpoint   `store.py`        folder/cosignatures   `cosignatures.py`

`append` puts one leaf on disk; `checkpoint` signs the head over all of them. Threads may share a `Log`; a second
process is refused.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...canonical import parse_json, sha256_hex
from ...errors import SetupError, VerificationError
from ...keys import SigningKey
from ..note import open_checkpoint, parse_checkpoint, split_note, unbase64, vkey
from ..statement import FIRST, read_leaf
from .cosignatures import Cosignatures
from .signing import make_leaf, sign_checkpoint
from .store import Store, damaged
from .tree import Tree

ADDED = frozenset({"study", "protocol", "party", "seq", "prev", "at"})


class Log:
    """One party's log of one study. Make it with `Log.open`."""

    def __init__(
        self,
        store: Store,
        origin: str,
        base: Mapping[str, str],
        keys: tuple[SigningKey, SigningKey],
        clock: Callable[[], float],
    ) -> None:
        self._store, self._origin, self._base, self._clock = store, origin, dict(base), clock
        self._signing, self._log_key = keys
        self._lock = threading.RLock()
        self._prev = FIRST
        self._rotations: list[tuple[int, dict[str, Any]]] = []

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        origin: str,
        party: str,
        study: str,
        protocol: str,
        signing: SigningKey,
        log_key: SigningKey,
        clock: Callable[[], float] = time.time,
    ) -> Log:
        """The log in `folder`, made when missing.

        Args:
            origin: `origin_of(protocol, party)`. study: its name. protocol: the protocol's SHA-256.
            signing, log_key: this party's current keys; after a rotation the new ones.
            clock: unix seconds.

        Raises:
            SetupError: another process has it open, or these are not its current keys.
            VerificationError: code `rollback` or `fork`: the files are not what this party signed.
        """
        store = Store(folder)
        try:
            base = {"study": study, "protocol": protocol, "party": party}
            log = cls(store, origin, base, (signing, log_key), clock)
            log._load(folder)
        except BaseException:
            store.close()
            raise
        return log

    def _load(self, folder: Path) -> None:
        if (
            self._store.is_new
        ):  # the head over nothing comes first: a journal without a head was tampered with
            self._store.write_checkpoint(self._note_at(0))
        note = self._store.checkpoint
        if not note:
            raise damaged("Expected a checkpoint beside the journal.", "rollback")
        size = parse_checkpoint(split_note(note)[0]).size
        self._store.load(size)
        self._rotations = _rotations(self._store.leaves(0, self.size))
        log_key = vkey(self._origin, "log", self._key_at("log", self._log_key, size))
        head = open_checkpoint(note, log_key, origin=self._origin)
        if self._store.tree.root(size) != head.root:
            raise damaged("Expected the leaves that the checkpoint was signed over.", "fork")
        for index in range(max(0, size - 1), self.size):
            self._check_leaf(index)
        self._cosignatures = Cosignatures(
            folder / "cosignatures", self._origin, self._store.tree, self._note_at, self._since
        )

    def _key_at(self, role: str, current: SigningKey, index: int) -> str:
        """Public key of a role for leaf `index` (`signing`) or for heads of size `index` (`log`)."""
        rotations = [(at, fields) for at, fields in self._rotations if fields["role"] == role]
        if rotations and rotations[-1][1]["new"] != current.public_hex:
            raise SetupError(f"Expected this log's current {role} key.", hint="Use the newest key.")
        later = [fields["old"] for at, fields in rotations if at >= index]
        return later[0] if later else current.public_hex

    def _since(self) -> int:
        return max((at + 1 for at, fields in self._rotations if fields["role"] == "log"), default=0)

    def _check_leaf(self, index: int) -> None:
        """Leaves that no checkpoint covers yet, and the one before them, must be this party's own."""
        leaf, key = self._store.leaf(index), self._key_at("signing", self._signing, index)
        fields = read_leaf(leaf, {key[:16]: key}).predicate
        if fields["seq"] != index or any(fields[name] != value for name, value in self._base.items()):
            raise damaged("Expected this party's own statements in order.", "fork")
        if self._prev not in (FIRST, fields["prev"]):
            raise damaged("Expected statements that name the one before them.", "fork")
        self._prev = sha256_hex(leaf)

    # Writing

    def append(self, kind: str, fields: Mapping[str, Any], subjects: Iterable[tuple[str, str]] = ()) -> int:
        """Write a statement; its index. It is on disk when this returns, and signed for by the next `checkpoint`.

        Args:
            kind, fields: see docs/audit-format.md; study, protocol, party, seq, prev and at are added here.
            subjects: (name, SHA-256) of what it is about.

        Raises:
            VerificationError: reason SCHEMA: not a statement of this party. SetupError: the disk does not take it.
        """
        return self._append(kind, fields, subjects, ())

    def rotate(self, role: str, old: SigningKey, new: SigningKey) -> int:
        """Replace this party's `signing`, `log` or `cosign` key; index of the statement, signed by old and new.

        Keep the new key on disk before, and open the log with it from then on.
        """
        fields = {"role": role, "old": old.public_hex, "new": new.public_hex}
        with self._lock:
            index = self._append("key_rotate", fields, (), [new] if role == "signing" else [old, new])
            self._rotations.append((index, fields))
            if role == "signing":
                self._signing = new
            if role == "log":
                self._log_key = new
            self.checkpoint()
            return index

    def _append(
        self,
        kind: str,
        fields: Mapping[str, Any],
        subjects: Iterable[tuple[str, str]],
        more: Sequence[SigningKey],
    ) -> int:
        if overlap := ADDED & fields.keys():
            raise VerificationError(f"Expected fields without {sorted(overlap)}.", reason="SCHEMA")
        with self._lock:
            index = self.size
            added = {**self._base, "seq": index, "prev": self._prev, "at": int(self._clock())}
            leaf = make_leaf(kind, {**fields, **added}, subjects, [self._signing, *more])
            self._store.append([leaf])
            self._prev = sha256_hex(leaf)
            return index

    def checkpoint(self) -> bytes:
        """The signed head over all leaves, on disk when this returns."""
        with self._lock:
            note = self._note_at(self.size)
            if note != self._store.checkpoint:
                self._store.write_checkpoint(note)
            return note

    def checkpoint_at(self, size: int) -> bytes:
        """A signed head over the first `size` leaves, so that all sites can be shown the same one in a step. The head
        over all leaves is on disk first."""
        with self._lock:
            self.checkpoint()
            return self._note_at(size)

    def _note_at(self, size: int) -> bytes:
        return sign_checkpoint(self._origin, size, self._store.tree.root(size), self._log_key)

    # Reading

    @property
    def origin(self) -> str:
        """The log's origin."""
        return self._origin

    @property
    def tree(self) -> Tree:
        """The log's hashes, for proofs and tiles."""
        return self._store.tree

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self._store.tree.size

    @property
    def root(self) -> bytes:
        """Root over all leaves, 32 bytes."""
        with self._lock:
            return self._store.tree.root()

    def leaf(self, index: int) -> bytes:
        """The bytes of leaf `index`."""
        with self._lock:
            return self._store.leaf(index)

    def leaves(self, start: int, stop: int) -> list[bytes]:
        """Leaves `start` to `stop` - 1."""
        with self._lock:
            return self._store.leaves(start, stop)

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """Proof for `merkle.verify_inclusion`."""
        with self._lock:
            return self._store.tree.inclusion(index, size)

    def consistency(self, old: int, new: int) -> list[bytes]:
        """Proof for `merkle.verify_consistency`; empty for old = 0."""
        with self._lock:
            return self._store.tree.consistency(old, new)

    # Cosignatures

    def add_cosignature(self, line: str, vkey: str) -> int:
        """Keep a witness's cosignature of one of this log's heads if it is its newest; the size that it is for.

        Raises:
            VerificationError: reason NOTE or SIG: not `vkey`'s, or not on a head that this log's current key signed.
        """
        with self._lock:
            return self._cosignatures.add(line, vkey)

    def cosigned_checkpoint(self, at_least: int = 1) -> bytes:
        """The newest checkpoint that `at_least` witnesses cosigned, with these lines; empty when there is none."""
        with self._lock:
            return self._cosignatures.newest(at_least)

    def close(self) -> None:
        """Release the files and the lock."""
        with self._lock:
            self._store.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _rotations(leaves: Sequence[bytes]) -> list[tuple[int, dict[str, Any]]]:
    """Index and fields of the key rotations among verified leaves: the only ones with more than one signature."""
    found = []
    for index, leaf in enumerate(leaves):
        if leaf.count(b'"keyid"') > 1:
            fields = parse_json(unbase64(parse_json(leaf)["payload"]))["predicate"]
            found.append((index, {name: fields[name] for name in ("role", "old", "new")}))
    return found
