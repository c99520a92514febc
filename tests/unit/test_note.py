"""Signed notes, checkpoints and cosignatures: vectors of three other implementations, and what is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cytosae_core.audit.log.signing import cosign_text, sign_checkpoint
from cytosae_core.audit.merkle import EMPTY_ROOT
from cytosae_core.audit.note import (
    DASH,
    checkpoint_text,
    open_checkpoint,
    open_note,
    parse_checkpoint,
    parse_vkey,
    split_note,
    vkey,
)
from cytosae_core.errors import VerificationError
from cytosae_core.keys import SigningKey

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "notes.json").read_text())
GO, REAL = VECTORS["go"], VECTORS["cosigned"]
LOG, WITNESS, OTHER = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()
ORIGIN, NAME = "cytosae/0123456789abcdef/site-1", "cytosae/0123456789abcdef/coordinator"
VKEY = vkey(ORIGIN, "log", LOG.public_hex)
WITNESS_VKEY = vkey(NAME, "cosign", WITNESS.public_hex)
ROOT = bytes(range(32))


def refused(reason: str, call: Any, *arguments: Any, **named: Any) -> None:
    with pytest.raises(VerificationError) as caught:
        call(*arguments, **named)
    assert caught.value.reason == reason, caught.value


# Other implementations' vectors


def test_example_of_the_signed_note_specification() -> None:
    case = VECTORS["c2sp"]
    assert parse_vkey(case["vkey"]).key_id.hex() == "530d903a"
    text, signed = open_note(case["note"].encode(), [case["vkey"]])
    assert text == "This is an example message.\n" and signed == {case["vkey"]: 0}


def test_notes_of_golang_sumdb() -> None:
    note = f"{GO['text']}\n{GO['peter_line']}{GO['enoch_line']}".encode()
    assert open_note(note, [GO["peter"]]) == (GO["text"], {GO["peter"]: 0})
    assert set(open_note(note, [GO["peter"], GO["enoch"]])[1]) == {GO["peter"], GO["enoch"]}
    refused("SIG", open_note, note, [])
    twice = f"{GO['text']}\n{GO['peter_line'] * 2}{GO['enoch_line'] * 2}".encode()
    assert open_note(twice, [GO["peter"]])[1] == {GO["peter"]: 0}
    peter = GO["peter_line"]
    refused("SIG", open_note, f"{GO['text']}\n{peter[:60]}ABCD{peter[60:]}".encode(), [GO["peter"]])
    for text in (GO["text"], GO["text"] + "\n", f"{GO['text']}\n{peter[:-1]}", f"\x01{GO['text']}\n{peter}"):
        refused("NOTE", open_note, text.encode(), [GO["peter"]])
    for text in (
        f"{GO['text']}\n{peter}Unexpected line.\n",
        f"{GO['text']}\n{peter.replace('Peter', 'Peter ')}",
    ):
        refused("NOTE", open_note, text.encode(), [GO["peter"]])
    refused("NOTE", open_note, b"\xff" + f"{GO['text']}\n{peter}".encode(), [GO["peter"]])


def test_our_signature_of_golang_s_note_is_golang_s() -> None:
    seed = base64.b64decode(GO["seed_base64"])[1:]
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(seed))
    assert vkey("PeterNeumann", "log", key.public_hex) == GO["peter"]
    signature = parse_vkey(GO["peter"]).key_id + key.sign_raw(GO["text"].encode())
    assert f"{DASH}PeterNeumann {base64.b64encode(signature).decode()}\n" == GO["peter_line"]


def test_every_part_and_every_changed_character_of_golang_s_vkey_is_refused() -> None:
    text = GO["peter"]
    parts = {text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)} - {text}
    changed = {text[:i] + chr(ord(text[i]) + 1) + text[i + 1 :] for i in range(len(text))}
    for bad in [*sorted(parts | changed), *GO["bad_vkeys"], *VECTORS["formats"]["bad"], "", "a+b"]:
        refused("NOTE", parse_vkey, bad)
    for good in VECTORS["formats"]["good"]:
        assert parse_vkey(good).text == good


def test_a_real_witness_s_cosignature_of_a_real_log() -> None:
    origin = REAL["note"].partition("\n")[0]
    head = open_checkpoint(REAL["note"].encode(), REAL["log"], origin=origin, witnesses=[REAL["witness"]])
    assert head.size == REAL["size"] and head.cosigned == {REAL["witness"]: 1779573024}
    for bad in (
        REAL["note"].replace("1432088532", "1432088533"),
        REAL["note"].replace("2net5wAAAABq", "2net5wAAAABr"),
    ):
        refused("SIG", open_note, bad.encode(), [REAL["witness"]])


# Ours


def signed(size: int = 5, root: bytes = ROOT) -> bytes:
    return sign_checkpoint(ORIGIN, size, root, LOG)


def cosigned(note: bytes, name: str = NAME, key: SigningKey = WITNESS, seconds: int = 1_700_000_000) -> bytes:
    return note + (cosign_text(split_note(note)[0], name, key, seconds) + "\n").encode()


def test_checkpoint_round_trip_with_cosignature() -> None:
    head = open_checkpoint(cosigned(signed()), VKEY, origin=ORIGIN, witnesses=[WITNESS_VKEY])
    assert (head.origin, head.size, head.root) == (ORIGIN, 5, ROOT)
    assert head.cosigned == {WITNESS_VKEY: 1_700_000_000}
    assert open_checkpoint(signed(), VKEY, origin=ORIGIN, witnesses=[WITNESS_VKEY]).cosigned == {}
    assert open_checkpoint(signed(0, EMPTY_ROOT), VKEY, origin=ORIGIN).size == 0


def test_no_bit_of_a_signed_checkpoint_can_be_turned() -> None:
    note = cosigned(signed())
    value = int.from_bytes(note, "big")
    for bit in range(8 * len(note)):
        bad = (value ^ (1 << bit)).to_bytes(len(note), "big")
        try:
            head = open_checkpoint(bad, VKEY, origin=ORIGIN, witnesses=[WITNESS_VKEY])
        except VerificationError:
            continue
        # Another name or key id makes the cosignature an unknown one, which is ignored: then it does not count.
        assert head.cosigned == {} and head.root == ROOT


def test_who_signed_matters() -> None:
    note = cosigned(signed())
    other = vkey(ORIGIN, "log", OTHER.public_hex)
    refused("SIG", open_checkpoint, note, other, origin=ORIGIN)
    refused("SIG", open_checkpoint, note, other, origin=ORIGIN, witnesses=[WITNESS_VKEY])
    refused("CKPT", open_checkpoint, note, VKEY, origin=NAME)
    foreign = vkey(NAME, "log", LOG.public_hex)
    refused("SIG", open_checkpoint, note, foreign, origin=NAME)
    text = split_note(note)[0]
    # A log's key must not pass for a witness's and the other way round.
    as_witness = vkey(ORIGIN, "cosign", LOG.public_hex)
    refused("SIG", open_checkpoint, note, as_witness, origin=ORIGIN)
    line = cosign_text(text, ORIGIN, LOG, 7)
    refused("SIG", open_checkpoint, f"{text}\n{line}\n".encode(), as_witness, origin=ORIGIN)
    refused("SIG", open_checkpoint, f"{text}\n{line}\n".encode(), VKEY, origin=ORIGIN)


def test_a_wrong_signature_of_a_known_key_condemns_the_note() -> None:
    note = cosigned(signed(), key=WITNESS)
    forged = note.replace(note.splitlines()[-1][-30:], b"A" * 27 + note.splitlines()[-1][-3:])
    refused("SIG", open_checkpoint, forged, VKEY, origin=ORIGIN, witnesses=[WITNESS_VKEY])
    late = cosigned(signed(), seconds=(1 << 63) - 1)
    assert open_checkpoint(late, VKEY, origin=ORIGIN, witnesses=[WITNESS_VKEY]).cosigned
    too_late = cosigned(signed(), seconds=1 << 63)
    refused("NOTE", open_checkpoint, too_late, VKEY, origin=ORIGIN, witnesses=[WITNESS_VKEY])
    key_id = parse_vkey(WITNESS_VKEY).key_id
    short = signed() + f"{DASH}{NAME} {base64.b64encode(key_id + bytes(64)).decode()}\n".encode()
    refused("NOTE", open_checkpoint, short, VKEY, origin=ORIGIN, witnesses=[WITNESS_VKEY])


B64 = base64.b64encode(ROOT).decode()


@pytest.mark.parametrize(
    "text",
    [
        *(
            f"log\n{size}\n{B64}\n"
            for size in ("007", "-1", "+5", "5 ", " 5", "", "5.0", "0x5", "five", "٥", "5_0")
        ),
        *(f"log\n{size}\n{B64}\n" for size in (1 << 63, 1 << 64, 3438945738945739845734895735, "00")),
        f"log\n5\n{B64}",
        f"log\r\n5\r\n{B64}\r\n",
        f"log\n5\r\n{B64}\n",
        f"\n5\n{B64}\n",
        f"log\n5\n{B64}\nextension\n",
        f"log\n5\n{B64}\n\n",
        "log\n5\n",
        "log\n5\n\n",
        f"log\n5\n{B64[:-1]}\n",
        f"log\n5\n{B64[:-2]}9=\n",
        f"log\n5\n{B64} \n",
        f"log\n5\n{base64.urlsafe_b64encode(bytes([251] * 32)).decode()}\n",
        f"log\n5\n{base64.b64encode(bytes(31)).decode()}\n",
        f"log\n5\n{base64.b64encode(bytes(33)).decode()}\n",
        "log\n5\nThisIsn'tBase64\n",
        f"log\n0\n{B64}\n",
        "",
        "junk",
    ],
)
def test_what_is_not_a_checkpoint(text: str) -> None:
    refused("CKPT", parse_checkpoint, text)


def test_what_is_a_checkpoint() -> None:
    for size in (1, 7, 10, 123, (1 << 63) - 1):
        assert parse_checkpoint(checkpoint_text("log 1", size, ROOT)).size == size


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"\n\n",
        b"text\n",
        b"text\n\n",
        b"\n\n" + DASH.encode() + b"a AAAAAAAA\n",
        *(
            f"text\n\n{line}\n".encode()
            for line in ("- a AAAAAAA=", f"{DASH}a", f"{DASH} AAAAAAA=", f"{DASH}a AAAA")
        ),
        *(
            f"text\n\n{DASH}{rest}\n".encode()
            for rest in ("a+b AAAAAAA=", "a b AAAAAAA=", "a AAAAAAA", "a AAAAAA==")
        ),
        *(
            f"text\n\n{DASH}{rest}\n".encode()
            for rest in ("a\u00a0b AAAAAAA=", "a  AAAAAAA=", "a AAAAAAA= ", "a A\tAA")
        ),
        f"text\n\n{DASH}a AAAAAAA=".encode(),
        f"text\r\n\n{DASH}a AAAAAAA=\n".encode(),
        f"text\n\n{DASH}a AAAAAAA=\r\n".encode(),
        f"te\x00xt\n\n{DASH}a AAAAAAA=\n".encode(),
        f"te\u00e9xt\n\n{DASH}a AAAAAAA=\n".encode("latin-1", "replace"),
        f"text\n\n{f'{DASH}a AAAAAAA=' + chr(10)}".encode() * 2 + b"x",
        b"x" * 70_000 + f"\n\n{DASH}a AAAAAAA=\n".encode(),
        f"text\n\n{(DASH + 'a AAAAAAA=' + chr(10)) * 17}".encode(),
    ],
)
def test_what_is_not_a_note(note: bytes) -> None:
    refused("NOTE", split_note, note)


def test_sixteen_signatures_are_enough_for_everybody() -> None:
    note = signed()
    for index in range(15):
        note = cosigned(note, name=f"w{index}", key=OTHER)
    assert open_checkpoint(note, VKEY, origin=ORIGIN).size == 5
    refused("NOTE", open_checkpoint, cosigned(note), VKEY, origin=ORIGIN)


def test_vkeys_that_cannot_be_written() -> None:
    for name, role, public in (
        ("a b", "log", LOG.public_hex),
        ("a+b", "log", LOG.public_hex),
        ("", "log", LOG.public_hex),
        ("a\nb", "log", LOG.public_hex),
        ("a", "signing", LOG.public_hex),
        ("a", "log", LOG.public_hex[:-2]),
        ("a", "log", "zz" * 32),
    ):
        refused("NOTE", vkey, name, role, public)
