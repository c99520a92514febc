"""Boxes that only one reader can open, and the two boxes of a reply on the wire. Bytes in, bytes out; no IO.

    box    "CYTOBOX1" | ephemeral X25519 key (32) | frames
    frame  ChaCha20-Poly1305 of up to 4 MiB; nonce = last flag (1 byte) | counter (11 bytes); AAD = what is before
    key    HKDF-SHA256(X25519(ephemeral, reader), salt = SHA-256(request), info = label | ephemeral | reader)
    wire   "CYTOWIRE1" | u64 length | box of the signed reply | box of the site's log entries

The plaintext is its length (u64), itself, and zeros up to a multiple of 4 KiB, so that the size tells little. The
reader's key is made for one request and is inside that request's signature: a box opens for one answer only, and
keys that are gone cannot open old traffic. (X25519 RFC 7748, HKDF RFC 5869, ChaCha20-Poly1305 RFC 8439.)
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .errors import MessageError, VerificationError

BOX = b"CYTOBOX1"
WIRE = b"CYTOWIRE1"
FRAME_BYTES = 4 * 1024 * 1024
TAG_BYTES = 16
PAD_BYTES = 4096
KEY_BYTES = 32
REPLY_LABEL = b"urn:cytosae:box:reply:v1"
LOG_LABEL = b"urn:cytosae:box:log:v1"


class ReplyKey:
    """An X25519 key pair for one request; lives in memory only."""

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()

    @property
    def public_hex(self) -> str:
        """The public half, 64 hex digits, for the request's signed header."""
        return self._private.public_key().public_bytes_raw().hex()

    def open_box(self, box: bytes, label: bytes, request_sha256: str) -> bytes:
        """The plaintext of a box made for this key, label and request.

        Raises:
            MessageError: not a box, or cut. VerificationError: another key, label or request, or changed bytes.
        """
        prefix = box[: len(BOX) + KEY_BYTES]
        if len(prefix) < len(BOX) + KEY_BYTES or not box.startswith(BOX):
            raise MessageError("Expected a sealed box.", hint="Both sides must run the same version.")
        peer = prefix[len(BOX) :]
        reader = bytes.fromhex(self.public_hex)
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(peer))
            plain = _open_frames(
                box[len(prefix) :], _cipher(shared, label, peer, reader, request_sha256), prefix
            )
        except (InvalidTag, ValueError) as error:
            raise VerificationError("Expected a box that this key opens.", reason="SEAL") from error
        return _unpad(plain)


def seal_box(plaintext: bytes, reader_hex: str, label: bytes, request_sha256: str) -> bytes:
    """A box that only the holder of `reader_hex`'s private half opens, for one label and request.

    Raises:
        MessageError: `reader_hex` is not a usable X25519 public key.
    """
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    try:
        reader = bytes.fromhex(reader_hex)
        shared = private.exchange(X25519PublicKey.from_public_bytes(reader))
    except ValueError as error:
        raise MessageError("Expected reply_key=<X25519 public key, 64 hex digits>.") from error
    prefix = BOX + public
    cipher = _cipher(shared, label, public, reader, request_sha256)
    padded = _pad(plaintext)
    frames = []
    for counter, start in enumerate(range(0, len(padded), FRAME_BYTES)):
        last = start + FRAME_BYTES >= len(padded)
        frames.append(cipher.encrypt(_nonce(last, counter), padded[start : start + FRAME_BYTES], prefix))
    return b"".join((prefix, *frames))


def join_wire(reply: bytes, log: bytes) -> bytes:
    """The two boxes of a reply as one message."""
    return b"".join((WIRE, struct.pack(">Q", len(reply)), reply, log))


def split_wire(data: bytes) -> tuple[bytes, bytes]:
    """The box of the reply and the box of the log entries.

    Raises:
        MessageError: not such a message, or cut.
    """
    start = len(WIRE) + 8
    if len(data) < start or not data.startswith(WIRE):
        raise MessageError("Expected a sealed reply.", hint="Both sides must run the same version.")
    (length,) = struct.unpack(">Q", data[len(WIRE) : start])
    if start + length > len(data):
        raise MessageError("Expected both boxes of a sealed reply.")
    return data[start : start + length], data[start + length :]


def _cipher(
    shared: bytes, label: bytes, sender: bytes, reader: bytes, request_sha256: str
) -> ChaCha20Poly1305:
    kdf = HKDF(SHA256(), KEY_BYTES, salt=bytes.fromhex(request_sha256), info=label + sender + reader)
    return ChaCha20Poly1305(kdf.derive(shared))


def _nonce(last: bool, counter: int) -> bytes:
    return bytes([last]) + counter.to_bytes(11, "big")


def _open_frames(data: bytes, cipher: ChaCha20Poly1305, prefix: bytes) -> bytes:
    step = FRAME_BYTES + TAG_BYTES
    parts = []
    for counter, start in enumerate(range(0, max(len(data), 1), step)):
        last = start + step >= len(data)
        parts.append(cipher.decrypt(_nonce(last, counter), data[start : start + step], prefix))
    return b"".join(parts)


def _pad(plaintext: bytes) -> bytes:
    head = struct.pack(">Q", len(plaintext))
    return b"".join((head, plaintext, bytes(-(len(head) + len(plaintext)) % PAD_BYTES)))


def _unpad(padded: bytes) -> bytes:
    """What `_pad` padded. The sender is not trusted: one content has one form."""
    length = int.from_bytes(padded[:8], "big")
    zeros = len(padded) - 8 - length
    if len(padded) % PAD_BYTES or not 0 <= zeros < PAD_BYTES or any(padded[8 + length :]):
        raise MessageError("Expected a box's content with its length, and zeros after it.", reason="SEAL")
    return padded[8 : 8 + length]
