"""RFC 6962 proofs: independent vectors, every small tree, and that nothing else is taken for a proof."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cytosae_core.audit.log.tree import Tree
from cytosae_core.audit.merkle import (
    EMPTY_ROOT,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from cytosae_core.errors import VerificationError

CONSTANTS = json.loads((Path(__file__).parents[1] / "vectors" / "rfc6962.json").read_text())


def decode(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def grown(count: int) -> tuple[Tree, list[bytes]]:
    """A tree of `count` leaves and the root at every size."""
    tree, roots = Tree(), [EMPTY_ROOT]
    for index in range(count):
        tree.append(leaf_hash(b"leaf %d" % index))
        roots.append(tree.root())
    return tree, roots


def holds(check: Any, *arguments: Any) -> bool:
    try:
        check(*arguments)
    except VerificationError as error:
        assert error.reason == "PROOF"
        return False
    return True


@pytest.mark.shared
def test_transparency_dev_vectors(shared: Path) -> None:
    folder, read = shared / "vectors" / "merkle" / "testdata", 0
    for path in sorted(folder.rglob("*.json")):
        case = json.loads(path.read_text())
        proof = [decode(item) for item in case["proof"] or []]
        if "consistency" in path.parts:
            roots = decode(case["root1"]), decode(case["root2"])
            found = holds(verify_consistency, case["size1"], case["size2"], *roots, proof)
        else:
            leaf, root = decode(case["leafHash"]), decode(case["root"])
            found = holds(verify_inclusion, case["leafIdx"], case["treeSize"], leaf, proof, root)
        assert found is not case["wantErr"], path
        read += 1
    assert read == 196


def test_constants_of_rfc_6962_implementations() -> None:
    assert root_of([]).hex() == EMPTY_ROOT.hex() == CONSTANTS["empty_root"]
    assert leaf_hash(b"").hex() == CONSTANTS["empty_leaf"]
    assert leaf_hash(b"L123456").hex() == CONSTANTS["leaf"]["hash"]
    assert node_hash(b"N123", b"N456").hex() == CONSTANTS["node"]["hash"]
    leaves = [bytes.fromhex(text) for text in CONSTANTS["eight"]["leaves"]]
    tree = Tree()
    for count, root in enumerate(CONSTANTS["eight"]["roots"], start=1):
        tree.append(leaf_hash(leaves[count - 1]))
        assert tree.root().hex() == root == root_of([leaf_hash(leaf) for leaf in leaves[:count]]).hex()


def recursive_root(hashes: list[bytes]) -> bytes:
    """RFC 6962 section 2.1 as it is written."""
    if len(hashes) < 2:
        return hashes[0] if hashes else hashlib.sha256(b"").digest()
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return node_hash(recursive_root(hashes[:split]), recursive_root(hashes[split:]))


def test_every_inclusion_and_consistency_proof_of_small_trees_holds() -> None:
    tree, roots = grown(200)
    hashes = tree.subtrees(0, 0, 200)
    for size in range(1, 201):
        assert roots[size] == recursive_root(hashes[:size]) == tree.root(size)
        for index in range(size):
            verify_inclusion(index, size, hashes[index], tree.inclusion(index, size), roots[size])
        for old in range(1, size + 1):
            verify_consistency(old, size, roots[old], roots[size], tree.consistency(old, size))


def flipped(data: bytes) -> list[bytes]:
    """`data` with each one of its bits turned."""
    value, size = int.from_bytes(data, "big"), len(data)
    return [(value ^ (1 << bit)).to_bytes(size, "big") for bit in range(8 * size)]


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 8, 13])
def test_no_bit_of_an_inclusion_proof_can_be_turned(size: int) -> None:
    tree, roots = grown(size)
    for index in range(size):
        leaf, proof, root = tree.subtrees(0, index, index + 1)[0], tree.inclusion(index, size), roots[size]
        assert not any(holds(verify_inclusion, index, size, bad, proof, root) for bad in flipped(leaf))
        assert not any(holds(verify_inclusion, index, size, leaf, proof, bad) for bad in flipped(root))
        for place, item in enumerate(proof):
            for bad in flipped(item):
                changed = [*proof[:place], bad, *proof[place + 1 :]]
                assert not holds(verify_inclusion, index, size, leaf, changed, root)
        for other in [*range(size), *(index ^ (1 << bit) for bit in range(63)), -1]:
            assert holds(verify_inclusion, other, size, leaf, proof, root) == (other == index)
        for bad in ([*proof, root], proof[:-1] if proof else [root], [*proof, *[root] * 64]):
            assert not holds(verify_inclusion, index, size, leaf, bad, root)


def test_an_inclusion_proof_fixes_the_shape_of_the_path_and_the_signed_head_the_size() -> None:
    tree, roots = grown(13)

    def passing(index: int) -> list[int]:
        leaf, proof = tree.subtrees(0, index, index + 1)[0], tree.inclusion(index, 13)
        return [size for size in range(64) if holds(verify_inclusion, index, size, leaf, proof, roots[13])]

    assert passing(12) == [13]
    assert passing(0) == list(
        range(9, 17)
    )  # the same four hashes: this is why sizes are read from checkpoints only


@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, 8), (2, 3), (3, 7), (4, 8), (6, 8), (5, 13), (12, 13)])
def test_no_bit_of_a_consistency_proof_can_be_turned(old: int, new: int) -> None:
    tree, roots = grown(13)
    proof = tree.consistency(old, new)
    verify_consistency(old, new, roots[old], roots[new], proof)
    assert not any(holds(verify_consistency, old, new, bad, roots[new], proof) for bad in flipped(roots[old]))
    assert not any(holds(verify_consistency, old, new, roots[old], bad, proof) for bad in flipped(roots[new]))
    for place, item in enumerate(proof):
        for bad in flipped(item):
            changed = [*proof[:place], bad, *proof[place + 1 :]]
            assert not holds(verify_consistency, old, new, roots[old], roots[new], changed)
    for bad in ([*proof, roots[1]], proof[:-1], proof[1:]):
        assert not holds(verify_consistency, old, new, roots[old], roots[new], bad)
    for size in range(14):
        if size != old:
            assert not holds(verify_consistency, size, new, roots[size], roots[new], proof)


def test_what_is_not_a_proof_at_all() -> None:
    root, item = bytes(32), bytes(32)
    assert not holds(verify_consistency, 0, 5, EMPTY_ROOT, root, [])
    assert not holds(verify_consistency, 0, 0, EMPTY_ROOT, EMPTY_ROOT, [])
    assert not holds(verify_consistency, 5, 4, root, root, [])
    assert not holds(verify_consistency, 5, 5, root, root, [item])
    assert not holds(verify_consistency, 5, 6, root, root, [])
    assert not holds(verify_consistency, 5, 6, root, root, [item] * 64)
    assert not holds(verify_consistency, True, 6, root, root, [item])
    assert not holds(verify_consistency, 2, 1 << 63, root, root, [item])
    assert not holds(verify_inclusion, 0, 0, item, [], root)
    assert not holds(verify_inclusion, 0, 1, item[:31], [], item[:31])
    assert not holds(verify_inclusion, 0, 2, item, [item[:31]], root)
    assert not holds(verify_inclusion, 0, 2, item, [item] * 64, root)
    assert not holds(verify_inclusion, 0.0, 1, item, [], item)


def test_a_tree_that_is_cut_is_the_smaller_tree() -> None:
    tree, roots = grown(37)
    for size in (36, 32, 31, 8, 1, 0):
        tree.cut(size)
        assert tree.size == size and tree.root() == roots[size]
    for index in range(37):
        tree.append(leaf_hash(b"leaf %d" % index))
    assert tree.root() == roots[37]
    for ask in (lambda: tree.inclusion(37, 37), lambda: tree.consistency(3, 38), lambda: tree.root(38)):
        with pytest.raises(ValueError, match="Expected"):
            ask()
