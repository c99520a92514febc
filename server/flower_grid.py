"""The transport port over a real SuperLink: requests and replies as opaque bytes in Flower messages.

A site's name is the name under which its SuperNode was registered (`flwr supernode register --name`). Replies
are asked for in a loop of our own: Flower's `send_and_receive` sleeps 3 s between questions and ends only when
all have answered, so one slow site would hold up the round.

One exception to the port's promise: a call that moves bytes takes as long as they take, and while the
SuperLink is down Flower's client waits for it. The round then stands still and goes on when it is back;
replies that came in meanwhile still count.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from cytosae_core.errors import StudyError

from .transport import Incoming

# The same record as in client/flower_blob.py: raw bytes under a stype of our own, cut into chunks by Flower.
RECORD, ARRAY, STYPE = "cytosae", "blob", "cytosae.blob"
# Flower's error codes (flwr 1.41 common/constant.py): 3 message, 4 reply, 5 node not available.
UNREACHABLE_CODES = frozenset({3, 4, 5})


# Requests out at once: every site works at its own place, so the slowest decides, not the number.
IN_FLIGHT = 64


@dataclass(frozen=True)
class _Pending:
    """A request that waits for its reply. `deadline` is in seconds of the monotonic clock."""

    ticket: str
    site: str
    node_id: int
    deadline: float


class FlowerGrid:
    """`Transport` over Flower's grid. For one thread.

    Args:
        grid: the grid that Flower hands to the ServerApp.
        poll_s: seconds between two questions for replies.
        ttl_s: longest life of a request, seconds; Flower drops it and its reply afterwards.
    """

    def __init__(self, grid: Grid, *, poll_s: float = 0.2, ttl_s: float) -> None:
        self._grid, self._poll_s, self._ttl_s = grid, poll_s, ttl_s
        self.in_flight = IN_FLIGHT
        self._pending: dict[str, _Pending] = {}
        self._ready: list[Incoming] = []
        self._count = 0

    def sites(self) -> tuple[str, ...]:
        """Names of the sites whose SuperNode is online, sorted.

        Raises:
            StudyError: two online SuperNodes are registered under one name.
        """
        return tuple(sorted(self._nodes()))

    def _nodes(self) -> dict[str, int]:
        nodes = [(str(node.name), int(node.node_id)) for node in self._grid.get_nodes()]
        names = [name for name, _ in nodes]
        if len(set(names)) < len(names):
            raise StudyError(
                f"Expected one SuperNode per site name, got {sorted(names)}.",
                hint="Unregister the old one: flwr supernode unregister.",
            )
        return dict(nodes)

    def send(self, site: str, request: bytes, deadline_s: float) -> str:
        """Push one request; returns its ticket. A site that is not online is answered by `poll`."""
        self._count += 1
        ticket = f"flower-{self._count}"
        deadline = time.monotonic() + deadline_s
        node_id = self._nodes().get(site)
        message_id = None if node_id is None else self._push(node_id, request, deadline_s)
        if node_id is None or not message_id:
            self._ready.append(Incoming(ticket, site, None, "unreachable"))
        else:
            self._pending[message_id] = _Pending(ticket, site, node_id, deadline)
        return ticket

    def _push(self, node_id: int, request: bytes, deadline_s: float) -> str | None:
        blob = Array("uint8", (len(request),), STYPE, request)
        content = RecordDict({RECORD: ArrayRecord({ARRAY: blob})})
        ttl = min(deadline_s, self._ttl_s)
        message = Message(content, dst_node_id=node_id, message_type="query", ttl=ttl)
        ids = list(self._grid.push_messages([message]))
        return ids[0] if ids else None

    def poll(self, wait_s: float) -> list[Incoming]:
        """Answers that arrived, waiting at most `wait_s` seconds (and the time of one transfer) for the first."""
        end = time.monotonic() + wait_s
        while True:
            answers, self._ready = self._ready, []
            # Replies first: what arrived while the SuperLink was away is not late.
            answers += self._pull()
            answers += self._expire()
            left = end - time.monotonic()
            if answers or left <= 0:
                return answers
            time.sleep(min(self._poll_s, left))

    def _pull(self) -> list[Incoming]:
        if not self._pending:
            return []
        answers: list[Incoming] = []
        for message in self._grid.pull_messages(list(self._pending)):
            pending = self._pending.pop(message.metadata.reply_to_message_id, None)
            if pending is not None:
                answers.append(_incoming(pending, message))
        return answers

    def _expire(self) -> list[Incoming]:
        """Faults for requests past their deadline. A later reply has no ticket any more and is never pulled."""
        now = time.monotonic()
        late = [key for key, pending in self._pending.items() if pending.deadline <= now]
        expired = [self._pending.pop(key) for key in late]
        return [Incoming(pending.ticket, pending.site, None, "deadline") for pending in expired]

    def close(self) -> None:
        """Forget all requests. The grid itself belongs to Flower, which closes it."""
        self._pending.clear()
        self._ready.clear()


def _incoming(pending: _Pending, message: Message) -> Incoming:
    """One Flower message as an answer; an error's `src_node_id` is the SuperLink, so the ticket names the site."""
    if message.has_error():
        fault = "unreachable" if message.error.code in UNREACHABLE_CODES else "relay"
        if fault == "unreachable" and time.monotonic() >= pending.deadline:
            fault = (
                "deadline"  # Flower drops a request at its end of life: the same moment, told in its words
            )
        return Incoming(pending.ticket, pending.site, None, fault)
    blob = message.content.array_records.get(RECORD, {}).get(ARRAY)
    if (
        message.metadata.src_node_id != pending.node_id
        or blob is None
        or blob.stype != STYPE
        or not blob.data
    ):
        return Incoming(pending.ticket, pending.site, None, "relay")
    return Incoming(pending.ticket, pending.site, bytes(blob.data))
