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
    """Raise unless `proof` shows that leaf `index` with `leaf_hash` is in the tree of `size` leaves under `root`.

    Raises:
        VerificationError: reason PROOF, for every input that is not such a proof.
    """
    _check_hashes(proof)
    _check_hashes([leaf_hash, root])
    if not (_is_count(index) and _is_count(size) and index < size):
        raise _bad(f"Expected an index inside the tree, got index={index} size={size}.")
    position, last, found = index, size - 1, leaf_hash
    for item in proof:
        if last == 0:
            raise _bad("Expected an inclusion proof without extra hashes.")
        if position & 1 or position == last:
            found = node_hash(item, found)
            position, last = _skip_missing(position, last)
        else:
            found = node_hash(found, item)
        position, last = position >> 1, last >> 1
    if last or not hmac.compare_digest(found, root):
        raise _bad("Expected an inclusion proof that leads to the root.")


def verify_consistency(size1: int, size2: int, root1: bytes, root2: bytes, proof: Sequence[bytes]) -> None:
    """Raise unless `proof` shows that the tree of `size1` leaves under `root1` is the beginning of the second.

    Raises:
        VerificationError: reason PROOF, for every input that is not such a proof, `size1` = 0 among them.
    """
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
    position, last = size1 - 1, size2 - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = path[0]
    for item in path[1:]:
        if last == 0:
            raise _bad("Expected a consistency proof without extra hashes.")
        if position & 1 or position == last:
            old, new = node_hash(item, old), node_hash(item, new)
            position, last = _skip_missing(position, last)
        else:
            new = node_hash(new, item)
        position, last = position >> 1, last >> 1
    if last or not (hmac.compare_digest(old, root1) and hmac.compare_digest(new, root2)):
        raise _bad("Expected a consistency proof that leads to both roots.")


def _skip_missing(position: int, last: int) -> tuple[int, int]:
    """Up to the level where this node is a right child: an incomplete right edge has no sibling below it."""
    while position and not position & 1:
        position, last = position >> 1, last >> 1
    return position, last


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if len(hashes) > MAX_PROOF_HASHES:
        raise _bad(f"Expected a proof of at most {MAX_PROOF_HASHES} hashes, got {len(hashes)}.")
    if any(len(item) != HASH_BYTES for item in hashes):
        raise _bad(f"Expected hashes of {HASH_BYTES} bytes.")


def _bad(message: str) -> VerificationError:
    return VerificationError(message, hint="Keep both sides' files: this is evidence.", reason="PROOF")
