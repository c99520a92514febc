"""Sums over sites of which the coordinator sees the sum only: Bonawitz et al. 2017, "Practical Secure Aggregation for
Privacy-Preserving Machine Learning" (CCS), double masks with recovery of drop-outs. No IO; messages are JSON values.

    keys      two X25519 keys a site, for masks and for boxes, signed by its pinned Ed25519 key
    shares    Shamir shares of the seed b and of the mask key, a box (ChaCha20-Poly1305) for each other site
    masked    x + PRG(b) + sum over later sites PRG(s_uv) - sum over earlier ones PRG(s_uv), mod 2^32
    confirm   every survivor signs who survived, who dropped out, and the keys that it saw
    unmask    with `threshold` such signatures: shares of b of survivors, of the mask key of drop-outs, never both

All keys live in memory for one sum: a site that restarts is a drop-out. The masked vector, the shares and the
replies of `unmask` are not signed here: the signed reply that carries them does that. Beyond the paper: the terms are
in every key and signature, the seed is committed to, and a sum beyond its bound is refused.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from ..canonical import canonical_json
from ..errors import MessageError, StudyError, VerificationError
from ..keys import SIGNATURE_BYTES, SigningKey, verify_signature
from .secagg_parts import (
    BOX_BYTES,
    CONFIRM,
    KEY_BYTES,
    KEYS,
    SHARE_BYTES,
    URN,
    Message,
    SecureSum,
    Words,
    agree,
    all_keys,
    announced,
    blend,
    by_site,
    check_signatures,
    default_threshold,
    derive,
    exactly,
    fields_of,
    hex_bytes,
    join_shares,
    key_message,
    pair_key,
    point,
    public_of,
    require_room,
    signed_set,
    split_secret,
    tolerated,
)

__all__ = [
    "Collector",
    "Message",
    "Party",
    "SecureSum",
    "Words",
    "default_threshold",
    "require_room",
    "tolerated",
]

_NONCE = bytes(12)  # every box has a key of its own


@dataclass(frozen=True)
class _Secrets:
    mask: X25519PrivateKey
    box: X25519PrivateKey
    seed: bytes


class Party:
    """One site's side of one sum; its methods are called once each, in this order.

    Args:
        terms: of the sum, known to the site from the signed protocol, not from the coordinator's request.
        site, key: its name and its Ed25519 key, which the roster pins.

    Guarantees (tests/unit/test_secagg.py, `test_sN_`):
        S1. The collector's sum is exact, at the largest numbers too, also when sites drop out at any stage, as long
            as `threshold` of them answer; with fewer there is a StudyError and no sum.
        S2. Keys count only with a signature of the pinned site key under the same terms; no unknown site, no site or
            key twice.
        S3. For a site that it answered for, a party gives shares of one of its two secrets, never of both; a second
            and different set of survivors is refused.
        S4. A party gives shares only when `threshold` survivors signed the same survivors, drop-outs and keys.
        S5. A changed, moved or replayed box, and a wrong share, is refused, never summed.
        S6. Coordinator and colluding sites learn the sum of the others' vectors and no more, up to `tolerated` many:
            S - 2 only where the threshold is S - 1 or S (curious coordinator) or S (lying coordinator).
        S7. Coordinator and S - 1 sites learn the last site's vector. No secure sum can prevent that.
        S8. Masks are new for each party object and each context; a party masks one vector only.
        S9. What does not fit is refused: lengths, dtypes, bounds, share indices.

    Not promised: that a site's vector is honest (one wrong vector spoils the sum, unseen when it stays in range), and
    that Python forgets keys. Not thread-safe.
    """

    def __init__(self, terms: SecureSum, site: str, key: SigningKey) -> None:
        if terms.roster.get(site) != key.public_hex:
            raise StudyError(f"Expected site={site} with the key that the roster pins.")
        self._terms, self.site, self._key, self._next = terms, site, key, "shares"
        self._secrets: _Secrets | None = _Secrets(
            X25519PrivateKey.generate(), X25519PrivateKey.generate(), os.urandom(KEY_BYTES)
        )
        body = {
            "site": site,
            "context": terms.digest,
            "mask_key": public_of(self._secrets.mask),
            "box_key": public_of(self._secrets.box),
        }
        self._message: Message = {**body, "signature": key.sign(KEYS, canonical_json(body)).hex()}
        self._keys: dict[str, Message] = {}
        self._held: dict[
            str, tuple[bytes, bytes]
        ] = {}  # site -> its shares for us: of the seed, of the mask key
        self._said: Message | None = None

    def _own(self, stage: str) -> _Secrets:
        if self._secrets is None or self._next != stage:
            raise _order(self._next, stage)
        return self._secrets

    def keys(self) -> Message:
        """Stage 1: both public keys, signed."""
        return dict(self._message)

    def shares(self, keys: Sequence[Message]) -> Message:
        """Stage 2: a commitment to the seed, and a box of shares for every other site that sent keys.

        Args:
            keys: of all sites, as `Collector.close_keys` gave them.

        Raises:
            MessageError: reasons SITES, CONTEXT, KEYS, DUPLICATE, FORMAT, LENGTH, ORDER.
            VerificationError: reason SIG. StudyError: too few sites.
        """
        own, terms = self._own("shares"), self._terms
        found = all_keys(terms, keys)
        if found.get(self.site) != self._message:
            raise MessageError(f"Expected this site's own keys, site={self.site}.", reason="KEYS")
        places = [terms.index[site] for site in found]
        seeds = split_secret(own.seed, terms.threshold, places)
        masks = split_secret(own.mask.private_bytes_raw(), terms.threshold, places)
        boxes = {}
        for site in found:
            place = terms.index[site]
            if site == self.site:
                self._held[site] = seeds[place], masks[place]
            else:
                cipher, label = self._cipher(own, found[site]["box_key"], self.site, site)
                boxes[site] = cipher.encrypt(_NONCE, seeds[place] + masks[place], label).hex()
        self._keys, self._next = found, "masked"
        return {"site": self.site, "commitment": derive(own.seed, terms, "commit").hex(), "boxes": boxes}

    def _cipher(
        self, own: _Secrets, peer_hex: str, sender: str, receiver: str
    ) -> tuple[ChaCha20Poly1305, bytes]:
        key = derive(agree(own.box, peer_hex), self._terms, "box", sender, receiver)
        return ChaCha20Poly1305(key), canonical_json([URN, self._terms.digest, sender, receiver])

    def _open(self, own: _Secrets, sender: str, box: bytes) -> tuple[bytes, bytes]:
        if sender == self.site or sender not in self._keys:
            raise MessageError("Expected boxes of other sites that sent keys.", reason="SITES")
        cipher, label = self._cipher(own, self._keys[sender]["box_key"], sender, self.site)
        try:
            plain = cipher.decrypt(_NONCE, box, label)
        except InvalidTag as error:
            raise VerificationError(
                f"Expected a box that site={sender} made for this site.", reason="SEAL"
            ) from error
        seed, mask = plain[:SHARE_BYTES], plain[SHARE_BYTES:]
        for share in (seed, mask):
            if point(share, len(self._terms.roster))[0] != self._terms.index[self.site]:
                raise MessageError(f"Expected shares for this site from site={sender}.", reason="SHARE")
        return seed, mask

    def masked(self, vector: NDArray[np.int64], boxes: Mapping[str, str]) -> Words:
        """Stage 3: the masked vector [size] uint32; send it as little-endian bytes, 4 a number.

        Args:
            vector: [size] int64, |x| <= bound.
            boxes: sender -> box, of all other sites that completed stage 2.

        Raises:
            StudyError: the vector does not fit the terms, or too few sites are left.
            MessageError: reasons SITES, SHARE, KEYS, FORMAT, LENGTH, ORDER. VerificationError: reason SEAL.
        """
        own, terms = self._own("masked"), self._terms
        if vector.dtype != np.int64 or vector.shape != (terms.size,):
            raise StudyError(f"Expected int64 [{terms.size}], got {vector.dtype} {list(vector.shape)}.")
        if not -terms.bound <= int(vector.min()) <= int(vector.max()) <= terms.bound:
            raise StudyError(f"Expected |x| <= bound={terms.bound}.", hint="Clip before the sum.")
        found = by_site(boxes, BOX_BYTES, "box")
        terms.require(len(found) + 1, "shares")
        held = {sender: self._open(own, sender, box) for sender, box in found.items()}
        keys = {p: pair_key(own.mask, self._keys[p]["mask_key"], terms, self.site, p) for p in held}
        words = vector.astype(np.uint32)
        blend(words, derive(own.seed, terms, "self"), 1)
        for peer, key in keys.items():
            blend(words, key, terms.index[peer] - terms.index[self.site])
        self._held |= held
        self._secrets, self._next = None, "confirm"  # nothing left to ask this site's own masks from
        return words

    def confirm(self, announcement: Message) -> Message:
        """Stage 4: a signature under who survived and who dropped out; the same again for the same announcement.

        Raises:
            MessageError: reasons SURVIVORS (both lists hold a site, this site is missing, other sites than those
                whose boxes came, another set than before), FORMAT, ORDER. StudyError: too few survivors.
        """
        if self._next != "confirm":
            raise _order(self._next, "confirm")
        survivors, dropouts = announced(self._terms, announcement)
        if self.site not in survivors or {*survivors, *dropouts} != set(self._held):
            raise MessageError(
                "Expected survivors and dropouts to be the sites whose boxes came, this one a survivor.",
                reason="SURVIVORS",
            )
        if self._said is not None and self._said != announcement:
            raise MessageError(
                "Expected the survivors that were announced before.",
                hint="Two sets of survivors would give a vector away. Talk to the coordinator.",
                reason="SURVIVORS",
            )
        self._said = {"survivors": list(survivors), "dropouts": list(dropouts)}
        signed = signed_set(self._terms, self._keys, self._said)
        return {"site": self.site, "signature": self._key.sign(CONFIRM, signed).hex()}

    def unmask(self, request: Message) -> Message:
        """Stage 5: shares of the seeds of survivors and of the mask keys of drop-outs; the same again if asked again.

        Args:
            request: the announcement with `signatures` of at least `threshold` survivors under it.

        Raises:
            MessageError: reasons SURVIVORS (not what this site signed), SITES, FORMAT, LENGTH.
            VerificationError: reason SIG. StudyError: too few signatures.
        """
        fields = fields_of(request, "survivors", "dropouts", "signatures")
        announcement = {name: fields[name] for name in ("survivors", "dropouts")}
        survivors, dropouts = announced(self._terms, announcement)
        if self._said is None or self._said != announcement:
            raise MessageError(
                "Expected the survivors and dropouts that this site signed.", reason="SURVIVORS"
            )
        signatures = by_site(fields["signatures"], SIGNATURE_BYTES, "signature")
        signed = signed_set(self._terms, self._keys, announcement)
        check_signatures(self._terms, signed, signatures, survivors)
        return {
            "site": self.site,
            "seeds": {site: self._held[site][0].hex() for site in survivors},
            "masks": {site: self._held[site][1].hex() for site in dropouts},
        }


class Collector:
    """The coordinator's side of one sum: `add_*` takes one site's message of a stage, `close_*` ends the stage and
    returns what the sites get next. A message that is refused counts as not sent; the others go on.

    Raises:
        StudyError: on closing, fewer than `threshold` sites answered: there is no sum.
        MessageError: reasons ORDER (another stage), SITES, DUPLICATE, FORMAT, LENGTH, SHARE, CONTEXT, KEYS.
        VerificationError: reasons SIG, SHARE (shares of another secret), RANGE (no sum of such vectors).
    """

    def __init__(self, terms: SecureSum) -> None:
        self._terms, self._next = terms, "keys"
        self._keys: dict[str, Message] = {}
        self._commitments: dict[str, bytes] = {}
        self._boxes: dict[str, dict[str, str]] = {}
        self._masked: set[str] = set()
        self._sum: Words = np.zeros(terms.size, np.uint32)
        self._announcement: Message = {"survivors": [], "dropouts": []}
        self._signatures: dict[str, str] = {}
        self._shares: dict[str, dict[str, bytes]] = {}

    def _at(self, stage: str) -> None:
        if self._next != stage:
            raise _order(self._next, stage)

    def _new(self, stage: str, site: object, known: Container[str], seen: Container[str]) -> str:
        self._at(stage)
        if not isinstance(site, str) or site not in known:
            raise MessageError("Expected site=<a site that completed the stage before>.", reason="SITES")
        if site in seen:
            raise MessageError(f"Expected one message of site={site} in stage={stage}.", reason="DUPLICATE")
        return site

    def _close(self, stage: str, following: str, count: int) -> None:
        self._at(stage)
        self._terms.require(count, f"stage={stage}")
        self._next = following

    def add_keys(self, message: Message) -> None:
        """A site's `Party.keys`."""
        fields = key_message(self._terms, message)
        self._keys[self._new("keys", fields["site"], self._terms.index, self._keys)] = fields

    def close_keys(self) -> list[Message]:
        """Keys for all sites, the argument of `Party.shares`."""
        self._at("keys")
        found = all_keys(self._terms, list(self._keys.values()))
        self._keys, self._next = found, "shares"
        return list(found.values())

    def add_shares(self, message: Message) -> None:
        """A site's `Party.shares`."""
        fields = fields_of(message, "site", "commitment", "boxes")
        site = self._new("shares", fields["site"], self._keys, self._boxes)
        exactly(by_site(fields["boxes"], BOX_BYTES, "box"), self._keys.keys() - {site}, "boxes")
        self._commitments[site] = hex_bytes(fields["commitment"], KEY_BYTES, "commitment")
        self._boxes[site] = fields["boxes"]

    def close_shares(self) -> dict[str, dict[str, str]]:
        """Site -> its boxes by sender, the argument of its `Party.masked`."""
        self._close("shares", "masked", len(self._boxes))
        return {
            reader: {sender: boxes[reader] for sender, boxes in self._boxes.items() if sender != reader}
            for reader in self._boxes
        }

    def add_masked(self, site: str, words: Words) -> None:
        """A site's `Party.masked`, [size] uint32."""
        self._new("masked", site, self._boxes, self._masked)
        if words.dtype != np.uint32 or words.shape != (self._terms.size,):
            raise MessageError(f"Expected uint32 [{self._terms.size}] of site={site}.", reason="LENGTH")
        np.add(self._sum, words, out=self._sum)
        self._masked.add(site)

    def close_masked(self) -> Message:
        """Who survived and who dropped out, the argument of `Party.confirm`. Later vectors are refused."""
        self._close("masked", "confirm", len(self._masked))
        dropouts = sorted(self._boxes.keys() - self._masked)
        self._announcement = {"survivors": sorted(self._masked), "dropouts": dropouts}
        return dict(self._announcement)

    def add_confirmation(self, message: Message) -> None:
        """A site's `Party.confirm`."""
        fields = fields_of(message, "site", "signature")
        site = self._new("confirm", fields["site"], self._masked, self._signatures)
        signature = hex_bytes(fields["signature"], SIGNATURE_BYTES, "signature")
        signed = signed_set(self._terms, self._keys, self._announcement)
        verify_signature(self._terms.roster[site], CONFIRM, signed, signature)
        self._signatures[site] = fields["signature"]

    def close_confirm(self) -> Message:
        """The request for shares, the argument of `Party.unmask`."""
        self._close("confirm", "unmask", len(self._signatures))
        return {**self._announcement, "signatures": dict(self._signatures)}

    def add_unmasked(self, message: Message) -> None:
        """A site's `Party.unmask`."""
        fields = fields_of(message, "site", "seeds", "masks")
        site = self._new("unmask", fields["site"], self._masked, self._shares)
        seeds, masks = (by_site(fields[name], SHARE_BYTES, "share") for name in ("seeds", "masks"))
        exactly(seeds, self._announcement["survivors"], "shares of seeds")
        exactly(masks, self._announcement["dropouts"], "shares of mask keys")
        shares = seeds | masks
        for share in shares.values():
            if point(share, len(self._terms.roster))[0] != self._terms.index[site]:
                raise MessageError(f"Expected its own shares of site={site}.", reason="SHARE")
        self._shares[site] = shares

    def total(self) -> NDArray[np.int64]:
        """The sum [size] over the survivors' vectors, exact."""
        self._at("unmask")
        terms, survivors = self._terms, self._announcement["survivors"]
        terms.require(len(self._shares), "stage=unmask")
        words = self._sum.copy()
        for site in survivors:
            seed = self._joined(site)
            if derive(seed, terms, "commit") != self._commitments[site]:
                raise _wrong_share(site)
            blend(words, derive(seed, terms, "self"), -1)
        for site in self._announcement["dropouts"]:
            private = X25519PrivateKey.from_private_bytes(self._joined(site))
            if public_of(private) != self._keys[site]["mask_key"]:
                raise _wrong_share(site)
            for other in survivors:
                key = pair_key(private, self._keys[other]["mask_key"], terms, site, other)
                blend(words, key, terms.index[other] - terms.index[site])
        total = words.view(np.int32).astype(np.int64)
        if max(-int(total.min()), int(total.max())) > terms.bound * len(survivors):
            raise VerificationError(
                "Expected |sum| <= bound * survivors: some vector is not what its site masked.",
                reason="RANGE",
            )
        return total

    def _joined(self, site: str) -> bytes:
        shares = (shares[site] for shares in self._shares.values())
        return join_shares(shares, self._terms.threshold, len(self._terms.roster))


def _order(expected: str, found: str) -> MessageError:
    return MessageError(
        f"Expected stage={expected}, got stage={found}.",
        hint="Each stage is answered once; a sum that failed starts again under a new context.",
        reason="ORDER",
    )


def _wrong_share(site: str) -> VerificationError:
    return VerificationError(
        f"Expected shares that give the secret of site={site} which it committed to.",
        hint="That site, or one that returned a share of it, sent a wrong one.",
        reason="SHARE",
    )
