"""A peer's copy of another party's log: every leaf read and checked, every head signed, only ever longer."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from pathlib import Path

from ...errors import VerificationError
from ..merkle import leaf_hash
from ..note import Checkpoint, open_checkpoint, origin_of, parse_checkpoint, split_note
from ..statement import Chain
from .cosignatures import Cosignatures
from .store import Store, damaged
from .tree import Tree


class Mirror:
    """The copy of one party's log in a folder, made when missing. Thread-safe; one process.

    Args:
        folder: as a `Log`'s: journal, checkpoint, cosignatures.
        origin: `origin_of(protocol, party)`. party: whose log.
        vkey: its first log key. signing: its first signing key (64 hex digits), pinned elsewhere.

    Raises:
        SetupError: another process has it open. VerificationError: the files are damaged.
    """

    def __init__(self, folder: Path, *, origin: str, vkey: str, party: str, signing: str) -> None:
        self._origin, self._vkey = origin, vkey
        self._lock = threading.RLock()
        self._chain = Chain(party, "", signing)
        self._store = Store(folder)
        try:
            self._load(folder)
        except BaseException:
            self._store.close()
            raise

    def _load(self, folder: Path) -> None:
        note = self._store.checkpoint
        size = parse_checkpoint(split_note(note)[0]).size if note else 0
        self._store.load(size)
        self._store.cut(size)  # leaves whose head was not kept were never acknowledged: they come again
        for leaf in self._store.leaves(0, size):
            self._read(self._chain, leaf)
        if note and self._head(self._chain, note).root != self.root:
            raise damaged("Expected the leaves that the checkpoint was signed over.", "fork")
        self._cosignatures = Cosignatures(
            folder / "cosignatures",
            self._origin,
            self._store.tree,
            lambda _: self.checkpoint(),
            lambda: self.size,
        )

    def extend(self, start: int, leaves: Sequence[bytes], note: bytes) -> None:
        """Take a peer's leaves `start`, `start` + 1 ... and its checkpoint over all of them; all or nothing.

        Leaves that are known already may come again with the same bytes.

        Raises:
            VerificationError: a leaf, its order or the checkpoint's signature does not hold; code `rollback` (fewer
                leaves than known) or `fork` (other leaves or another root than known). Nothing is kept then.
        """
        with self._lock:
            if not 0 <= start <= self.size:
                raise VerificationError(f"Expected leaves from start <= {self.size}.", reason="SEQ")
            known = self._store.leaves(start, start + len(leaves))
            if any(old != new for old, new in zip(known, leaves, strict=False)):
                raise damaged("Expected known leaves to come again unchanged.", "fork")
            fresh, chain = list(leaves[len(known) :]), copy.deepcopy(self._chain)
            for leaf in fresh:
                self._read(chain, leaf)
            self._settle(fresh, chain, note)

    def _settle(self, fresh: list[bytes], chain: Chain, note: bytes) -> None:
        head = self._head(chain, note)
        if head.size < self.size:
            raise damaged(f"Expected a checkpoint over {self.size} leaves, got {head.size}.", "rollback")
        if head.size != self.size + len(fresh):
            raise VerificationError("Expected a checkpoint over the leaves that came.", reason="SEQ")
        if self._root_with(fresh) != head.root:
            raise damaged("Expected the root of the leaves that came.", "fork")
        if fresh:
            self._store.append(fresh)
        if fresh or not self._store.checkpoint:
            self._store.write_checkpoint(note)
        self._chain = chain

    def _read(self, chain: Chain, leaf: bytes) -> None:
        kind = chain.read(leaf).kind
        if kind == "enrol" and chain.keys["log"] != self._vkey:
            raise VerificationError("Expected an enrolment with the pinned log key.", reason="BIND")
        if origin_of(chain.protocol, chain.party) != self._origin:
            raise VerificationError("Expected statements of this log's study.", reason="BIND")

    def _head(self, chain: Chain, note: bytes) -> Checkpoint:
        return open_checkpoint(note, chain.keys.get("log", self._vkey), origin=self._origin)

    def _root_with(self, fresh: Sequence[bytes]) -> bytes:
        tree, size = self._store.tree, self.size
        for leaf in fresh:
            tree.append(leaf_hash(leaf))
        root = tree.root()
        tree.cut(size)
        return root

    @property
    def origin(self) -> str:
        """The log's origin."""
        return self._origin

    @property
    def keys(self) -> dict[str, str]:
        """The party's current keys: `signing` in hex, `log` and `cosign` as vkeys; empty before its first leaf."""
        return dict(self._chain.keys)

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

    def checkpoint(self) -> bytes:
        """The party's newest checkpoint; empty before the first `extend`."""
        with self._lock:
            return self._store.checkpoint

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

    def add_cosignature(self, line: str, vkey: str) -> int:
        """Keep a cosignature of the newest checkpoint; its size. Raises VerificationError (NOTE, SIG)."""
        with self._lock:
            return self._cosignatures.add(line, vkey)

    def cosigned_checkpoint(self, at_least: int = 1) -> bytes:
        """The newest checkpoint with `at_least` cosignatures, and these lines; empty when there is none."""
        with self._lock:
            return self._cosignatures.newest(at_least)

    def close(self) -> None:
        """Release the files and the lock."""
        with self._lock:
            self._store.close()
