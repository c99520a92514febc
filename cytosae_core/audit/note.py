"""Signed notes, checkpoints and cosignatures, checking side (C2SP signed-note, tlog-checkpoint, tlog-cosignature).

    note        text | empty line | one or more lines "<em dash> <key name> base64(key id (4) | signature)"
    checkpoint  a note whose text is: origin, number of leaves, base64 of the root; no further lines here
    vkey        <key name>+<key id in hex>+base64(algorithm byte | Ed25519 public key)

Two algorithms: 0x01 is the log's own signature over the text, 0x04 a witness's cosignature: u64 seconds and a
signature over "cosignature/v1", "time <seconds>" and the text. A signature of an unknown key is ignored; a wrong
one of a known key condemns the note.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import VerificationError
from ..signatures import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, verify_raw
from .merkle import EMPTY_ROOT, HASH_BYTES

ALGORITHMS = {"log": b"\x01", "cosign": b"\x04"}
MAX_NOTE_BYTES = 1 << 16
MAX_SIGNATURES = 16
DASH = "\u2014 "


@dataclass(frozen=True)
class Verifier:
    """A note key: its name (for a log: the origin), `log` or `cosign`, and 32 bytes of Ed25519 public key."""

    name: str
    role: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """First four bytes of SHA-256(name, newline, algorithm byte, public key)."""
        return hashlib.sha256(f"{self.name}\n".encode() + ALGORITHMS[self.role] + self.public).digest()[:4]

    @property
    def text(self) -> str:
        """The key as a vkey."""
        material = base64.b64encode(ALGORITHMS[self.role] + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{material}"

    def check(self, text: str, signature: bytes) -> int:
        """Raise unless `signature` (after the key id) is this key's over `text`; its unix seconds, 0 for `log`."""
        if self.role == "log":
            verify_raw(self.public.hex(), text.encode(), signature)
            return 0
        seconds = int.from_bytes(signature[:8], "big")
        if len(signature) != 8 + SIGNATURE_BYTES or seconds >= 1 << 63:
            raise _bad("Expected a cosignature of 72 bytes with a time below 2**63.")
        verify_raw(self.public.hex(), cosigned_message(text, seconds), signature[8:])
        return seconds


@dataclass(frozen=True)
class Checkpoint:
    """A log's head: origin, number of leaves, root (32 bytes), and who cosigned it when (vkey: unix seconds)."""

    origin: str
    size: int
    root: bytes
    cosigned: dict[str, int] = field(default_factory=dict, compare=False)


def origin_of(protocol: str, party: str) -> str:
    """Origin, and note key name, of a party's log in the study with this protocol digest (64 hex digits)."""
    return f"cytosae/{protocol[:16]}/{party}"


def vkey(name: str, role: str, public_hex: str) -> str:
    """The vkey of an Ed25519 key (64 hex digits); `role` is `log` or `cosign`. Raises VerificationError (NOTE)."""
    try:
        return parse_vkey(Verifier(name, role, bytes.fromhex(public_hex)).text).text
    except (KeyError, ValueError) as error:
        raise _bad(f"Expected role=log or cosign and a public key in hex, got role={role}.") from error


def parse_vkey(text: str) -> Verifier:
    """The key of a vkey. Raises VerificationError (NOTE) for anything but the one way to write such a key."""
    name, _, rest = text.partition("+")
    material = unbase64(rest.partition("+")[2])
    roles = [role for role, algorithm in ALGORITHMS.items() if material[:1] == algorithm]
    if roles and len(material) == 1 + PUBLIC_KEY_BYTES and _is_name(name):
        found = Verifier(name, roles[0], material[1:])
        if found.text == text:
            return found
    raise _bad("Expected a vkey: name, id that belongs to it, and an Ed25519 log or cosignature key.")


