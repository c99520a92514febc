"""Parts of a secure sum (secagg.py): its terms, Shamir's shares, keys and masks, and the reading of its messages.

Shares are over the integers mod 2^256 + 297 (Shamir 1979); a mask is ChaCha20 (RFC 8439) under 256 bits of
HKDF-SHA256 (RFC 5869) of an X25519 secret (RFC 7748). Python's integers do not hide how long a computation takes:
shares are made and joined only where their secrets are known anyway.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from ..canonical import canonical_json, digest_of
from ..errors import MessageError, StudyError, VerificationError
from ..keys import SIGNATURE_BYTES, verify_signature
from .noise import SecureBytes

URN = "urn:cytosae:secagg:v1"
KEYS, CONFIRM = "urn:cytosae:secagg:keys:v1", "urn:cytosae:secagg:confirm:v1"
PRIME = 2**256 + 297  # the smallest prime above 2^256
KEY_BYTES, TAG_BYTES = 32, 16
INDEX_BYTES, VALUE_BYTES = 2, 33
SHARE_BYTES = INDEX_BYTES + VALUE_BYTES
BOX_BYTES = 2 * SHARE_BYTES + TAG_BYTES
MIN_SITES, MAX_SITES, MAX_SIZE = 3, 1000, 2**31
LARGEST = 2**31 - 1  # of a sum's absolute value
BLOCK_WORDS = 1 << 16  # of a mask at a time: 256 KiB stay in the cache
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
Words = NDArray[np.uint32]
Message = dict[str, Any]


def default_threshold(sites: int) -> int:
    """Sites that must answer: floor(2 S / 3) + 1, the smallest that holds against a third of the sites and a
    coordinator that lies."""
    return 2 * sites // 3 + 1


def tolerated(sites: int, threshold: int) -> tuple[int, int]:
    """Colluding sites (lying coordinator, curious coordinator) up to which only sums of two or more others are told.

    A coordinator that lies may tell two sets of survivors: 2 t - S sites would have to sign both. A curious one only
    reads: t colluding sites hold enough shares. With one site left over, the sum is that site's vector anyway.
    """
    return min(2 * threshold - sites - 1, sites - 2), min(threshold - 1, sites - 2)


def require_room(bound_per_site: int, sites: int) -> None:
    """Refuse a bound on |x| whose sum over `sites` does not fit a signed word of 32 bits.

    Raises:
        StudyError: bound_per_site below 1, or bound_per_site * sites above 2^31 - 1.
    """
    if bound_per_site < 1 or bound_per_site * sites > LARGEST:
        raise StudyError(
            f"Expected 1 <= bound_per_site * sites <= 2^31 - 1, got bound_per_site={bound_per_site}, sites={sites}.",
            hint="A coarser grid makes smaller integers (noise.grid_for).",
        )


@dataclass(frozen=True)
class SecureSum:
    """What everybody agreed on before; every key and every signature is bound to all of it.

    Attributes:
        context: digest of the study's protocol and the round; never the same for two sums, repeats included.
        roster: site -> its pinned Ed25519 public key, 64 hex digits.
        size: numbers in a vector.
        bound: largest |x| of one site's number, noise included.
        threshold: sites that must answer in each stage; 0 for `default_threshold`.

    Raises:
        StudyError: fewer than 3 sites, a threshold outside S/2 < t <= S, no room for the sum, or keys that are not
            distinct.
    """

    context: str
    roster: Mapping[str, str]
    size: int
    bound: int
    threshold: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "roster", dict(sorted(self.roster.items())))
        count = len(self.roster)
        object.__setattr__(self, "threshold", self.threshold or default_threshold(count))
        if not MIN_SITES <= count <= MAX_SITES:
            raise StudyError(
                f"Expected sites={MIN_SITES} .. {MAX_SITES}, got sites={count}.",
                hint="With two sites, each knows the other's vector from the sum.",
            )
        if not count < 2 * self.threshold <= 2 * count:
            raise StudyError(
                f"Expected sites/2 < threshold <= sites, got threshold={self.threshold}, sites={count}."
            )
        if not 1 <= self.size <= MAX_SIZE or not self.context:
            raise StudyError(f"Expected context and size=1 .. {MAX_SIZE}, got size={self.size}.")
        keys = set(self.roster.values())
        if len(keys) != count or not all(len(key) == 64 and _HEX.fullmatch(key) for key in keys):
            raise StudyError("Expected roster=<a distinct key of 64 lower-case hex digits for each site>.")
        require_room(self.bound, count)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all of it: sites that were told different terms share no key and accept no signature."""
        return digest_of({"urn": URN, **{name: getattr(self, name) for name in self.__dataclass_fields__}})

    @cached_property
    def index(self) -> dict[str, int]:
        """Site -> its point 1 .. S in Shamir's polynomials, and its place in the order of masks' signs."""
        return {site: place for place, site in enumerate(self.roster, 1)}

    def require(self, count: int, what: str) -> None:
        """Raise StudyError unless `count` reaches the threshold."""
        if count < self.threshold:
            raise StudyError(
                f"Expected {what} of at least threshold={self.threshold} sites, got {count}: no sum.",
                hint="Start the sum again with the sites that are there, under a new context.",
            )


