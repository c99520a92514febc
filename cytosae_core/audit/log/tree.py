"""A growing RFC 6962 tree that answers for every earlier size: O(log n) work for an append, a root or a proof."""

from __future__ import annotations

from ..merkle import EMPTY_ROOT, node_hash


class Tree:
    """Hashes of all full subtrees: `_levels[k][i]` covers leaves i * 2**k to (i + 1) * 2**k. 64 bytes a leaf."""

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0])

    def append(self, leaf_hash: bytes) -> None:
        """Add a leaf by its hash (32 bytes)."""
        level = 0
        self._levels[0].append(leaf_hash)
        while len(self._levels[level]) % 2 == 0:
            if level + 1 == len(self._levels):
                self._levels.append([])
            left, right = self._levels[level][-2:]
            level += 1
            self._levels[level].append(node_hash(left, right))

    def cut(self, size: int) -> None:
        """Forget the leaves from index `size` on."""
        self._checked(size)
        for level, hashes in enumerate(self._levels):
            del hashes[size >> level :]

    def root(self, size: int | None = None) -> bytes:
        """Root of the first `size` leaves (default: all)."""
        size = self.size if size is None else self._checked(size)
        return self._hash(0, size) if size else EMPTY_ROOT

    def subtrees(self, height: int, start: int, stop: int) -> list[bytes]:
        """Roots of full subtrees `start` to `stop` - 1 of 2**height leaves each; height 0: leaf hashes."""
        return self._levels[height][start:stop]

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """Proof that leaf `index` is in the tree of the first `size` leaves (RFC 6962 section 2.1.1)."""
        if not 0 <= index < self._checked(size):
            raise ValueError(f"Expected 0 <= index < size, got index={index} size={size}.")
        path, start = [], 0
        while size - start > 1:
            split = start + _split(size - start)
            if index < split:
                path.append(self._hash(split, size))
                size = split
            else:
                path.append(self._hash(start, split))
                start = split
        return path[::-1]

    def consistency(self, old: int, new: int) -> list[bytes]:
        """Proof that the first `old` leaves begin the first `new` (RFC 6962 2.1.2); empty for old = 0 or new."""
        if not 0 <= old <= self._checked(new):
            raise ValueError(f"Expected 0 <= old <= new, got old={old} new={new}.")
        if old in (0, new):
            return []
        path, start, size = [], 0, new
        while old != size:
            split = start + _split(size - start)
            if old <= split:
                path.append(self._hash(split, size))
                size = split
            else:
                path.append(self._hash(start, split))
                start = split
        if start:
            path.append(self._hash(start, size))
        return path[::-1]

    def _hash(self, start: int, stop: int) -> bytes:
        """Root of leaves `start` to `stop` - 1, where `start` is where such a subtree can begin."""
        width = stop - start
        if width & (width - 1) == 0:
            level = width.bit_length() - 1
            return self._levels[level][start >> level]
        split = start + _split(width)
        return node_hash(self._hash(start, split), self._hash(split, stop))

    def _checked(self, size: int) -> int:
        if not 0 <= size <= self.size:
            raise ValueError(f"Expected size <= {self.size}, got size={size}.")
        return size


def _split(width: int) -> int:
    """The largest power of two below `width`."""
    return 1 << ((width - 1).bit_length() - 1)
