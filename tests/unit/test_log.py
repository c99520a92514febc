"""A log on disk: proofs, crashes, tampering, peers' copies and static files."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cytosae_core.audit.log import Log, Mirror, Witness, origin_of, tile_files, write_tiles
from cytosae_core.audit.log.signing import sign_checkpoint
from cytosae_core.audit.log.tree import Tree
from cytosae_core.audit.merkle import leaf_hash, root_of, verify_consistency, verify_inclusion
from cytosae_core.audit.note import open_checkpoint, vkey
from cytosae_core.audit.statement import Chain, keys_at, read_leaf
from cytosae_core.audit.tiles import read_entries, tile_path
from cytosae_core.canonical import sha256_hex
from cytosae_core.errors import MessageError, SetupError, VerificationError
from cytosae_core.keys import SigningKey
from tests.vectors.make_log import make


def key(number: int) -> SigningKey:
    """The same key in another process."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


PROTOCOL = sha256_hex(b"protocol")
PARTY = "site-1"
ORIGIN = origin_of(PROTOCOL, PARTY)
KEY, LOG_KEY, COSIGN_KEY, PEER_KEY, NEW_KEY = (key(number) for number in range(1, 6))
KEYS = {
    "signing": KEY.public_hex,
    "log": vkey(ORIGIN, "log", LOG_KEY.public_hex),
    "cosign": vkey(ORIGIN, "cosign", COSIGN_KEY.public_hex),
}
PEER = origin_of(PROTOCOL, "coordinator")
PEER_VKEY = vkey(PEER, "cosign", PEER_KEY.public_hex)


def open_log(folder: Path, **changes: Any) -> Log:
    given: dict[str, Any] = {
        **{"origin": ORIGIN, "party": PARTY, "study": "demo", "protocol": PROTOCOL},
        **{"signing": KEY, "log_key": LOG_KEY, "clock": lambda: 1_700_000_000.5},
    }
    return Log.open(folder, **{**given, **changes})


def refusal(number: int) -> dict[str, Any]:
    return {"kind": "round", "round": number, "request_sha256": sha256_hex(b"%d" % number), "code": "replay"}


def filled(folder: Path, count: int = 5, **changes: Any) -> Log:
    """A log of `count` leaves with a checkpoint over all of them."""
    log = open_log(folder, **changes)
    if log.size == 0:
        log.append("enrol", {"role": "site", "software": "0.1", "keys": KEYS})
    while log.size < count:
        log.append("refused", refusal(log.size))
    log.checkpoint()
    return log


def damage(code: str, call: Any, *arguments: Any, **named: Any) -> None:
    with pytest.raises(VerificationError) as caught:
        call(*arguments, **named)
    assert (caught.value.code, caught.value.reason) == (code, code.upper()), caught.value


# Reading and proving


def test_a_log_is_what_its_statements_and_checkpoint_say(tmp_path: Path) -> None:
    with filled(tmp_path, 9) as log:
        leaves = log.leaves(0, log.size)
        assert root_of([leaf_hash(leaf) for leaf in leaves]) == log.root
        head = open_checkpoint(log.checkpoint(), KEYS["log"], origin=ORIGIN)
        assert (head.size, head.root) == (9, log.root)
        chain = Chain(PARTY, PROTOCOL, KEY.public_hex)
        assert keys_at(leaves, chain) == [KEY.public_hex] * 9 and chain.keys == KEYS
        assert log.leaf(3) == leaves[3] and log.leaves(7, 99) == leaves[7:]
        assert read_leaf(leaves[8], {KEY.public_hex[:16]: KEY.public_hex}).predicate["at"] == 1_700_000_000
        for index in range(9):
            verify_inclusion(index, 9, leaf_hash(leaves[index]), log.inclusion(index, 9), log.root)
        for old in range(1, 10):
            verify_consistency(old, 9, log.tree.root(old), log.root, log.consistency(old, 9))
        assert log.consistency(0, 9) == []


