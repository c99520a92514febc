"""RFC 6962 Merkle trees, checking side. Hashes are 32 raw bytes; nothing here reads files.

A tree of n leaves has one root; an inclusion proof shows that a leaf is under it, a consistency proof that a
smaller tree is its beginning (RFC 9162 sections 2.1.3.2 and 2.1.4.2). The old size 0 is an error here: an empty
tree proves nothing about what follows, so who meets a log for the first time must say so in its own code.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from ..errors import VerificationError

HASH_BYTES = 32
MAX_PROOF_HASHES = 63
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    """SHA-256 of a zero byte and the leaf's bytes."""
    return hashlib.sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256 of a one byte and the hashes of both children."""
    return hashlib.sha256(b"\1" + left + right).digest()


def root_of(leaf_hashes: Sequence[bytes]) -> bytes:
    """Root of the tree over `leaf_hashes` (in order), in one pass; SHA-256 of nothing when there are none."""
    stack: list[
        bytes
    ] = []  # roots of full subtrees, largest first, as the ones in the binary form of the count
    for index, item in enumerate(leaf_hashes):
        stack.append(item)
        while index & 1:
            right = stack.pop()
            stack[-1] = node_hash(stack[-1], right)
            index >>= 1
    while len(stack) > 1:
        right = stack.pop()
        stack[-1] = node_hash(stack[-1], right)
    return stack[0] if stack else EMPTY_ROOT


def verify_inclusion(index: int, size: int, leaf_hash: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Raise VerificationError (PROOF) unless `proof` leads from leaf `index` of `size` leaves to `root`."""
    _check_hashes(proof)
    _check_hashes([leaf_hash, root])
    if not (_is_count(index) and _is_count(size) and index < size):
        raise _bad(f"Expected an index inside the tree, got index={index} size={size}.")
    if not hmac.compare_digest(_climb(index, size - 1, leaf_hash, proof)[1], root):
        raise _bad("Expected an inclusion proof that leads to the root.")


def verify_consistency(size1: int, size2: int, root1: bytes, root2: bytes, proof: Sequence[bytes]) -> None:
    """Raise VerificationError (PROOF) unless `proof` shows that the tree of `size1` leaves begins the second."""
    _check_hashes(proof)
    if not (_is_count(size1) and _is_count(size2) and 0 < size1 <= size2):
        raise _bad(f"Expected 0 < old size <= new size, got {size1} and {size2}.")
    if size1 == size2:
        if proof or not hmac.compare_digest(root1, root2):
            raise _bad("Expected equal roots and no proof for equal sizes.")
        return
    _check_hashes([root1, root2])
    path = [root1, *proof] if size1 & (size1 - 1) == 0 else list(proof)
    if not path:
        raise _bad("Expected a consistency proof with hashes.")
    full = (
        size1 & -size1
    ).bit_length() - 1  # height of the last full subtree of the old tree, where both begin
    old, new = _climb((size1 - 1) >> full, (size2 - 1) >> full, path[0], path[1:])
    if not (hmac.compare_digest(old, root1) and hmac.compare_digest(new, root2)):
        raise _bad("Expected a consistency proof that leads to both roots.")


def _climb(position: int, last: int, start: bytes, proof: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Roots above a node: over all up to it, and over the whole tree whose last node at its height is `last`."""
    old = new = start
    for item in proof:
        if last == 0:
            raise _bad("Expected a proof without extra hashes.")
        if position & 1 or position == last:
            old, new = node_hash(item, old), node_hash(item, new)
            while position and not position & 1:  # an incomplete right edge has no sibling at these heights
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, item)
        position, last = position >> 1, last >> 1
    if last:
        raise _bad("Expected a proof up to the root.")
    return old, new


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if len(hashes) > MAX_PROOF_HASHES:
        raise _bad(f"Expected a proof of at most {MAX_PROOF_HASHES} hashes, got {len(hashes)}.")
    if any(len(item) != HASH_BYTES for item in hashes):
        raise _bad(f"Expected hashes of {HASH_BYTES} bytes.")


def _bad(message: str) -> VerificationError:
    return VerificationError(message, hint="Keep both sides' files: this is evidence.", reason="PROOF")
