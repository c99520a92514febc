"""One site's side of a study: signed request bytes in, sealed reply bytes out. No network, no Flower.

    signature -> study, site, time, nonce, order -> coordinator's log -> base-model gate -> the step -> the one door

A step is a function of the request and the site's tokens only, so a site that was killed answers a repeated
request with the same numbers. On disk are: the requests seen, the site's log, its budget, the row set that `begin`
fixes before round 1, and the last dictionary that passed the gate.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cytosae_core.canonical import canonical_json
from cytosae_core.config import StudyConfig
from cytosae_core.egress import Blocked, Door, Question
from cytosae_core.envelope import REQUEST, Envelope, unpack
from cytosae_core.errors import CytosaeError, EgressError, MessageError, VerificationError
from cytosae_core.lineage import dictionary_digest, job_of
from cytosae_core.policy import SitePolicy, tightened
from cytosae_core.tensors import unpack_tensors, write_atomic

from . import private
from .approval import Approvals
from .budget import SiteBudget
from .events import Events
from .facts import site_facts
from .memory import RequestMemory
from .record import SiteRecord
from .scoring import describe, score
from .site import Site
from .steps import Answer, Steps, close

Array = NDArray[Any]
CLOCK_SKEW_S = 300
# Refusals that are logged and answered in an hour; beyond that only the local log grows (relays may replay on).
MAX_REFUSALS_PER_HOUR = 200


@dataclass
class Session:
    """Answers requests of one study for one site.

    Args:
        site: the site's data, policy and key.
        study: the protocol that the site agreed to.
        coordinator: the study key's public part, pinned when joining, 64 hex digits.
        events: the local log (codes and numbers); stays at the site.
    """

    site: Site
    study: StudyConfig
    coordinator: str
    events: Events = field(default_factory=lambda: Events(lambda event: None))
    _steps: Steps | None = None
    _refusals: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.site.policy.check_simulation(self.site.simulation and self.study.simulation)
        self.site.policy.check_study_key(self.coordinator)
        self.policy: SitePolicy = tightened(self.site.policy, self.study)
        folder = self.site.state / self.study.digest[:16]
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._stop_file, self._left_file = folder / "stopped", folder / "withdrawn"
        write_atomic(folder / "study.json", canonical_json(self.study.to_dict()))
        write_atomic(folder / "site.json", canonical_json({"site": self.site.name}))
        self._memory = RequestMemory(folder / "requests.sqlite")
        self._record = SiteRecord(self.site, self.study, self.coordinator)
        self._budget = SiteBudget(self.site, self.study, Approvals(folder, self.site.policy))
        self._budget.verify(self._record.private_releases())
        self._door = Door(self.policy, self.study.dims, self.site.key, self._budget, self._record)

    @property
    def _table(self) -> Mapping[str, Step]:
        """What this study may ask for."""
        return private.STEPS if self.study.profile == "dp" else STEPS

    @property
    def steps(self) -> Steps:
        """The site's data through this study, made on first use."""
        if self._steps is None:
            self._steps = Steps(self.site, self.study, self.policy, self.events)
        return self._steps

    @property
    def state(self) -> Path:
        """Folder of this study's state at the site."""
        return self.site.state / self.study.digest[:16]

    def close(self) -> None:
        """Release the files of this study's state."""
        with self._lock:
            self._memory.close()
            self._budget.close()
            self._record.close()

    def handle(self, request: bytes) -> bytes:
        """Answer one request. Empty bytes when nobody who holds the study key can have sent it.

        Every fault becomes a logged, sealed refusal with one code; texts stay inside the process.
        """
        with self._lock:
            try:
                envelope = unpack(request, REQUEST, self.coordinator)
                question = self._question(envelope)
            except CytosaeError as error:
                self.events("unverified", error=error, bytes=len(request))
                return b""
            try:
                return self._reply(envelope, question)
            except (CytosaeError, OSError):  # the log takes no entry of a refusal, so nobody is told
                self.events("failed")
                return b""

    def _question(self, envelope: Envelope) -> Question:
        header = envelope.header
        kind, number = header.get("kind"), header.get("round")
        context = {
            "study": self.study.name,
            "protocol": self.study.digest,
            "site": self.site.name,
            "kind": kind if kind in self._table else "unknown",
            "round": number if _is_count(number) else 0,
            "request_sha256": envelope.sha256,
        }
        reply_key = header.get("reply_key")
        if not isinstance(reply_key, str) or len(reply_key) != 64:
            raise MessageError("Expected a reply key in a request.", reason="SCHEMA")
        return Question(context, reply_key, str(header.get("job"))[:64], str(header["body_sha256"]))

    def _reply(self, envelope: Envelope, question: Question) -> bytes:
        kind, number = question.context["kind"], question.context["round"]
        try:
            self._check(envelope)
            reply = self._answer(envelope, question)
            self.events("answered", kind=kind, round=number, bytes=len(reply))
            return reply
        except Blocked as error:
            return self._blocked(question, error)
        except CytosaeError as error:
            self.events("refused", kind=kind, error=error, round=number)
            if error.code in ("fork", "rollback"):
                self.events("incident", error=error)
                self._record.incident(error.code, envelope.body)
            return self._refuse(question, error.code)
        except Exception:  # nothing of an unforeseen fault may be told or written, not even its type
            self.events("failed", kind=kind, round=number)
            return self._refuse(question, "internal")

    def _blocked(self, question: Question, error: Blocked) -> bytes:
        """Block, log, stop: after a violation nothing leaves until an officer clears it."""
        kind, number = question.context["kind"], question.context["round"]
        if error.code not in ("approval", "budget"):  # first: it must hold also when the log takes no entry
            write_atomic(self._stop_file, b"stopped\n")
        if error.code == "approval":
            self.events("waiting", kind=kind, round=number)
        else:
            self.events("blocked", kind=kind, error=error, round=number, step=error.step)
            self._record.blocked(question.context, error.code, error.step)
        return self._refuse(question, error.code)

    def _refuse(self, question: Question, code: str) -> bytes:
        now = time.monotonic()
        self._refusals = [at for at in self._refusals if now - at < 3600] + [now]
        if len(self._refusals) > MAX_REFUSALS_PER_HOUR:
            return b""
        self._record.refused(question.context, code)
        with contextlib.suppress(CytosaeError):  # an unusable reply key: there is nobody to tell
            return self._door.refuse(question, code)
        return b""

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
                raise MessageError(f"Expected a request with {name}={value!r}.", reason="BIND")
        issued, expires = _count(header, "issued"), _count(header, "expires")
        if not issued - CLOCK_SKEW_S <= time.time() <= expires:
            raise MessageError(
                "Expected a request that is valid now.",
                hint="Compare clocks.",
                code="expired",
                reason="CLOCK",
            )
        if header.get("kind") not in self._table or not _is_count(header.get("round")):
            raise MessageError("Expected a known kind of request.", reason="MSG_TYPE")
        if not isinstance(header.get("params"), dict) or not set(header["params"]) <= PARAMS:
            raise MessageError(f"Expected params in {sorted(PARAMS)}.", reason="MSG_TYPE")
        job = job_of(header["kind"], header["round"], header["body_sha256"], header["params"])
        if header.get("job") != job:
            raise MessageError("Expected the job id of what is asked.", reason="BIND")
        self._memory.accept(str(header.get("nonce")), _count(header, "seq"), expires)

    def _answer(self, envelope: Envelope, question: Question) -> bytes:
        if self._left_file.exists():
            raise EgressError("Expected a site that takes part.", code="withdrawn", reason="WITHDRAWN")
        if self._stop_file.exists():
            self.events("stopped")
            raise EgressError("Expected a site that was not stopped.", reason="STOPPED")
        self.site.policy.check_time(time.time())
        header = envelope.header
        kind = str(header["kind"])
        self._record.witness(header)
        tensors = unpack_tensors(envelope.body)
        if header.get("base", "") != dictionary_digest(tensors):
            raise VerificationError("Expected the dictionary that the request names.", reason="LINEAGE")
        params = {**header["params"], "round": header["round"]}
        answer = self._step(kind, tensors, params, question, str(header["body_sha256"]))
        facts = site_facts(self.site) if kind == "hello" else {}
        return self._door.answer(question, answer.releases, facts, answer.leakage, answer.private)

    def _step(
        self,
        kind: str,
        tensors: Mapping[str, Array],
        params: Mapping[str, Any],
        question: Question,
        body_sha256: str,
    ) -> Answer:
        try:
            answer = self._table[kind](self.steps, tensors, params)
        except EgressError as error:
            if error.reason == "SELF_ATTACK":
                raise Blocked(5, *error.args, hint=error.hint, reason=error.reason) from error
            if error.code == "base":
                self.events("rejected", kind=kind, error=error, round=params["round"])
                self._record.rejected(question.context, body_sha256, self.steps.last_checks)
            raise
        if answer.checks:
            self._record.accepted(question.context, body_sha256, answer.checks)
        return answer


PARAMS = frozenset({"full", "peers", "report_sha256"})
Step = Callable[[Steps, Mapping[str, Array], Mapping[str, Any]], Answer]
STEPS: dict[str, Step] = {
    "hello": Steps.hello,
    "moments": Steps.moments,
    "begin": Steps.begin,
    "round": Steps.round,
    "describe": describe,
    "score": score,
    "close": close,
}


def _count(header: Mapping[str, Any], name: str) -> int:
    value = header.get(name)
    if not _is_count(value):
        raise MessageError(f"Expected {name} to be an integer that is not negative.", reason="RANGE")
    return int(value)  # type: ignore[arg-type]  # it is one


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40
