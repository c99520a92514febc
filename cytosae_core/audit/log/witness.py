"""A witness: signs another log's head only when the log has grown from what this witness signed before."""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...canonical import canonical_json, parse_json
from ...errors import MessageError, VerificationError
from ...keys import SigningKey
from ...tensors import write_atomic
from ..merkle import verify_consistency
from ..note import Checkpoint, checkpoint_text, open_checkpoint, parse_vkey
from .signing import cosign_text
from .store import damaged, open_lock


class Witness:
    """Remembers the last head of every log that it cosigned. Threads and processes may share its folder.

    Args:
        folder: holds `heads`, replaced atomically under a file lock (C2SP tlog-witness: compare and swap).
        key: used for cosignatures only. name: this witness's note key name, its own log's origin.
    """

    def __init__(
        self, folder: Path, key: SigningKey, name: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._key, self._name, self._clock = folder, key, name, clock

    def seen(self, origin: str) -> tuple[int, bytes] | None:
        """Size and root (32 bytes) of the last cosigned head of a log; None before the first."""
        head = self._heads().get(origin)
        return (head["size"], bytes.fromhex(head["root"])) if head else None

    def cosign(self, note: bytes, vkey: str, consistency: Sequence[bytes], *, from_size: int) -> str:
        """The cosignature line (without newline) of a log's checkpoint.

        Args:
            note: the checkpoint. vkey: the log's key, whose name is the log's origin.
            consistency: proof from `from_size`, which is 0 with an empty proof for a log never seen.

        Raises:
            VerificationError: code `rollback` (smaller than before) or `fork` (not grown from what was seen); or the
                checkpoint's signature does not hold. MessageError: reason STALE: `from_size` is not the last size.
        """
        head = open_checkpoint(note, vkey, origin=parse_vkey(vkey).name)
        with self._locked():
            seen = self.seen(head.origin)
            _check_growth(seen, head, consistency, from_size)
            if seen != (head.size, head.root):
                self._remember(head)
        text = checkpoint_text(head.origin, head.size, head.root)
        return cosign_text(text, self._name, self._key, int(self._clock()))

    def _heads(self) -> dict[str, Any]:
        path = self._folder / "heads"
        return dict(parse_json(path.read_bytes())) if path.exists() else {}

    def _remember(self, head: Checkpoint) -> None:
        heads = self._heads() | {head.origin: {"size": head.size, "root": head.root.hex()}}
        write_atomic(self._folder / "heads", canonical_json(heads))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = open_lock(self._folder / "lock", wait=True)
        try:
            yield
        finally:
            os.close(descriptor)


def _check_growth(
    seen: tuple[int, bytes] | None, head: Checkpoint, proof: Sequence[bytes], from_size: int
) -> None:
    size, root = seen or (0, b"")
    if head.size < size:
        raise damaged(f"Expected a log of at least {size} leaves, got {head.size}.", "rollback")
    if head.size == size and seen and not hmac.compare_digest(head.root, root):
        raise damaged(f"Expected the root that was seen at size={size}.", "fork")
    if from_size != size:
        raise MessageError(f"Expected a proof from size={size}, got from_size={from_size}.", reason="STALE")
    if size == 0:
        if proof:
            raise damaged("Expected no proof from size=0.", "fork")
        return
    try:
        verify_consistency(size, head.size, root, head.root, proof)
    except VerificationError as error:
        raise damaged(f"Expected a log that grew from the one seen at size={size}.", "fork") from error
