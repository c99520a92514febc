"""One site's side of a study: signed request bytes in, sealed reply bytes out. No network, no Flower.

    open request -> check study, site, time -> do the step -> the one door (egress.seal) -> reply

A step is a function of the request and the site's tokens only, so a site that was killed answers a repeated
request with the same numbers. The only state on disk is the row set that `begin` fixes before round 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from numpy.typing import NDArray

from cytosae_core import egress
from cytosae_core.canonical import sha256_hex
from cytosae_core.config import StudyConfig
from cytosae_core.envelope import REQUEST, Envelope, unpack
from cytosae_core.errors import CytosaeError, MessageError, StudyError
from cytosae_core.tensors import unpack_tensors

from .scoring import describe, score
from .site import Site
from .steps import Releases, Steps

Array = NDArray[Any]


@dataclass
class Session:
    """Answers requests of one study for one site.

    Args:
        site: the site's data, policy and key.
        study: the protocol that the site agreed to.
        coordinator: the study key's public part, pinned when joining, 64 hex digits.
        log: told about every answer and refusal, in words for local staff; stays at the site.
    """

    site: Site
    study: StudyConfig
    coordinator: str
    log: Callable[[str], None] = lambda text: None
    _steps: Steps | None = None
    _seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.site.policy.check_simulation(self.site.simulation and self.study.simulation)
        if self.study.kind == "train" and self.site.policy.profile != "masked":
            raise StudyError("Expected a site policy that allows updates for kind=train.")
        if self.site.policy.disclosure_control and self.site.policy.min_units < self.study.min_units:
            raise StudyError(
                "Expected a site policy at least as strict as the study.", hint="Raise min_units."
            )

    @property
    def steps(self) -> Steps:
        """The site's data through this study, made on first use."""
        if self._steps is None:
            self._steps = Steps(self.site, self.study, self.log)
        return self._steps

    def handle(self, request: bytes) -> bytes:
        """Answer one request. Every fault becomes a signed refusal with a code; texts stay in the local log."""
        context: dict[str, Any] = {
            "study": self.study.name,
            "protocol": self.study.digest,
            "site": self.site.name,
        }
        context |= {"kind": "unknown", "round": 0, "request_sha256": sha256_hex(request)}
        try:
            envelope = unpack(request, REQUEST, self.coordinator)
            self._check(envelope)
            context |= {"kind": envelope.header["kind"], "round": envelope.header["round"]}
            releases, facts = self._step(envelope)
            reply = egress.seal(context, releases, facts, self.site.policy, self.study.dims, self.site.key)
            self.log(f"answered {context['kind']} round {context['round']}: {len(reply)} bytes left")
            return reply
        except CytosaeError as error:
            self.log(f"refused {context['kind']} round {context['round']} ({error.code}): {error}")
            return egress.refuse(context, error.code, self.site.key)
        except Exception as error:  # nothing of an unforeseen fault may leave; local staff sees its type
            self.log(f"failed {context['kind']} round {context['round']}: {type(error).__name__}: {error}")
            return egress.refuse(context, "internal", self.site.key)

    def _check(self, envelope: Envelope) -> None:
        header = envelope.header
        expected = {
            "study": self.study.name,
            "protocol": self.study.digest,
            "site": self.site.name,
            "simulation": self.study.simulation,
        }
        for name, value in expected.items():
            if header.get(name) != value:
                raise MessageError(f"Expected a request with {name}={value!r}, got {header.get(name)!r}.")
        now = time.time()
        if not float(header.get("issued", 0)) - 300 <= now <= float(header.get("expires", 0)):
            raise MessageError(
                "Expected a request that is valid now.", hint="Compare clocks.", code="expired"
            )
        if str(header.get("nonce")) in self._seen:
            raise MessageError("Expected a request that was not answered before.", code="replay")
        if header.get("kind") not in STEPS or not isinstance(header.get("round"), int):
            raise MessageError("Expected a known kind of request.")
        self._seen.add(str(header.get("nonce")))

    def _step(self, envelope: Envelope) -> tuple[Releases, dict[str, str]]:
        tensors = unpack_tensors(envelope.body)
        params = envelope.header.get("params", {})
        if not isinstance(params, dict):
            raise MessageError("Expected params to be a table.")
        kind = str(envelope.header["kind"])
        facts = self._facts() if kind == "hello" else {}
        return STEPS[kind](self.steps, tensors, {**params, "round": envelope.header["round"]}), facts

    def _facts(self) -> dict[str, str]:
        try:
            software = version("cytosae-federation")
        except PackageNotFoundError:
            software = "uninstalled"
        return {
            "software": software,
            "encoder_digest": self.site.store.encoder_digest,
            "policy": self.site.policy.name,
            "policy_digest": self.site.policy.digest,
            "unit": self.site.unit,
            "relay_isolation": self.site.relay_isolation,
        }


STEPS: dict[str, Callable[[Steps, Mapping[str, Array], Mapping[str, Any]], Releases]] = {
    "hello": Steps.hello,
    "moments": Steps.moments,
    "begin": Steps.begin,
    "round": Steps.round,
    "describe": describe,
    "score": score,
}
