"""One step with all sites: send, wait, verify, fold in one at a time; quorum, deadline, retries, typed faults."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cytosae_core.egress import Reply
from cytosae_core.errors import CytosaeError, StudyError

from .desk import Ask, Desk, Sent
from .transport import Incoming, Transport

POLL_S = 0.2
# A site that could not be reached or was busy is asked again after this long.
RETRY_PAUSE_S = 1.0
# Refusals that a new request may cure; all other refusals are final for the step.
RETRIED = frozenset({"expired", "busy", "relay", "unreachable", "order"})
# An officer must look first: asked again until the deadline, this many seconds apart.
APPROVAL_PAUSE_S = 15.0


@dataclass
class Outcome:
    """Who answered, and the code of everybody who did not."""

    answered: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Waiting:
    site: str
    tries: int = 0
    not_before: float = 0.0


@dataclass
class _Pending:
    sent: Sent
    tries: int


class Exchange:
    """Runs single steps. `report` is told (site, state) for progress displays: sent, done or a fault code."""

    def __init__(
        self,
        desk: Desk,
        transport: Transport,
        report: Callable[[str, str], None] = lambda site, state: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._desk, self._transport = desk, transport
        self._report, self._clock = report, clock
        self._rules = desk.study.rounds

    def run(
        self,
        sites: Iterable[str],
        ask: Callable[[str], Ask],
        accept: Callable[[Reply], None],
        *,
        quorum: int,
        keep: Callable[[str, bytes], None] = lambda site, data: None,
    ) -> Outcome:
        """Ask every site; `accept` gets each good reply as it comes, `keep` its bytes once it was accepted.

        Raises:
            StudyError: fewer than `quorum` sites answered before the deadline. What was accepted is kept by
            the caller's checkpoint; the study can be resumed.
        """
        outcome = Outcome()
        waiting = deque(_Waiting(site) for site in sites)
        pending: dict[str, _Pending] = {}
        end = self._clock() + self._rules.deadline_s
        while (waiting or pending) and self._clock() < end:
            for _ in range(len(waiting)):
                item = waiting.popleft()
                if len(pending) < self._transport.in_flight and item.not_before <= self._clock():
                    ticket, entry = self._send(item, ask(item.site))
                    pending[ticket] = entry
                else:
                    waiting.append(item)
            for answer in self._transport.poll(min(POLL_S, max(0.0, end - self._clock()))):
                if (entry_or_none := pending.pop(answer.ticket, None)) is not None:
                    self._settle(answer, entry_or_none, accept, keep, outcome, waiting)
        for entry in pending.values():
            self._desk.unanswered(entry.sent, "deadline")
        for site in [entry.sent.site for entry in pending.values()] + [item.site for item in waiting]:
            self._fault(outcome, site, "deadline")
        if len(outcome.answered) < quorum:
            raise StudyError(
                f"Expected quorum={quorum} sites to answer, got {len(outcome.answered)}: {outcome.faults}.",
                hint="Ask the named sites to look at their logs, then resume.",
            )
        return outcome

    def _send(self, item: _Waiting, ask: Ask) -> tuple[str, _Pending]:
        request, sent = self._desk.request(item.site, ask)
        self._report(item.site, "sent")
        ticket = self._transport.send(item.site, request, self._rules.deadline_s)
        return ticket, _Pending(sent, item.tries)

    def _settle(
        self,
        answer: Incoming,
        entry: _Pending,
        accept: Callable[[Reply], None],
        keep: Callable[[str, bytes], None],
        outcome: Outcome,
        waiting: deque[_Waiting],
    ) -> None:
        site = entry.sent.site
        code = self._opened(answer, entry.sent, accept, keep)
        if not code:
            outcome.answered.append(site)
            self._report(site, "done")
        elif code == "approval":
            waiting.append(_Waiting(site, entry.tries, self._clock() + APPROVAL_PAUSE_S))
            self._report(site, "approval")
        elif code in RETRIED and entry.tries < self._rules.retries:
            waiting.append(_Waiting(site, entry.tries + 1, self._clock() + RETRY_PAUSE_S))
        else:
            self._fault(outcome, site, code)

    def _opened(
        self,
        answer: Incoming,
        sent: Sent,
        accept: Callable[[Reply], None],
        keep: Callable[[str, bytes], None],
    ) -> str:
        """Open and accept a reply; the code of what went wrong, or nothing. What was not used has a `fault` entry."""
        code = answer.fault
        if answer.data is not None:
            try:
                reply, payload = self._desk.open_reply(answer.data, sent)
                if reply.status == "refused":
                    return reply.code
                accept(reply)
                keep(reply.site, payload)
                return ""
            except CytosaeError as error:
                code = error.code
        self._desk.unanswered(sent, code)
        return code

    def _fault(self, outcome: Outcome, site: str, code: str) -> None:
        outcome.faults[site] = code
        self._report(site, code)
