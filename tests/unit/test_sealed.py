"""Boxes that one reader opens: sizes, wrong keys, labels and requests, every flipped bit, moved and cut frames."""

from __future__ import annotations

import os

import pytest

from cytosae_core.errors import CytosaeError, MessageError, VerificationError
from cytosae_core.sealed import (
    BOX,
    FRAME_BYTES,
    LOG_LABEL,
    PAD_BYTES,
    REPLY_LABEL,
    TAG_BYTES,
    ReplyKey,
    join_wire,
    seal_box,
    split_wire,
)

KEY, REQUEST = ReplyKey(), "ab" * 32
PREFIX = len(BOX) + 32


def seal(data: bytes) -> bytes:
    return seal_box(data, KEY.public_hex, REPLY_LABEL, REQUEST)


@pytest.mark.parametrize(
    "size", [0, 1, PAD_BYTES - 8, PAD_BYTES - 7, FRAME_BYTES - 8, FRAME_BYTES - 7, 9_000_000]
)
def test_what_is_sealed_comes_back(size: int) -> None:
    data = os.urandom(size)
    assert KEY.open_box(seal(data), REPLY_LABEL, REQUEST) == data


def test_sizes_tell_little() -> None:
    assert len({len(seal(b"x" * size)) for size in range(0, PAD_BYTES - 8, 97)}) == 1


def test_two_boxes_of_the_same_content_differ() -> None:
    assert seal(b"same") != seal(b"same")


@pytest.mark.parametrize(
    ("key", "label", "asked"),
    [(ReplyKey(), REPLY_LABEL, REQUEST), (KEY, LOG_LABEL, REQUEST), (KEY, REPLY_LABEL, "00" * 32)],
)
def test_another_key_label_or_request_does_not_open(key: ReplyKey, label: bytes, asked: str) -> None:
    with pytest.raises(VerificationError):
        key.open_box(seal(b"secret"), label, asked)


def test_every_flipped_bit_of_a_small_box_is_noticed() -> None:
    box = seal(b"secret")
    for index in [*range(PREFIX + 64), *range(len(box) - 32, len(box)), *range(PREFIX, len(box), 61)]:
        for bit in range(8):
            bad = bytearray(box)
            bad[index] ^= 1 << bit
            if index == PREFIX - 1 and bit == 7:
                continue  # X25519 ignores the highest bit of a public key (RFC 7748); it is in the AAD: below
            with pytest.raises(CytosaeError):
                KEY.open_box(bytes(bad), REPLY_LABEL, REQUEST)


def test_the_bit_that_x25519_ignores_is_authenticated_too() -> None:
    bad = bytearray(seal(b"secret"))
    bad[PREFIX - 1] ^= 0x80
    with pytest.raises(VerificationError):
        KEY.open_box(bytes(bad), REPLY_LABEL, REQUEST)


def test_frames_cannot_be_moved_dropped_or_cut() -> None:
    box = seal(os.urandom(2 * FRAME_BYTES + 5))
    step = FRAME_BYTES + TAG_BYTES
    first, second, last = (box[PREFIX + i * step : PREFIX + (i + 1) * step] for i in range(3))
    head = box[:PREFIX]
    for frames in (
        (second, first, last),
        (first, last),
        (first, second),
        (first, second, last[:-1]),
        (first,),
    ):
        with pytest.raises(CytosaeError):
            KEY.open_box(head + b"".join(frames), REPLY_LABEL, REQUEST)


@pytest.mark.parametrize("data", [b"", BOX, b"x" * 100, BOX + bytes(32), BOX + b"\x01" * 40])
def test_what_is_no_box_is_refused(data: bytes) -> None:
    with pytest.raises(CytosaeError):
        KEY.open_box(data, REPLY_LABEL, REQUEST)


@pytest.mark.parametrize("reader", ["", "zz" * 32, "00" * 32, "ab" * 31])
def test_a_reader_that_is_no_key_is_refused(reader: str) -> None:
    with pytest.raises(MessageError):
        seal_box(b"x", reader, REPLY_LABEL, REQUEST)


def test_two_boxes_on_the_wire() -> None:
    assert split_wire(join_wire(b"reply", b"log")) == (b"reply", b"log")
    for data in (b"", b"CYTOWIRE1", join_wire(b"reply", b"")[:-3], b"x" * 50):
        with pytest.raises(MessageError):
            split_wire(data)