# Shamir's shares


def split_secret(secret: bytes, threshold: int, indices: Iterable[int]) -> dict[int, bytes]:
    """A share of 35 bytes (index, value) an index: any `threshold` of them give the 32 bytes back, fewer nothing."""
    powers = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    shares = {}
    for index in indices:
        value = 0
        for coefficient in reversed(powers):
            value = (value * index + coefficient) % PRIME
        shares[index] = index.to_bytes(INDEX_BYTES, "big") + value.to_bytes(VALUE_BYTES, "big")
    return shares


def join_shares(shares: Iterable[bytes], threshold: int, sites: int) -> bytes:
    """The secret of 32 bytes from the first `threshold` shares.

    Raises:
        StudyError: too few shares.
        MessageError: reason SHARE, a length, index (1 .. sites) or value out of range, or an index twice.
        VerificationError: reason SHARE, shares that no secret of 32 bytes has.
    """
    points: dict[int, int] = {}
    for share in shares:
        index, value = point(share, sites)
        if index in points:
            raise MessageError(f"Expected each share once, got index={index} twice.", reason="SHARE")
        points[index] = value
    if len(points) < threshold:
        raise StudyError(f"Expected shares={threshold}, got shares={len(points)}.")
    secret = _at_zero(dict(list(points.items())[:threshold]))
    if secret >> (8 * KEY_BYTES):
        raise VerificationError("Expected shares of one secret.", reason="SHARE")
    return secret.to_bytes(KEY_BYTES, "big")


def point(share: bytes, sites: int) -> tuple[int, int]:
    """Index and value of a share; else MessageError (SHARE)."""
    index = int.from_bytes(share[:INDEX_BYTES], "big")
    value = int.from_bytes(share[INDEX_BYTES:], "big")
    if len(share) != SHARE_BYTES or not 1 <= index <= sites or value >= PRIME:
        raise MessageError(f"Expected a share of bytes={SHARE_BYTES}, index=1 .. {sites}.", reason="SHARE")
    return index, value


def _at_zero(points: Mapping[int, int]) -> int:
    total = 0
    for index, value in points.items():
        up = down = 1
        for other in points:
            if other != index:
                up, down = up * other % PRIME, down * (other - index) % PRIME
        total += value * up * pow(down, -1, PRIME)
    return total % PRIME


# Keys and masks


def derive(secret: bytes, terms: SecureSum, *what: str) -> bytes:
    """32 bytes for one use under these terms."""
    return HKDF(
        SHA256(), KEY_BYTES, salt=bytes.fromhex(terms.digest), info=canonical_json([URN, *what])
    ).derive(secret)


