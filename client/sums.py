"""A site's part in the secure sums of a study (cytosae_core/privacy/secagg.py): one party for each sum, in memory.

A site that restarts has no party any more: it is a drop-out of that sum. What it masked once it never masks again,
not even after a restart: two sums over different sites would tell the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.canonical import canonical_json, parse_json, sha256_hex
from cytosae_core.config import StudyConfig
from cytosae_core.errors import MessageError
from cytosae_core.privacy import secagg_wire as wire
from cytosae_core.privacy.secagg import Party, SecureSum
from cytosae_core.tensors import pack_tensors, write_atomic

from .site import Site

Array = NDArray[Any]
Tensors = Mapping[str, Array]
Answers = dict[str, Array]


class SiteSums:
    """Answers the stages of every sum of one study; the same question gets the same answer.

    Args:
        site: its name, key and folder for state. study: the protocol, which says what is summed.

    Raises (all methods):
        MessageError: reason ORDER (no party: it restarted, or it masked before), SHAPE, and those of `Party`.
        VerificationError, StudyError: those of `Party`.
    """

    def __init__(self, site: Site, study: StudyConfig) -> None:
        self._site, self._study = site, study
        self._folder = site.state / study.digest[:16]
        self._parties: dict[str, Party] = {}
        self._terms: dict[str, SecureSum] = {}
        self._answers: dict[tuple[str, str, str], Answers] = {}

    def keys(self, kind: str, tensors: Tensors) -> Answers:
        """Stage 1: this site's keys, under the terms that the request's roster and the protocol make."""
        return self._once(kind, "keys", tensors, lambda: self._start(kind, tensors))

    def shares(self, kind: str, tensors: Tensors) -> Answers:
        """Stage 2: shares of this site's secrets, for the other sites."""

        def made() -> Answers:
            party, terms = self._party(kind)
            return dict(wire.shares_out(terms, party.shares(wire.all_keys_in(terms, _of(tensors, "keys")))))

        return self._once(kind, "shares", tensors, made)

    def masked(self, kind: str, tensors: Tensors, vector: NDArray[np.int64]) -> Answers:
        """Stage 3: the masked vector. That it was masked is on disk before this returns."""

        def made() -> Answers:
            party, terms = self._party(kind)
            boxes = wire.boxes_in(terms, _of(tensors, "boxes"))
            write_atomic(self._folder / f"summed-{kind}", b"masked\n")
            return {f"{kind}_masked": party.masked(vector, boxes)}

        return self._once(kind, "masked", tensors, made)

    def confirm(self, kind: str, tensors: Tensors) -> Answers:
        """Stage 4: a signature under who is in the sum."""
        party, terms = self._party(kind)
        said = party.confirm(wire.members_in(terms, _of(tensors, "members")))
        return {"confirmation": np.frombuffer(bytes.fromhex(said["signature"]), np.uint8).copy()}

    def unmask(self, kind: str, tensors: Tensors) -> Answers:
        """Stage 5: shares of what is to be taken off the sum."""
        party, terms = self._party(kind)
        _of(tensors, "members"), _of(tensors, "signatures")
        return dict(wire.unmasked_out(terms, party.unmask(wire.request_in(terms, tensors))))

    def _start(self, kind: str, tensors: Tensors) -> Answers:
        if (self._folder / f"summed-{kind}").exists() or kind in self._parties:
            raise _order("one sum of each kind in a study")
        roster = wire.roster_from(self._study.sites, _of(tensors, "roster"))
        self._pin(roster)
        terms = wire.terms_of(self._study, kind, roster)
        party = Party(terms, self._site.name, self._site.key)
        self._parties[kind], self._terms[kind] = party, terms
        return {"sum_keys": wire.keys_out(party.keys())}

    def _pin(self, roster: Mapping[str, str]) -> None:
        """The first roster that came is the study's: later sums must name the same keys."""
        path, found = self._folder / "roster.json", canonical_json(dict(roster))
        if not path.exists():
            write_atomic(path, found)
        elif parse_json(path.read_bytes()) != dict(roster):
            raise MessageError("Expected the roster of this study's first sum.", reason="KEYS")

    def _party(self, kind: str) -> tuple[Party, SecureSum]:
        if kind not in self._parties:
            raise _order("a site that was asked for keys since it started")
        return self._parties[kind], self._terms[kind]

    def _once(self, kind: str, stage: str, tensors: Tensors, made: Callable[[], Answers]) -> Answers:
        """The answer of a stage that a party gives once, kept for a repeat of the same question."""
        asked = kind, stage, sha256_hex(pack_tensors(dict(tensors)))
        if asked not in self._answers:
            self._answers[asked] = made()
        return self._answers[asked]


def _of(tensors: Tensors, name: str) -> Array:
    if name not in tensors:
        raise MessageError(f"Expected tensor={name} in a message of a secure sum.", reason="SHAPE")
    return tensors[name]


def _order(expected: str) -> MessageError:
    return MessageError(f"Expected {expected}.", hint="This site is a drop-out of the sum.", reason="ORDER")
