"""The site's local log: events of a closed set, with numbers. No free text, so nothing of the data can be in it.

A path, a file name, a patient id or the text of an exception cannot be written here, not even by mistake: an event
is a code of `EVENTS`, words of closed sets and integers. Local staff reads the sentence that belongs to the code.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from cytosae_core.errors import WIRE_CODES, CytosaeError

EVENTS = {
    "serving": "The agent answers requests of one study.",
    "answered": "A request was answered; what left is in the log and in `cytosae site preview`.",
    "refused": "A signed request was refused; the coordinator is told the code only.",
    "unverified": "Bytes arrived that the study key did not sign. Nobody was answered.",
    "failed": "A fault of the program or the machine while answering; nothing left. IT looks at disk, memory.",
    "rejected": "The dictionary that came did not pass the gate (docs/security.md); it was not used.",
    "blocked": "The door stopped a reply. Nothing left, and nothing will until an officer clears it.",
    "stopped": "Refused: the door stopped an earlier reply. See `cytosae site approve --clear`.",
    "rows_dominated": "Dictionary rows withheld because one patient dominates them.",
    "rows_readable": "Dictionary rows withheld because they point at a single token.",
    "suppressed": "Numbers withheld because too few patients stand behind them.",
    "waiting": "A reply waits for an officer: `cytosae site approve`.",
    "approved": "An officer approved a reply.",
    "withdrawn": "The site or patients left the study; payloads were deleted.",
    "isolation_none": "relay isolation: none. Agent and relay share one user: for development only.",
    "incident": "The other party's log contradicts what it showed before. Call the study's auditor.",
    "warning": "Something in this environment weakens the boundary (docs/relay.md).",
}
KINDS = frozenset(
    {
        *("hello", "moments", "begin", "round", "describe", "score", "close", "unknown"),
        *("second", "third", "sum_keys", "sum_shares", "sum_masked", "sum_confirm", "sum_unmask"),
    }
)
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,23}\Z")


@dataclass(frozen=True)
class Event:
    """One event: its code, the words and numbers that belong to it, and when (unix seconds)."""

    code: str
    values: dict[str, int | str]
    at: int

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({"at": self.at, "event": self.code, **self.values}, sort_keys=True)


class Events:
    """Where typed events go. Call it with a code and numbers.

    Args:
        sink: gets each event; the default writes one JSON line to standard error.
    """

    def __init__(self, sink: Callable[[Event], None] | None = None) -> None:
        self._sink = sink or (lambda event: print(event.to_json(), file=sys.stderr, flush=True))

    def __call__(
        self, code: str, *, kind: str = "", error: CytosaeError | None = None, **numbers: int
    ) -> None:
        """Write one event. What is not in a closed set is left out, never written as it came."""
        values: dict[str, int | str] = {name: int(value) for name, value in numbers.items()}
        if kind:
            values["kind"] = kind if kind in KINDS else "unknown"
        if error is not None:
            values["code"] = error.code if error.code in WIRE_CODES else "internal"
            values["reason"] = error.reason if _REASON.match(error.reason) else "OTHER"
        self._sink(Event(code if code in EVENTS else "failed", values, int(time.time())))
