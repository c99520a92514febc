"""Sealed boxes: what goes in comes out for one key, label and request, and nothing else does."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cytosae_core.errors import CytosaeError, MessageError, VerificationError
from cytosae_core.sealed import (
    BOX,
    FRAME_BYTES,
    KEY_BYTES,
    LOG_LABEL,
    PAD_BYTES,
    REPLY_LABEL,
    TAG_BYTES,
    ReplyKey,
    _cipher,
    _nonce,
    join_wire,
    seal_box,
    split_wire,
)

REQUEST = "ab" * 32
MIB = 1 << 20
HEAD, FRAME = len(BOX) + KEY_BYTES, FRAME_BYTES + TAG_BYTES


def seal(key: ReplyKey, plaintext: bytes) -> bytes:
    return seal_box(plaintext, key.public_hex, REPLY_LABEL, REQUEST)


@pytest.mark.parametrize(
    "size",
    [0, 1, 4087, 4088, 4089, 8184, 4 * MIB - 9, 4 * MIB - 8, 4 * MIB - 7, 4 * MIB, 5 * MIB + 1, 8 * MIB - 8],
)
def test_sizes(size: int) -> None:
    key, plaintext = ReplyKey(), bytes(range(256)) * (size // 256 + 1)
    box = seal(key, plaintext[:size])
    assert key.open_box(box, REPLY_LABEL, REQUEST) == plaintext[:size]
    padded = -(-(size + 8) // PAD_BYTES) * PAD_BYTES
    frames = -(-padded // FRAME_BYTES)
    assert len(box) == HEAD + padded + frames * TAG_BYTES  # the size tells 4 KiB steps only


def test_a_box_is_another_each_time_and_does_not_hold_the_plaintext() -> None:
    key, text = ReplyKey(), b"firing_rate" * 20
    boxes = {seal(key, text) for _ in range(3)}
    assert len(boxes) == 3 and not any(b"firing" in box for box in boxes)


def test_no_bit_can_be_turned() -> None:
    key = ReplyKey()
    box = seal(key, b"concept")
    assert len(box) == 4152
    for bit in range(8 * len(box)):
        turned = bytearray(box)
        turned[bit // 8] ^= 1 << bit % 8
        with pytest.raises((MessageError, VerificationError)):
            key.open_box(bytes(turned), REPLY_LABEL, REQUEST)


def test_another_label_request_or_key_does_not_open_it() -> None:
    key = ReplyKey()
    box = seal(key, b"concept")
    for other, label, request in (
        (key, LOG_LABEL, REQUEST),
        (key, REPLY_LABEL, "ac" + REQUEST[2:]),
        (ReplyKey(), REPLY_LABEL, REQUEST),
    ):
        with pytest.raises(VerificationError) as caught:
            other.open_box(box, label, request)
        assert caught.value.reason == "SEAL"


@pytest.fixture(scope="module")
def large() -> tuple[ReplyKey, bytes]:
    key = ReplyKey()
    return key, seal(key, b"x" * (9 * MIB))  # three frames


def frames(box: bytes) -> list[bytes]:
    return [box[start : start + FRAME] for start in range(HEAD, len(box), FRAME)]


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts[:-1],
        lambda parts: parts[:1],
        lambda parts: parts[1:],
        lambda parts: [],
        lambda parts: [parts[1], parts[0], parts[2]],
        lambda parts: [parts[2], parts[0], parts[1]],
        lambda parts: [parts[0], parts[0], *parts[1:]],
        lambda parts: [*parts, parts[2]],
        lambda parts: [*parts, b""[:0] + b"x"],
        lambda parts: [*parts[:-1], parts[-1][:-1]],
        lambda parts: [*parts[:-1], parts[-1][:TAG_BYTES]],
        lambda parts: [*parts[:-1], parts[-1][:3]],
        lambda parts: [parts[0][:-1], *parts[1:]],
    ],
)
def test_frames_cut_dropped_reordered_or_repeated(
    large: tuple[ReplyKey, bytes], change: Callable[[list[bytes]], list[bytes]]
) -> None:
    key, box = large
    parts = frames(box)
    assert len(parts) == 3
    with pytest.raises(VerificationError):
        key.open_box(box[:HEAD] + b"".join(change(parts)), REPLY_LABEL, REQUEST)


def test_a_frame_of_another_box_to_the_same_reader_does_not_fit(large: tuple[ReplyKey, bytes]) -> None:
    key, box = large
    other = frames(seal(key, b"y" * (9 * MIB)))
    with pytest.raises(VerificationError):
        key.open_box(box[:HEAD] + b"".join([frames(box)[0], *other[1:]]), REPLY_LABEL, REQUEST)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 39])
def test_what_is_no_box(size: int) -> None:
    key = ReplyKey()
    for data in (seal(key, b"a")[:size], b"\xff" * size, b"CYTOBOX2" + bytes(5000)):
        with pytest.raises(MessageError):
            key.open_box(data, REPLY_LABEL, REQUEST)


@pytest.mark.parametrize("reader", ["", "zz" * 32, "00" * 31, "00" * 32, "01" + "00" * 31])
def test_unusable_reader_keys(reader: str) -> None:
    """The last two are points of small order: every sender would share the same secret with them."""
    with pytest.raises(MessageError):
        seal_box(b"a", reader, REPLY_LABEL, REQUEST)


@pytest.mark.parametrize("peer", [bytes(32), b"\1" + bytes(31)])
def test_senders_keys_of_small_order_open_nothing(peer: bytes) -> None:
    key = ReplyKey()
    with pytest.raises(VerificationError):
        key.open_box(BOX + peer + bytes(4112), REPLY_LABEL, REQUEST)


def handmade(key: ReplyKey, padded: bytes) -> bytes:
    """A box whose sender pads as it likes: it holds a request, so its cipher is right."""
    private = X25519PrivateKey.generate()
    sender, reader = private.public_key().public_bytes_raw(), bytes.fromhex(key.public_hex)
    shared = private.exchange(X25519PublicKey.from_public_bytes(reader))
    prefix = BOX + sender
    cipher = _cipher(shared, REPLY_LABEL, sender, reader, REQUEST)
    return prefix + cipher.encrypt(_nonce(True, 0), padded, prefix)


@pytest.mark.parametrize(
    "padded",
    [
        b"",
        b"\0" * 7,
        struct.pack(">Q", 1 << 63) + bytes(4088),
        struct.pack(">Q", 4089) + bytes(4088),
        struct.pack(">Q", 3) + b"abcd" + bytes(4084),
        struct.pack(">Q", 3) + b"abc",
        struct.pack(">Q", 3) + b"abc" + bytes(PAD_BYTES + 4085),
    ],
    ids=["empty", "short", "huge", "long", "not zeros", "not padded", "padded twice"],
)
def test_a_hostile_sender_s_padding_is_a_typed_error(padded: bytes) -> None:
    key = ReplyKey()
    with pytest.raises(CytosaeError):
        key.open_box(handmade(key, padded), REPLY_LABEL, REQUEST)
    assert (
        key.open_box(handmade(key, struct.pack(">Q", 3) + b"abc" + bytes(4085)), REPLY_LABEL, REQUEST)
        == b"abc"
    )


def test_the_two_boxes_of_a_reply() -> None:
    for reply, log in ((b"", b""), (b"a", b""), (b"", b"b"), (b"abc" * 999, b"d" * 70)):
        assert split_wire(join_wire(reply, log)) == (reply, log)
    wire = join_wire(b"abc", b"de")
    for data in (b"", wire[:16], b"X" + wire[1:], wire[:19], b"CYTOWIRE1" + b"\xff" * 8 + b"abc"):
        with pytest.raises(MessageError):
            split_wire(data)
