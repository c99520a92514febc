"""A witness signs only growth: rollback, fork, replay and races are refused, and it never forgets."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cytosae_core.audit.log.signing import sign_checkpoint
from cytosae_core.audit.log.tree import Tree
from cytosae_core.audit.log.witness import Witness
from cytosae_core.audit.merkle import leaf_hash
from cytosae_core.audit.note import open_checkpoint, origin_of, vkey
from cytosae_core.errors import CytosaeError, MessageError, VerificationError
from cytosae_core.keys import SigningKey

ORIGIN, NAME = origin_of("a" * 64, "coordinator"), origin_of("a" * 64, "site-1")
LOG, COSIGN, STRANGER = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()
VKEY, WITNESS_VKEY = vkey(ORIGIN, "log", LOG.public_hex), vkey(NAME, "cosign", COSIGN.public_hex)


def grown(count: int, word: bytes = b"leaf") -> Tree:
    tree = Tree()
    for index in range(count):
        tree.append(leaf_hash(word + b"%d" % index))
    return tree


TREE, FORK = grown(40), grown(40, b"other")


def note(size: int, tree: Tree = TREE, key: SigningKey = LOG) -> bytes:
    return sign_checkpoint(ORIGIN, size, tree.root(size), key)


def witness(folder: Path, **more: Any) -> Witness:
    return Witness(folder, COSIGN, NAME, clock=lambda: 1_700_000_000.9, **more)


def refused(code: str, reason: str, call: Any) -> None:
    with pytest.raises(CytosaeError) as caught:
        call()
    assert (caught.value.code, caught.value.reason) == (code, reason), caught.value


def test_a_witness_follows_a_growing_log_over_restarts(tmp_path: Path) -> None:
    old = 0
    assert witness(tmp_path).seen(ORIGIN) is None
    for size in (1, 2, 2, 7, 40):
        line = witness(tmp_path).cosign(note(size), VKEY, TREE.consistency(old, size), from_size=old)
        head = open_checkpoint(
            note(size) + f"{line}\n".encode(), VKEY, origin=ORIGIN, witnesses=[WITNESS_VKEY]
        )
        assert head.cosigned == {WITNESS_VKEY: 1_700_000_000}
        assert witness(tmp_path).seen(ORIGIN) == (size, TREE.root(size))
        old = size


def test_every_pair_of_sizes(tmp_path: Path) -> None:
    for old in (1, 2, 3, 7, 8, 13):
        for new in range(1, 17):
            seen = witness(tmp_path / f"{old}-{new}")
            seen.cosign(note(old), VKEY, [], from_size=0)
            if new < old:
                refused("rollback", "ROLLBACK", lambda: seen.cosign(note(new), VKEY, [], from_size=old))  # noqa: B023
                continue
            seen.cosign(note(new), VKEY, TREE.consistency(old, new), from_size=old)
            assert seen.seen(ORIGIN) == (new, TREE.root(new))


def test_rollback_fork_and_bad_proofs_change_nothing(tmp_path: Path) -> None:
    seen = witness(tmp_path)
    seen.cosign(note(20), VKEY, [], from_size=0)
    state, proof = (tmp_path / "heads").read_bytes(), TREE.consistency(20, 30)
    for code, call in (
        ("rollback", lambda: seen.cosign(note(19), VKEY, [], from_size=20)),
        ("rollback", lambda: seen.cosign(note(19), VKEY, TREE.consistency(19, 20), from_size=19)),
        ("fork", lambda: seen.cosign(note(20, FORK), VKEY, [], from_size=20)),
        ("fork", lambda: seen.cosign(note(30, FORK), VKEY, FORK.consistency(20, 30), from_size=20)),
        ("fork", lambda: seen.cosign(note(30, FORK), VKEY, proof, from_size=20)),
        ("fork", lambda: seen.cosign(note(30), VKEY, [], from_size=20)),
        ("fork", lambda: seen.cosign(note(30), VKEY, proof[:-1], from_size=20)),
        ("fork", lambda: seen.cosign(note(30), VKEY, [*proof, proof[0]], from_size=20)),
        ("fork", lambda: seen.cosign(note(30), VKEY, [bytes(32)] * 64, from_size=20)),
        ("fork", lambda: seen.cosign(note(30), VKEY, [bytes(31)], from_size=20)),
        ("fork", lambda: seen.cosign(note(20), VKEY, proof, from_size=20)),
    ):
        refused(code, code.upper(), call)
        assert (tmp_path / "heads").read_bytes() == state
    seen.cosign(note(30), VKEY, proof, from_size=20)


def test_first_contact_starts_from_nothing(tmp_path: Path) -> None:
    seen = witness(tmp_path)
    refused("fork", "FORK", lambda: seen.cosign(note(5), VKEY, TREE.consistency(3, 5), from_size=0))
    refused("message", "STALE", lambda: seen.cosign(note(5), VKEY, TREE.consistency(3, 5), from_size=3))
    assert seen.seen(ORIGIN) is None
    seen.cosign(note(0), VKEY, [], from_size=0)
    assert seen.seen(ORIGIN) == (0, Tree().root())
    seen.cosign(note(5), VKEY, [], from_size=0)
    refused("message", "STALE", lambda: seen.cosign(note(9), VKEY, [], from_size=0))


def test_only_the_log_s_own_signature_counts(tmp_path: Path) -> None:
    seen = witness(tmp_path)
    stranger = vkey(ORIGIN, "log", STRANGER.public_hex)
    for bad, key in ((note(5, key=STRANGER), VKEY), (note(5), stranger), (note(5)[:-2], VKEY), (b"", VKEY)):
        with pytest.raises(VerificationError):
            seen.cosign(bad, key, [], from_size=0)
    elsewhere = vkey(NAME, "log", LOG.public_hex)
    with pytest.raises(VerificationError):
        seen.cosign(note(5), elsewhere, [], from_size=0)
    assert not (tmp_path / "heads").exists()


def test_logs_are_kept_apart(tmp_path: Path) -> None:
    seen, other = witness(tmp_path), origin_of("b" * 64, "coordinator")
    seen.cosign(note(20), VKEY, [], from_size=0)
    small = sign_checkpoint(other, 3, FORK.root(3), LOG)
    seen.cosign(small, vkey(other, "log", LOG.public_hex), [], from_size=0)
    assert seen.seen(ORIGIN) == (20, TREE.root(20)) and seen.seen(other) == (3, FORK.root(3))


def test_of_two_threads_with_forks_from_the_same_head_one_wins(tmp_path: Path) -> None:
    """C2SP tlog-witness: the check and the update must be one step, or both branches get a cosignature."""
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        witness(folder).cosign(note(1), VKEY, [], from_size=0)
        fork = Tree()
        fork.append(leaf_hash(b"leaf0"))
        for index in range(5):
            fork.append(leaf_hash(b"fork%d" % index))
        start, results = threading.Barrier(8), []

        def ask(tree: Tree, folder: Path = folder, start: Any = start, results: Any = results) -> None:
            start.wait()
            try:
                witness(folder).cosign(note(6, tree), VKEY, tree.consistency(1, 6), from_size=1)
                results.append(tree.root(6))
            except CytosaeError:
                results.append(None)

        threads = [threading.Thread(target=ask, args=(tree,)) for tree in (TREE, fork) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        head = witness(folder).seen(ORIGIN)
        assert head is not None and set(results) - {None} == {head[1]}


def test_a_state_file_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    witness(tmp_path).cosign(note(20), VKEY, [], from_size=0)
    (tmp_path / "heads").write_bytes(b"{")
    with pytest.raises(MessageError):
        witness(tmp_path).cosign(note(5), VKEY, [], from_size=0)
