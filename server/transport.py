"""The transport port: how requests reach sites and replies come back, as opaque bytes.

Two implementations: `LocalGrid` (in process, here) and `FlowerGrid` (real SuperLink, `flower_grid.py`). The
round loop knows only this port, so every fault that Flower can produce can be produced in a test.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

# Closed set of transport faults: the site did not answer with a sealed reply of its own.
FAULTS = ("unreachable", "relay", "deadline")


@dataclass(frozen=True)
class Incoming:
    """One answer from the transport.

    Attributes:
        ticket: what `send` returned for the request.
        site: site name.
        data: the reply's bytes, or None when the transport failed.
        fault: one of `FAULTS` when `data` is None, else "".
    """

    ticket: str
    site: str
    data: bytes | None
    fault: str = ""


class Transport(Protocol):
    """What the round loop needs from a transport. No method blocks longer than its own argument says.

    `in_flight`: how many requests may be out at once. Requests are made when they are sent, so this bounds memory.
    """

    in_flight: int

    def sites(self) -> tuple[str, ...]:
        """Names of the sites that can be reached now, sorted."""
        ...

    def send(self, site: str, request: bytes, deadline_s: float) -> str:
        """Hand over one request; returns a ticket. The answer comes from `poll`."""
        ...

    def poll(self, wait_s: float) -> list[Incoming]:
        """Answers that arrived, waiting at most `wait_s` seconds for the first."""
        ...

    def close(self) -> None:
        """Release threads and connections; late answers are dropped."""
        ...


class LocalGrid:
    """All sites in this process: site name -> `handle(request bytes) -> reply bytes`. No Ray, no sockets.

    Args:
        handlers: one callable per site. An exception inside it becomes the fault "relay", as it would be
            behind a real relay: its text does not reach the coordinator.
        workers: how many sites may work at once (1 keeps a 2-core machine's memory and timing flat).
    """

    def __init__(self, handlers: Mapping[str, Callable[[bytes], bytes]], *, workers: int = 1) -> None:
        self._handlers = dict(handlers)
        self.in_flight = workers + 1
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="local-site")
        self._answers: queue.Queue[Incoming] = queue.Queue()
        self._count = 0
        self._lock = threading.Lock()

    def sites(self) -> tuple[str, ...]:
        return tuple(sorted(self._handlers))

    def send(self, site: str, request: bytes, deadline_s: float) -> str:
        with self._lock:
            self._count += 1
            ticket = f"local-{self._count}"
        if site not in self._handlers:
            self._answers.put(Incoming(ticket, site, None, "unreachable"))
        else:
            self._pool.submit(self._work, ticket, site, request)
        return ticket

    def _work(self, ticket: str, site: str, request: bytes) -> None:
        try:
            answer = Incoming(ticket, site, self._handlers[site](request))
        except Exception:  # a handler's fault is the site's affair: only a code may leave it
            answer = Incoming(ticket, site, None, "relay")
        self._answers.put(answer)

    def poll(self, wait_s: float) -> list[Incoming]:
        answers: list[Incoming] = []
        try:
            answers.append(self._answers.get(timeout=wait_s))
            while True:
                answers.append(self._answers.get_nowait())
        except queue.Empty:
            return answers

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