def test_opening_again_gives_the_same_log(tmp_path: Path) -> None:
    with filled(tmp_path, 5) as log:
        before = log.root, log.checkpoint()
    with open_log(tmp_path) as log:
        assert (log.root, log.checkpoint()) == before and log.append("refused", refusal(5)) == 5


def test_an_append_does_logarithmic_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes computed, not seconds: at 10,000 leaves an append and a root take tens of them."""
    from cytosae_core.audit.log import tree as module

    tree, counted = Tree(), []
    for index in range(10_000):
        tree.append(leaf_hash(b"%d" % index))
    real = module.node_hash
    monkeypatch.setattr(module, "node_hash", lambda left, right: counted.append(1) or real(left, right))
    for index in range(100):
        tree.append(leaf_hash(b"%d" % index))
        tree.root()
    assert len(counted) / 100 < 2 * 14
    counted.clear()
    tree.inclusion(5_000, 10_100), tree.consistency(5_001, 10_100)
    assert len(counted) < 6 * 14


def test_what_cannot_be_appended_changes_nothing(tmp_path: Path) -> None:
    with filled(tmp_path, 2) as log:
        before = (tmp_path / "journal").read_bytes()
        for kind, fields in (
            ("refused", {**refusal(1), "path": "/home"}),
            ("refused", {**refusal(1), "seq": 7}),
            ("release", refusal(1)),
            ("refused", {**refusal(1), "code": "see /tmp"}),
        ):
            with pytest.raises(VerificationError):
                log.append(kind, fields)
        assert (tmp_path / "journal").read_bytes() == before and log.size == 2


def test_threads_share_a_log(tmp_path: Path) -> None:
    with filled(tmp_path, 1) as log:
        threads = [
            threading.Thread(target=lambda: [log.append("refused", refusal(i)) for i in range(8)])
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.size == 49
        keys_at(log.leaves(0, 49), Chain(PARTY, PROTOCOL, KEY.public_hex))


def test_two_openers_are_refused(tmp_path: Path) -> None:
    with filled(tmp_path), pytest.raises(SetupError, match="one process"):
        open_log(tmp_path)
    code = "import sys, time; from pathlib import Path; from cytosae_core.audit.log.store import Store; "
    code += "store = Store(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(SetupError, match="one process"):
            open_log(tmp_path)
        other.kill()
        other.wait()
    open_log(tmp_path).close()  # the kernel releases a killed process's lock


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with filled(tmp_path, 3) as log:
        before = (tmp_path / "journal").read_bytes()
        real = os.pwrite

        def half(descriptor: int, data: bytes, offset: int) -> int:
            real(descriptor, data[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(SetupError, match="disk"):
            log.append("refused", refusal(3))
        monkeypatch.undo()
        assert (tmp_path / "journal").read_bytes() == before and log.size == 3
        assert log.append("refused", refusal(3)) == 3
        log.checkpoint()
    open_log(tmp_path).close()


# Crashes


def test_a_torn_last_frame_beyond_the_checkpoint_is_cut_at_every_byte(tmp_path: Path) -> None:
    filled(tmp_path, 4).close()
    checkpoint, short = (tmp_path / "checkpoint").read_bytes(), (tmp_path / "journal").read_bytes()
    filled(tmp_path, 5).close()
    whole = (tmp_path / "journal").read_bytes()
    for end in [*range(len(short), len(whole), 37), len(whole) - 1]:
        (tmp_path / "checkpoint").write_bytes(checkpoint)
        (tmp_path / "journal").write_bytes(whole[:end])
        with open_log(tmp_path) as log:
            assert log.size == 4 and (tmp_path / "journal").read_bytes() == short
            assert log.append("refused", refusal(4)) == 4
    for tail in (bytes(500), b"\0", whole[len(short) : -1] + b"x"):
        (tmp_path / "checkpoint").write_bytes(checkpoint)
        (tmp_path / "journal").write_bytes(short + tail)
        with open_log(tmp_path) as log:
            assert log.size == 4


def test_a_log_killed_while_it_was_made_opens(tmp_path: Path) -> None:
    open_log(tmp_path).close()
    (tmp_path / "journal").unlink()  # the head over nothing is written first
    with open_log(tmp_path) as log:
        assert log.size == 0 and open_checkpoint(log.checkpoint(), KEYS["log"], origin=ORIGIN).size == 0


def test_whole_leaves_beyond_the_checkpoint_are_kept_when_they_are_ours(tmp_path: Path) -> None:
    filled(tmp_path, 4).close()
    checkpoint = (tmp_path / "checkpoint").read_bytes()
    filled(tmp_path, 7).close()
    (tmp_path / "checkpoint").write_bytes(checkpoint)
    with open_log(tmp_path) as log:
        assert log.size == 7
        assert open_checkpoint(log.checkpoint(), KEYS["log"], origin=ORIGIN).size == 7


def test_leaves_beyond_the_checkpoint_of_somebody_else_are_refused(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    filled(ours, 4).close()
    checkpoint, journal = (ours / "checkpoint").read_bytes(), (ours / "journal").read_bytes()
    filled(ours, 5).close()
    stranger = filled(theirs, 6, study="other")
    frame = stranger.leaf(5)
    stranger.close()
    tail = len(frame).to_bytes(4, "big") + frame + bytes.fromhex(sha256_hex(frame))[:8]
    (ours / "checkpoint").write_bytes(checkpoint)
    (ours / "journal").write_bytes(journal + tail)
    damage("fork", open_log, ours)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.unit import test_log
log = test_log.filled(Path(sys.argv[1]), 1)
while True:
    log.append("refused", test_log.refusal(log.size))
    log.checkpoint()
    print(log.size, flush=True)
"""