def cosigned_message(text: str, seconds: int) -> bytes:
    """What a cosignature/v1 signs: the checkpoint's whole text and the time."""
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def split_note(data: bytes) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    """A note's text and its (key name, key id, signature) lines, none verified. Raises VerificationError (NOTE)."""
    try:
        whole = data.decode() if len(data) <= MAX_NOTE_BYTES else ""
    except UnicodeDecodeError as error:
        raise _bad("Expected a note in UTF-8.") from error
    head, blank, tail = whole.rpartition("\n\n")
    lines = tail.split("\n")
    if not (blank and head) or lines.pop() or not lines or any(mark < " " and mark != "\n" for mark in whole):
        raise _bad(f"Expected a text, an empty line and signature lines in at most {MAX_NOTE_BYTES} bytes.")
    if len(lines) > MAX_SIGNATURES:
        raise _bad(f"Expected at most {MAX_SIGNATURES} signatures, got {len(lines)}.")
    return head + "\n", [_split_line(line) for line in lines]


def _split_line(line: str) -> tuple[str, bytes, bytes]:
    name, _, encoded = line.removeprefix(DASH).partition(" ")
    material = unbase64(encoded)
    if not line.startswith(DASH) or not _is_name(name) or len(material) <= 4:
        raise _bad("Expected a signature line: dash, key name, base64 of key id and signature.")
    return name, material[:4], material[4:]


def open_note(data: bytes, vkeys: Sequence[str]) -> tuple[str, dict[str, int]]:
    """The text of a note, and for each of `vkeys` that signed it the unix seconds (0 for a log's signature).

    Raises:
        VerificationError: reason NOTE (not a note), SIG (a known key's signature is wrong, or no known key signed).
    """
    text, lines = split_note(data)
    known = {(item.name, item.key_id): item for item in map(parse_vkey, vkeys)}
    signed: dict[str, int] = {}
    for name, key_id, signature in lines:
        if verifier := known.get((name, key_id)):
            signed[verifier.text] = verifier.check(text, signature)
    if not signed:
        raise VerificationError("Expected a note signed by a known key.", reason="SIG")
    return text, signed


def open_checkpoint(data: bytes, log: str, *, origin: str, witnesses: Sequence[str] = ()) -> Checkpoint:
    """The head in a checkpoint of `origin` that its log signed, with the cosignatures of `witnesses` on it.

    Args:
        data: a signed note. log, witnesses: vkeys; a witness that did not sign is no error.

    Raises:
        VerificationError: reason NOTE, SIG or CKPT (not a checkpoint, or another log's).
    """
    text, signed = open_note(data, [log, *witnesses])
    head, key = parse_checkpoint(text), parse_vkey(log)
    if signed.pop(log, None) is None or key.role != "log":
        raise VerificationError("Expected a checkpoint signed by its log.", reason="SIG")
    if not head.origin == key.name == origin:
        raise VerificationError("Expected a checkpoint of this log.", reason="CKPT")
    return Checkpoint(
        origin, head.size, head.root, {k: at for k, at in signed.items() if parse_vkey(k).role != "log"}
    )


def parse_checkpoint(text: str) -> Checkpoint:
    """Origin, size and root of a checkpoint's text. Raises VerificationError (CKPT) unless it is exactly that."""
    parts = text.split("\n")
    origin, number, encoded, rest = parts if len(parts) == 4 else ("", "", "", "x")
    size = int(number) if number.isascii() and number.isdigit() and len(number) < 20 else -1
    root = unbase64(encoded)
    if rest or not origin or not 0 <= size < 1 << 63 or str(size) != number or len(root) != HASH_BYTES:
        raise VerificationError("Expected three lines: origin, size, base64 root.", reason="CKPT")
    if size == 0 and root != EMPTY_ROOT:
        raise VerificationError("Expected the empty root for size=0.", reason="CKPT")
    return Checkpoint(origin, size, root)


def checkpoint_text(origin: str, size: int, root: bytes) -> str:
    """The text of a checkpoint: three lines."""
    return f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"


def unbase64(text: str) -> bytes:
    """Decoded bytes; none unless `text` is the one way to write them (padding, no stray characters or bits)."""
    try:
        found = base64.b64decode(text, validate=True)
    except ValueError:
        return b""
    return found if base64.b64encode(found).decode() == text else b""


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(mark.isspace() or mark < " " for mark in name)


def _bad(message: str) -> VerificationError:
    return VerificationError(message, hint="Keep the file: a changed note is evidence.", reason="NOTE")
