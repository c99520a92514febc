"""The coordinator's part in a secure sum: what each stage asks of a site, and what becomes of the answers. No IO.

    keys -> shares -> masked -> confirm -> unmask -> total

The same object serves a running study, one that goes on after a crash (kept replies are accepted again) and an
auditor who sums up once more from the bundle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.config import StudyConfig
from cytosae_core.errors import MessageError, StudyError, VerificationError
from cytosae_core.privacy import secagg_wire as wire
from cytosae_core.privacy.secagg import Collector

Array = NDArray[Any]
Tables = Mapping[str, Mapping[str, Array]]
STAGES = ("keys", "shares", "masked", "confirm", "unmask")


def message_of(kind: str, stage: str) -> tuple[str, int]:
    """Kind and round of the request of a stage of a sum."""
    return f"sum_{stage}", wire.SUMS.index(kind)


class StudySum:
    """One sum, `second` or `third`, of one study.

    Args:
        roster: site -> its public signing key, of all sites that enrolled.
    """

    def __init__(self, study: StudyConfig, kind: str, roster: Mapping[str, str]) -> None:
        if missing := sorted(set(study.sites) - set(roster)):
            raise StudyError(f"Expected keys of all sites for a secure sum, got none of {missing}.")
        self._kind, self.terms = (
            kind,
            wire.terms_of(study, kind, {site: roster[site] for site in study.sites}),
        )
        self._collector = Collector(self.terms)
        self._asked: Callable[[str], dict[str, Array]] = lambda site: {"roster": wire.roster_rows(self.terms)}
        self.sites = 0

    def asked(self, site: str) -> dict[str, Array]:
        """Tensors of the request of this stage for a site; `masked` has the dictionary beside them."""
        return self._asked(site)

    def accept(self, stage: str, site: str, tensors: Mapping[str, Array]) -> None:
        """Take a site's answer. Raises MessageError or VerificationError: it counts as not sent."""
        terms, collector = self.terms, self._collector
        if stage == "keys":
            collector.add_keys(wire.keys_in(terms, site, tensors["sum_keys"]))
        elif stage == "shares":
            collector.add_shares(wire.shares_in(terms, site, tensors))
        elif stage == "masked":
            collector.add_masked(site, tensors[f"{self._kind}_masked"])
        elif stage == "confirm":
            collector.add_confirmation({"site": site, "signature": tensors["confirmation"].tobytes().hex()})
        else:
            collector.add_unmasked(wire.unmasked_in(terms, site, tensors))

    def close(self, stage: str) -> None:
        """End a stage. Raises StudyError: too few sites answered, there is no sum."""
        terms, collector = self.terms, self._collector
        asked: dict[str, Array] = {}
        if stage == "keys":
            asked = {"keys": wire.all_keys_out(terms, collector.close_keys())}
        elif stage == "shares":
            boxes = collector.close_shares()
            self._asked = lambda site: {"boxes": wire.boxes_out(terms, boxes.get(site, {}))}
            return
        elif stage == "masked":
            announced = collector.close_masked()
            self.sites = len(announced["survivors"])
            asked = {"members": wire.members_out(terms, announced)}
        elif stage == "confirm":
            asked = dict(wire.request_out(terms, collector.close_confirm()))
        self._asked = lambda site: asked

    def total(self) -> NDArray[np.int64]:
        """The sum over `sites` sites. Raises StudyError or VerificationError."""
        return self._collector.total()


def sum_again(
    study: StudyConfig, kind: str, roster: Mapping[str, str], replies: Callable[[str, int], Tables]
) -> StudySum | None:
    """A finished sum from its replies, by (kind, round); None when none was begun. What the study's run refused is
    refused again, and counts as not sent.

    Raises:
        StudyError: the replies give no sum.
    """
    if not replies(*message_of(kind, "keys")):
        return None
    made = StudySum(study, kind, roster)
    for stage in STAGES:
        for site, tensors in sorted(replies(*message_of(kind, stage)).items()):
            with contextlib.suppress(MessageError, VerificationError, KeyError):
                made.accept(stage, site, tensors)
        if stage != STAGES[-1]:
            made.close(stage)
    return made
