"""`cytosae site preview`: a dry round on the site's own data. The same steps and the same gate as in a study, with
made-up requests, in a temporary state: nothing is logged, spent, signed or sent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.config import StudyConfig
from cytosae_core.egress import GATE, Blocked, inspect
from cytosae_core.errors import CytosaeError
from cytosae_core.policy import demand, tightened
from cytosae_core.sae.first import first_dictionary
from cytosae_core.sae.scale import TokenScale

from . import private
from .approval import describe_outgoing
from .events import Events
from .facts import site_facts
from .scoring import describe
from .site import Site
from .steps import Answer, Steps

Array = NDArray[Any]
Json = dict[str, Any]


@dataclass(frozen=True)
class Preview:
    """What would leave in one round of every kind, or where the door would stop it."""

    site: Site
    study: StudyConfig
    start: Mapping[str, Array]

    def run(self, tick: Callable[[int, int], None] = lambda done, total: None) -> Json:
        """The dry round as JSON values; `stopped` names the first step that the door stopped, else None."""
        with tempfile.TemporaryDirectory() as folder:
            site = replace(self.site, state=Path(folder))
            (site.state / self._shown.digest[:16]).mkdir()
            policy = tightened(site.policy, self._shown)
            steps = Steps(site, self._shown, policy, Events(lambda event: None))
            messages: list[Json] = []
            stopped: Json | None = None
            kinds = self._kinds(steps)
            for index, (kind, make) in enumerate(kinds):
                tick(index, len(kinds))
                try:
                    messages.append(self._message(steps, kind, make()))
                except Blocked as error:
                    stopped = {
                        "kind": kind,
                        "step": error.step,
                        "gate": GATE[error.step - 1],
                        "why": str(error),
                    }
                    break
                except CytosaeError as error:
                    stopped = {"kind": kind, "step": 0, "gate": "before the door", "why": str(error)}
                    break
            tick(len(kinds), len(kinds))
        most = demand(self.study)
        return {
            "study": self.study.name,
            "protocol": self.study.digest,
            "policy": policy.name,
            "policy_sha256": self.site.policy.digest,
            "profile": policy.profile,
            "min_units": policy.min_units,
            "unit": self.site.unit,
            "relay_isolation": self.site.relay_isolation,
            "whole_study": {"rounds": most.rounds, "messages": most.messages, "bytes": most.bytes},
            "messages": messages,
            "stopped": stopped,
        }

    @property
    def _shown(self) -> StudyConfig:
        """The study, whose sums are shown here as they are before the masks: those would hide them here as well."""
        return replace(self.study, privacy=replace(self.study.privacy, secure_aggregation=False))

    def _private_kinds(self, steps: Steps) -> list[tuple[str, Callable[[], Answer]]]:
        """Under `dp`. Noise is drawn and thrown away; the ledger is not asked. The third moment needs all sites."""
        kinds: list[tuple[str, Callable[[], Answer]]] = [("hello", lambda: private.hello(steps, {}, {}))]
        if not self.start:
            return kinds
        if self.study.kind == "train":
            kinds.append(("second", lambda: private.second(steps, self._public(), {"round": 0})))
        return [*kinds, ("describe", lambda: private.describe(steps, self._public(), {"round": 0}))]

    def _public(self) -> dict[str, Array]:
        """The start file's dictionary with room for rows that may be added."""
        rows = np.zeros((self.study.dictionary.n, self.study.encoder.d), np.float32)
        given = self.start["dictionary"]
        rows[: len(given)] = given
        return {**self.start, "dictionary": rows}

    def _kinds(self, steps: Steps) -> list[tuple[str, Callable[[], Answer]]]:
        if self.study.profile == "dp":
            return self._private_kinds(steps)
        kinds: list[tuple[str, Callable[[], Answer]]] = [("hello", lambda: steps.hello({}, {}))]
        if self.study.kind == "train":
            kinds.append(("moments", lambda: steps.moments({}, {})))
        if not self.start and (self.study.kind == "validate" or self.study.dictionary.init != "random"):
            return kinds
        if self.study.kind == "train":
            kinds += [
                ("begin", lambda: steps.begin(self._tensors(steps), {"round": 0})),
                ("round", lambda: steps.round(self._tensors(steps), {"round": 1})),
            ]
        return [*kinds, ("describe", lambda: describe(steps, self._tensors(steps), {"full": True}))]

    def _message(self, steps: Steps, kind: str, answer: Answer) -> Json:
        context = {
            "study": self.study.name,
            "protocol": self.study.digest,
            "site": self.site.name,
            "kind": kind,
            "round": int(kind == "round"),
            "request_sha256": "0" * 64,
        }
        facts = site_facts(self.site) if kind == "hello" else {}
        outgoing = inspect(
            context, answer.releases, facts, steps.policy, self.study.dims, answer.leakage, answer.private
        )
        return describe_outgoing(outgoing)

    def _tensors(self, steps: Steps) -> dict[str, Array]:
        """The first dictionary as the study would send it, with this site's own mean and scale."""
        if self.study.kind == "validate":
            return {
                "mean": np.zeros(self.study.encoder.d, np.float32),
                "scale": np.ones(1, np.float32),
                **self.start,
            }
        sums = steps.moments({}, {}).releases
        scale = TokenScale.from_sums(
            sums["token_sum"].values.astype(np.float64),
            float(sums["token_square"].values[0]),
            float(sums["token_count"].values[0]),
        )
        rows = first_dictionary(self.study, self.start, scale)
        return {"dictionary": rows, "mean": scale.mean, "scale": np.array([scale.scale], np.float32)}