@pytest.mark.parametrize("after", [1, 7, 20])
def test_kill_9_loses_nothing_that_was_announced(tmp_path: Path, after: int) -> None:
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", KILLED, str(tmp_path), root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(after)]
        process.kill()
        said += [int(line) for line in process.stdout.read().split()]
    with open_log(tmp_path) as log:
        assert log.size >= said[-1]
        log.append("refused", refusal(log.size))


# Tampering


def test_a_shorter_or_missing_journal_is_a_rollback(tmp_path: Path) -> None:
    filled(tmp_path, 5).close()
    journal = (tmp_path / "journal").read_bytes()
    for end in (len(journal) - 1, len(journal) // 2, 3, 0):
        (tmp_path / "journal").write_bytes(journal[:end])
        damage("rollback", open_log, tmp_path)
        assert (tmp_path / "journal").read_bytes() == journal[:end]  # nothing is repaired
    (tmp_path / "journal").unlink()
    damage("rollback", open_log, tmp_path)


def test_a_missing_checkpoint_is_a_rollback(tmp_path: Path) -> None:
    filled(tmp_path, 5).close()
    (tmp_path / "checkpoint").unlink()
    damage("rollback", open_log, tmp_path)


def test_no_bit_of_a_journal_under_a_checkpoint_can_be_turned(tmp_path: Path) -> None:
    filled(tmp_path, 3).close()
    journal = (tmp_path / "journal").read_bytes()
    value = int.from_bytes(journal, "big")
    for bit in random.Random(5).sample(range(8 * len(journal)), 300):
        (tmp_path / "journal").write_bytes((value ^ (1 << bit)).to_bytes(len(journal), "big"))
        with pytest.raises(VerificationError) as caught:
            open_log(tmp_path)
        assert caught.value.code in ("fork", "rollback")


def test_no_bit_of_a_checkpoint_can_be_turned(tmp_path: Path) -> None:
    filled(tmp_path, 3).close()
    note = (tmp_path / "checkpoint").read_bytes()
    value = int.from_bytes(note, "big")
    for bit in random.Random(6).sample(range(8 * len(note)), 200):
        (tmp_path / "checkpoint").write_bytes((value ^ (1 << bit)).to_bytes(len(note), "big"))
        with pytest.raises(VerificationError):
            open_log(tmp_path)


def test_other_leaves_with_good_frames_are_a_fork(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    filled(one, 4).close()
    filled(two, 4, clock=lambda: 5).close()
    (one / "journal").write_bytes((two / "journal").read_bytes())
    damage("fork", open_log, one)


def test_a_leaf_that_changes_under_an_open_log_is_noticed(tmp_path: Path) -> None:
    with filled(tmp_path, 3) as log:
        with (tmp_path / "journal").open("r+b") as stream:
            stream.seek(40)
            stream.write(b"xxxx")
        damage("fork", log.leaf, 0)


def test_wrong_keys_or_names_do_not_open_a_log(tmp_path: Path) -> None:
    filled(tmp_path, 3).close()
    for changes in (
        {"log_key": NEW_KEY},
        {"signing": NEW_KEY},
        {"origin": PEER},
        {"party": "site-2"},
        {"study": "x"},
    ):
        with pytest.raises(VerificationError):
            open_log(tmp_path, **changes)


# Rotation


@pytest.mark.parametrize("crash", [False, True])
def test_rotation_of_signing_and_log_key(tmp_path: Path, crash: bool) -> None:
    log = filled(tmp_path, 3)
    before = (tmp_path / "checkpoint").read_bytes()
    log.rotate("signing", KEY, NEW_KEY)
    log.rotate("log", LOG_KEY, PEER_KEY)
    log.close()
    if crash:  # the statements are on disk, the new checkpoint is not
        (tmp_path / "checkpoint").write_bytes(before)
    with pytest.raises(SetupError, match="current"):
        open_log(tmp_path, signing=NEW_KEY)
    with open_log(tmp_path, signing=NEW_KEY, log_key=PEER_KEY) as log:
        log.append("refused", refusal(5))
        note, leaves = log.checkpoint(), log.leaves(0, 99)
    chain = Chain(PARTY, PROTOCOL, KEY.public_hex)
    assert keys_at(leaves, chain)[2:] == [
        KEY.public_hex,
        KEY.public_hex,
        NEW_KEY.public_hex,
        NEW_KEY.public_hex,
    ]
    assert open_checkpoint(note, chain.keys["log"], origin=ORIGIN).size == 6
    mirror = open_mirror(tmp_path / "mirror")
    mirror.extend(0, leaves, note)
    assert mirror.keys["log"] == vkey(ORIGIN, "log", PEER_KEY.public_hex)
    mirror.close()
    open_mirror(tmp_path / "mirror").close()


def test_cosignatures_under_an_earlier_log_key_come_too_late(tmp_path: Path) -> None:
    log, witness = filled(tmp_path / "log", 3), Witness(tmp_path / "w", PEER_KEY, PEER)
    early = witness.cosign(log.checkpoint(), KEYS["log"], [], from_size=0)
    log.rotate("log", LOG_KEY, NEW_KEY)
    log.rotate("cosign", COSIGN_KEY, LOG_KEY)
    new = vkey(ORIGIN, "log", NEW_KEY.public_hex)
    line = witness.cosign(log.checkpoint(), new, log.consistency(3, 5), from_size=3)
    log.close()
    with open_log(tmp_path / "log", log_key=NEW_KEY) as log:
        with pytest.raises(VerificationError):
            log.add_cosignature(early, PEER_VKEY)
        assert log.add_cosignature(line, PEER_VKEY) == 5
        assert open_checkpoint(log.cosigned_checkpoint(), new, origin=ORIGIN, witnesses=[PEER_VKEY]).cosigned


# A peer's copy


def open_mirror(folder: Path, **changes: Any) -> Mirror:
    given: dict[str, Any] = {"origin": ORIGIN, "vkey": KEYS["log"], "party": PARTY, "signing": KEY.public_hex}
    return Mirror(folder, **{**given, **changes})


def test_a_mirror_follows_a_log_and_survives_restarts(tmp_path: Path) -> None:
    log, folder = filled(tmp_path / "log", 2), tmp_path / "mirror"
    for size in (2, 3, 7, 7):
        filled_more(log, size)
        mirror = open_mirror(folder)
        start = max(0, mirror.size - 1)  # the last known leaf comes again
        mirror.extend(start, log.leaves(start, size), log.checkpoint())
        assert (mirror.size, mirror.root, mirror.checkpoint()) == (size, log.root, log.checkpoint())
        assert mirror.leaves(0, size) == log.leaves(0, size) and mirror.leaf(1) == log.leaf(1)
        verify_consistency(2, size, log.tree.root(2), mirror.root, mirror.consistency(2, size))
        verify_inclusion(1, size, leaf_hash(log.leaf(1)), mirror.inclusion(1, size), mirror.root)
        mirror.close()


def filled_more(log: Log, size: int) -> None:
    while log.size < size:
        log.append("refused", refusal(log.size))
    log.checkpoint()


def unchanged(mirror: Mirror, call: Any) -> VerificationError:
    """The error of `call`, after which the copy must be as before."""
    before = mirror.size, mirror.root, mirror.checkpoint(), mirror.keys
    with pytest.raises(VerificationError) as caught:
        call()
    assert (mirror.size, mirror.root, mirror.checkpoint(), mirror.keys) == before
    return caught.value


def test_a_mirror_refuses_rollback_fork_and_everything_out_of_order(tmp_path: Path) -> None:
    log, other = filled(tmp_path / "log", 3), filled(tmp_path / "other", 3, clock=lambda: 7)
    mirror = open_mirror(tmp_path / "mirror")
    old_note, old = log.checkpoint(), log.leaves(0, 3)
    filled_more(log, 5)
    filled_more(other, 6)
    mirror.extend(0, log.leaves(0, 5), log.checkpoint())
    cases: list[tuple[str, str, Any]] = [
        ("rollback", "ROLLBACK", lambda: mirror.extend(0, old, old_note)),
        ("fork", "FORK", lambda: mirror.extend(0, other.leaves(0, 6), other.checkpoint())),
        ("fork", "FORK", lambda: mirror.extend(5, [], forged(5, b"x" * 32))),
        ("verification", "LINK", lambda: mirror.extend(5, other.leaves(5, 6), other.checkpoint())),
        ("verification", "SEQ", lambda: mirror.extend(6, other.leaves(5, 6), other.checkpoint())),
        ("verification", "SEQ", lambda: mirror.extend(5, [], forged(6, b"x" * 32))),
        ("verification", "SEQ", lambda: mirror.extend(-1, [], log.checkpoint())),
        ("verification", "SIG", lambda: mirror.extend(5, [], other_key_note(log))),
    ]
    for code, reason, call in cases:
        error = unchanged(mirror, call)
        assert (error.code, error.reason) == (code, reason), error
    filled_more(log, 7)
    fresh, note = log.leaves(5, 7), log.checkpoint()
    assert unchanged(mirror, lambda: mirror.extend(5, fresh[:1], note)).reason == "SEQ"
    assert unchanged(mirror, lambda: mirror.extend(5, fresh[::-1], note)).reason == "SEQ"
    assert unchanged(mirror, lambda: mirror.extend(5, fresh, forged(7, b"x" * 32))).code == "fork"
    assert (
        unchanged(mirror, lambda: mirror.extend(5, [fresh[0], fresh[1][:-1]], note)).reason == "JSON_SYNTAX"
    )
    mirror.extend(5, fresh, note)
    assert mirror.size == 7


def forged(size: int, root: bytes) -> bytes:
    """A head that the party did sign, over other leaves."""
    return sign_checkpoint(ORIGIN, size, root, LOG_KEY)


def other_key_note(log: Log) -> bytes:
    return sign_checkpoint(ORIGIN, log.size, log.root, NEW_KEY)


def test_a_mirror_is_of_one_party_one_study_and_pinned_keys(tmp_path: Path) -> None:
    log = filled(tmp_path / "log", 2)
    leaves, note = log.leaves(0, 2), log.checkpoint()
    for index, (reason, changes) in enumerate(
        (
            ("SIG", {"signing": NEW_KEY.public_hex}),
            ("BIND", {"vkey": vkey(ORIGIN, "log", NEW_KEY.public_hex)}),
            ("BIND", {"party": "site-2"}),
            ("BIND", {"origin": origin_of(sha256_hex(b"other"), PARTY)}),
        )
    ):
        mirror = open_mirror(tmp_path / str(index), **changes)
        assert unchanged(mirror, lambda mirror=mirror: mirror.extend(0, leaves, note)).reason == reason
        mirror.close()


def test_leaves_that_a_mirror_did_not_finish_come_again(tmp_path: Path) -> None:
    log = filled(tmp_path / "log", 2)
    mirror = open_mirror(tmp_path / "mirror")
    mirror.extend(0, log.leaves(0, 2), log.checkpoint())
    note = mirror.checkpoint()
    filled_more(log, 4)
    mirror.extend(2, log.leaves(2, 4), log.checkpoint())
    mirror.close()
    (tmp_path / "mirror" / "checkpoint").write_bytes(note)  # killed between journal and checkpoint
    mirror = open_mirror(tmp_path / "mirror")
    assert mirror.size == 2
    mirror.extend(2, log.leaves(2, 4), log.checkpoint())
    mirror.close()
    journal = tmp_path / "mirror" / "journal"
    journal.write_bytes(journal.read_bytes()[:-200])
    damage("rollback", open_mirror, tmp_path / "mirror")


# Cosignatures


def test_cosignatures_stay_with_the_checkpoint_they_are_for(tmp_path: Path) -> None:
    log = filled(tmp_path / "log", 3)
    assert log.cosigned_checkpoint() == b""
    witnesses = {
        name: (Witness(tmp_path / name, signer, origin_of(PROTOCOL, name)), origin_of(PROTOCOL, name), signer)
        for name, signer in (("coordinator", PEER_KEY), ("site-2", NEW_KEY))
    }
    lines = {}
    for name, (witness, _, _) in witnesses.items():
        lines[name] = witness.cosign(log.checkpoint(), KEYS["log"], [], from_size=0)
    other = vkey(witnesses["site-2"][1], "cosign", NEW_KEY.public_hex)
    filled_more(log, 5)
    assert log.add_cosignature(lines["coordinator"], PEER_VKEY) == 3  # it was under way while the log grew
    newer = witnesses["coordinator"][0].cosign(
        log.checkpoint(), KEYS["log"], log.consistency(3, 5), from_size=3
    )
    assert log.add_cosignature(newer, PEER_VKEY) == 5
    assert log.add_cosignature(lines["coordinator"], PEER_VKEY) == 3  # late: counts, but is not kept
    assert log.add_cosignature(lines["site-2"], other) == 3
    log.close()
    with open_log(tmp_path / "log") as log:
        head = open_checkpoint(
            log.cosigned_checkpoint(), KEYS["log"], origin=ORIGIN, witnesses=[PEER_VKEY, other]
        )
        assert head.size == 5 and set(head.cosigned) == {PEER_VKEY}
        assert log.cosigned_checkpoint(at_least=2) == b""
        second = witnesses["site-2"][0].cosign(
            log.checkpoint(), KEYS["log"], log.consistency(3, 5), from_size=3
        )
        assert log.add_cosignature(second, other) == 5
        both = open_checkpoint(
            log.cosigned_checkpoint(2), KEYS["log"], origin=ORIGIN, witnesses=[PEER_VKEY, other]
        )
        assert both.size == 5 and set(both.cosigned) == {PEER_VKEY, other}


def test_cosignatures_of_others_are_refused(tmp_path: Path) -> None:
    log, other = filled(tmp_path / "log", 3), filled(tmp_path / "other", 3, clock=lambda: 7)
    line = Witness(tmp_path / "w", PEER_KEY, PEER).cosign(other.checkpoint(), KEYS["log"], [], from_size=0)
    for bad in (line, "", "x", line[:-4], line + "\n" + line):
        with pytest.raises(VerificationError):
            log.add_cosignature(bad, PEER_VKEY)
    good = Witness(tmp_path / "w2", PEER_KEY, PEER).cosign(log.checkpoint(), KEYS["log"], [], from_size=0)
    with pytest.raises(VerificationError):
        log.add_cosignature(good, vkey(PEER, "cosign", NEW_KEY.public_hex))
    log.add_cosignature(good, PEER_VKEY)
    log.close()
    stored = tmp_path / "log" / "cosignatures"
    content = json.loads(stored.read_text())
    content["3"]["lines"][PEER_VKEY] = line
    stored.write_text(json.dumps(content))
    with pytest.raises(VerificationError):
        open_log(tmp_path / "log")


def test_a_mirror_keeps_cosignatures_of_its_newest_checkpoint(tmp_path: Path) -> None:
    log, mirror = filled(tmp_path / "log", 3), open_mirror(tmp_path / "mirror")
    mirror.extend(0, log.leaves(0, 3), log.checkpoint())
    witness = Witness(tmp_path / "w", PEER_KEY, PEER)
    line = witness.cosign(mirror.checkpoint(), KEYS["log"], [], from_size=0)
    assert mirror.add_cosignature(line, PEER_VKEY) == 3
    filled_more(log, 4)
    mirror.extend(3, log.leaves(3, 4), log.checkpoint())
    with pytest.raises(VerificationError):
        mirror.add_cosignature(line, PEER_VKEY)
    mirror.close()
    mirror = open_mirror(tmp_path / "mirror")
    kept = open_checkpoint(mirror.cosigned_checkpoint(), KEYS["log"], origin=ORIGIN, witnesses=[PEER_VKEY])
    assert kept.size == 3 and set(kept.cosigned) == {PEER_VKEY}


# Static files


def test_tile_paths_of_the_specification() -> None:
    assert tile_path("0", 1234067) == "tile/0/x001/x234/067"
    assert tile_path("entries", 0, 5) == "tile/entries/000.p/5"
    assert tile_path("2", 999) == "tile/2/999" and tile_path("2", 1000) == "tile/2/x001/000"


@pytest.mark.parametrize(("size", "hash_tiles"), [(0, set()), (256, {"0/000", "1/000.p/1"})])
def test_which_tiles_exist_for_a_size(size: int, hash_tiles: set[str]) -> None:
    found = {path for path in tile_files(Fake(size), Fake(size).checkpoint()) if path != "checkpoint"}
    assert {path.removeprefix("tile/") for path in found if "entries" not in path} == hash_tiles


def test_the_specification_s_example_of_70_000_leaves() -> None:
    fake = Fake(70_000)
    files = tile_files(fake, fake.checkpoint())
    level = {name: [path for path in files if path.startswith(f"tile/{name}/")] for name in "012"}
    assert len(level["0"]) == 274 and "tile/0/273.p/112" in files
    assert sorted(level["1"]) == ["tile/1/000", "tile/1/001.p/17"] and level["2"] == ["tile/2/000.p/1"]
    assert all(len(files[path]) == 8192 for path in level["0"] if ".p/" not in path)
    leaves = read_entries(files, 70_000)
    assert root_of([leaf_hash(leaf) for leaf in leaves]) == fake.tree.root()
    assert b"".join(leaf_hash(leaf) for leaf in leaves[:256]) == files["tile/0/000"]
    assert root_of([leaf_hash(leaf) for leaf in leaves[:65536]]) == files["tile/2/000.p/1"]


class Fake:
    """A log without statements, for its static files."""

    def __init__(self, size: int) -> None:
        self.tree, self._leaves = Tree(), []
        for index in range(size):
            self.add(b"%d" % index)

    def add(self, leaf: bytes) -> None:
        self._leaves.append(leaf)
        self.tree.append(leaf_hash(leaf))

    def leaves(self, start: int, stop: int) -> list[bytes]:
        return self._leaves[start:stop]

    def checkpoint(self) -> bytes:
        return sign_checkpoint("fake", self.tree.size, self.tree.root(), LOG_KEY)


def test_a_log_that_tessera_wrote_is_read_and_ours_is_the_same_bytes() -> None:
    """Another implementation (Go) of tlog-tiles, checkpoints and signed notes."""
    vector = json.loads((Path(__file__).parents[1] / "vectors" / "tessera.json").read_text())
    origin, leaves = "example.com/log/testdata", [text.encode() for text in vector["leaves"]]
    signer = SigningKey(Ed25519PrivateKey.from_private_bytes(base64.b64decode(vector["seed_base64"])[1:]))
    files = {path: base64.b64decode(data) for path, data in vector["files"].items()}
    heads = [open_checkpoint(text.encode(), vector["vkey"], origin=origin) for text in vector["checkpoints"]]
    ours = Fake(0)
    for size, head in enumerate(heads):
        assert head.size == size and read_entries(files, size) == leaves[:size]
        assert head.root == ours.tree.root() == root_of([leaf_hash(leaf) for leaf in leaves[:size]])
        assert sign_checkpoint(origin, size, head.root, signer) == vector["checkpoints"][size].encode()
        written = tile_files(ours, vector["checkpoints"][size].encode())
        assert written.pop("checkpoint") and written == {path: files[path] for path in written}
        assert len(written) == (2 if size else 0)
        for old in range(1, size + 1):
            verify_consistency(old, size, heads[old].root, head.root, ours.tree.consistency(old, size))
        if size < len(leaves):
            ours.add(leaves[size])


def test_entry_bundles_that_are_cut_lengthened_or_missing(tmp_path: Path) -> None:
    log = filled(tmp_path / "log", 3)
    files = tile_files(log, log.checkpoint())
    write_tiles(files, tmp_path / "bundle")
    written = {
        str(path.relative_to(tmp_path / "bundle")): path.read_bytes()
        for path in (tmp_path / "bundle").rglob("*")
        if path.is_file()
    }
    assert written == files and read_entries(files, 3) == log.leaves(0, 3)
    path = "tile/entries/000.p/3"
    for bad in (files[path][:-1], files[path] + b"\0", b"", files[path][: -2 - len(log.leaf(2))], b"\0"):
        with pytest.raises(VerificationError, match="bundle"):
            read_entries({**files, path: bad}, 3)
    for size in (2, 4, 1 << 60):
        with pytest.raises(VerificationError, match="bundle"):
            read_entries(files, size)
    with pytest.raises(MessageError):
        Witness(tmp_path / "w", PEER_KEY, PEER).cosign(log.checkpoint(), KEYS["log"], [], from_size=1)


# The format as bytes


def test_our_own_vector_is_still_what_we_write_and_read(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "vectors" / "log.json"
    vector = json.loads(path.read_text())
    assert make(tmp_path) == vector
    leaves = [leaf.encode() for leaf in vector["leaves"]]
    chain = Chain(vector["party"], vector["protocol"], vector["keys"]["signing"])
    assert keys_at(leaves, chain) == vector["signers"] and chain.keys["log"] == vector["keys"]["log"]
    origin = origin_of(vector["protocol"], vector["party"])
    note, witness = vector["checkpoint"].encode(), vector["witness"]
    head = open_checkpoint(note, vector["keys"]["log"], origin=origin, witnesses=[witness])
    assert head.cosigned == {witness: 1_700_000_001} and head.size == len(leaves)
    assert head.root == root_of([leaf_hash(leaf) for leaf in leaves])
    proof = [bytes.fromhex(item) for item in vector["inclusion_of_2"]]
    verify_inclusion(2, head.size, leaf_hash(leaves[2]), proof, head.root)
    old = vector["consistency_from_4"]
    proof = [bytes.fromhex(item) for item in old["proof"]]
    verify_consistency(4, head.size, bytes.fromhex(old["root"]), head.root, proof)