def agree(private: X25519PrivateKey, public_hex: str) -> bytes:
    """The secret of two X25519 keys. Raises MessageError (KEYS) for a point of small order."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(public_hex)))
    except ValueError as error:  # a point of small order
        raise MessageError("Expected key=<usable X25519 public key>.", reason="KEYS") from error


def pair_key(private: X25519PrivateKey, public_hex: str, terms: SecureSum, one: str, other: str) -> bytes:
    """The key of the mask between two sites, the same at both."""
    return derive(agree(private, public_hex), terms, "pair", *sorted((one, other)))


def public_of(private: X25519PrivateKey) -> str:
    """The public half, 64 hex digits."""
    return private.public_key().public_bytes_raw().hex()


def blend(words: Words, key: bytes, sign: int) -> None:
    """Add (sign > 0) or take away the mask of `key` in place, mod 2^32, one block after the other."""
    stream = SecureBytes(key)
    change = np.add if sign > 0 else np.subtract
    for start in range(0, words.size, BLOCK_WORDS):
        part = words[start : start + BLOCK_WORDS]
        change(part, stream.words(part.size, np.uint32).view("<u4"), out=part)


def fields_of(message: object, *names: str) -> Message:
    """The message, if it is an object with exactly these fields; else MessageError (FORMAT)."""
    if not isinstance(message, dict) or set(message) != set(names):
        raise MessageError(f"Expected a message of {', '.join(names)}.", reason="FORMAT")
    return message


def hex_bytes(value: object, size: int, what: str) -> bytes:
    """Bytes of hex digits of exactly this length; else MessageError (LENGTH)."""
    if not isinstance(value, str) or len(value) != 2 * size or not _HEX.fullmatch(value):
        raise MessageError(f"Expected {what}=<{2 * size} lower-case hex digits>.", reason="LENGTH")
    return bytes.fromhex(value)


def by_site(value: object, size: int, what: str) -> dict[str, bytes]:
    """Bytes by site, each of `size`; else MessageError (FORMAT, LENGTH)."""
    if not isinstance(value, dict):
        raise MessageError(f"Expected {what} by site.", reason="FORMAT")
    return {str(site): hex_bytes(item, size, what) for site, item in value.items()}


def exactly(found: Iterable[object], wanted: Iterable[str], what: str) -> None:
    """Raise MessageError (SITES) unless the sites found are those wanted."""
    if set(found) != set(wanted):
        raise MessageError(f"Expected {what} of exactly sites={sorted(wanted)}.", reason="SITES")


def key_message(terms: SecureSum, message: object) -> Message:
    """One site's keys, signed under these terms by its pinned key."""
    fields = fields_of(message, "site", "context", "mask_key", "box_key", "signature")
    site = fields["site"]
    if not isinstance(site, str) or site not in terms.roster:
        raise MessageError("Expected site=<a site of the roster>.", reason="SITES")
    if fields["context"] != terms.digest:
        raise MessageError(
            f"Expected context={terms.digest} from site={site}.",
            hint="All sites need the same context, roster, size, bound and threshold.",
            reason="CONTEXT",
        )
    for name in ("mask_key", "box_key"):
        hex_bytes(fields[name], KEY_BYTES, name)
    signature = hex_bytes(fields["signature"], SIGNATURE_BYTES, "signature")
    body = canonical_json({name: value for name, value in fields.items() if name != "signature"})
    verify_signature(terms.roster[site], KEYS, body, signature)
    return fields


def all_keys(terms: SecureSum, messages: object) -> dict[str, Message]:
    """Keys by site, in the order of the roster; each checked, no site and no key twice, enough sites."""
    if not isinstance(messages, list | tuple):
        raise MessageError("Expected a list of keys.", reason="FORMAT")
    found = [key_message(terms, message) for message in messages]
    if len({message["site"] for message in found}) != len(found):
        raise MessageError("Expected one pair of keys a site.", reason="DUPLICATE")
    if len({message[name] for message in found for name in ("mask_key", "box_key")}) != 2 * len(found):
        raise MessageError("Expected keys that are all different.", reason="KEYS")
    terms.require(len(found), "keys")
    return {message["site"]: message for message in sorted(found, key=lambda item: terms.index[item["site"]])}


def announced(terms: SecureSum, message: object) -> tuple[list[str], list[str]]:
    """Survivors and drop-outs, each sorted, no site in both."""
    fields = fields_of(message, "survivors", "dropouts")
    for names in fields.values():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise MessageError("Expected lists of sites.", reason="FORMAT")
        if names != sorted(set(names)):
            raise MessageError("Expected each site once, in order.", reason="SURVIVORS")
    survivors, dropouts = fields["survivors"], fields["dropouts"]
    if set(survivors) & set(dropouts):
        raise MessageError(
            "Expected each site among survivors or dropouts, never both.",
            hint="Shares of both secrets of a site would give its vector away. Talk to the coordinator.",
            reason="SURVIVORS",
        )
    terms.require(len(survivors), "masked vectors")
    return survivors, dropouts


def signed_set(terms: SecureSum, keys: Mapping[str, Message], announcement: Message) -> bytes:
    """What survivors sign: the terms, the keys that they saw, and who survived."""
    return canonical_json({"context": terms.digest, "keys": digest_of(list(keys.values())), **announcement})


def check_signatures(
    terms: SecureSum, statement: bytes, signatures: Mapping[str, bytes], survivors: Sequence[str]
) -> None:
    """Raise unless at least `threshold` survivors, and nobody else, signed this."""
    for signer, signature in signatures.items():
        if signer not in survivors:
            raise MessageError("Expected signatures of survivors only.", reason="SITES")
        verify_signature(terms.roster[signer], CONFIRM, statement, signature)
    terms.require(len(signatures), "signatures under one set of survivors")
