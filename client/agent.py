"""The site agent's door: a Unix socket that takes request bytes and gives reply bytes. No torch, no Flower.

    relay --connect--> uid check --frame--> size check --> line --> handle(request) --frame--> relay

A frame is 8 bytes big-endian length, then that many bytes. One connection carries one request and one reply.
What the bytes mean is `handle`'s affair: a refusal is a sealed reply that `handle` makes. When `handle` itself
fails the peer gets an empty frame and no text, because the peer may be code that the site does not trust.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import select
import signal
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cytosae_core.errors import CytosaeError, MessageError, SetupError

LOG = logging.getLogger("cytosae.agent")
HEADER = struct.Struct(">Q")
CHUNK_BYTES = 1 << 20
# Largest reply a relay accepts: a dictionary of 49,152 x 768 float32 is 151 MB; eight times that.
MAX_REPLY_BYTES = 1 << 30
# sun_path of a Linux socket address holds 108 bytes with its final zero.
MAX_PATH_BYTES = 107
# Whole requests, worked on or waiting; each may hold `max_request_bytes` of memory.
MAX_CONNECTIONS = 4
# Connections whose request is still arriving: many, because a caller that sends slowly must not keep others out.
MAX_ARRIVING = 64
# The first 8 bytes come within this time, and the rest at this rate: a local relay is a hundred times faster.
HEADER_DEADLINE_S = 5.0
MIN_BYTES_PER_S = 1 << 20
ACCEPT_POLL_S = 0.2
PR_SET_DUMPABLE = 4


def forbid_memory_reads() -> None:
    """Make this process undumpable: another process of the same user cannot read its memory or attach to it.

    Raises:
        SetupError: the kernel refused (not Linux, or a seccomp filter).
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise SetupError(f"Expected prctl(PR_SET_DUMPABLE, 0)=0, got errno={ctypes.get_errno()}.")


class AgentServer:
    """Serves `handle` on a Unix socket, one request at a time, to the allowed users only.

    Args:
        socket_path: where the socket is made, mode 0660; its folder decides the group (setgid).
        handle: request bytes -> reply bytes, never empty. It may take minutes. Runs in one thread at a time.
        allowed_uids: users that may connect, checked with SO_PEERCRED. Root is not special.
        max_request_bytes: a longer announced request is cut off before its bytes are read.
        request_deadline_s: seconds for a whole request to arrive, and again for its reply to be taken.

    Raises:
        SetupError: the path cannot hold a socket, or another agent listens there.
    """

    def __init__(
        self,
        socket_path: Path,
        handle: Callable[[bytes], bytes],
        *,
        allowed_uids: frozenset[int],
        max_request_bytes: int,
        request_deadline_s: float,
    ) -> None:
        self._path, self._handle, self._allowed = socket_path, handle, allowed_uids
        self._max_bytes, self._deadline_s = max_request_bytes, request_deadline_s
        self._stopping = threading.Event()
        self._slots = threading.Semaphore(MAX_CONNECTIONS)
        self._arriving = threading.Semaphore(MAX_ARRIVING)
        self._turn = threading.Lock()
        self._workers: list[threading.Thread] = []
        self._listener = _listen(socket_path)
        self._inode = socket_path.stat().st_ino

    def stop(self) -> None:
        """Take no further connections; `serve` returns when the requests already taken are answered."""
        self._stopping.set()

    def serve(self) -> None:
        """Answer requests until `stop`. Blocks; the socket is removed at the end."""
        try:
            while not self._stopping.is_set():
                self._accept_one()
        finally:
            self._listener.close()
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
            for worker in self._workers:
                worker.join()

    def serve_forever(self) -> None:
        """`serve` for a program's main thread: SIGTERM stops it after the requests already taken."""
        before = signal.signal(signal.SIGTERM, lambda *_: self.stop())
        try:
            self.serve()
        finally:
            signal.signal(signal.SIGTERM, before)

    def _accept_one(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except TimeoutError:
            return
        except OSError as error:  # out of file descriptors, most likely: wait for some to come back
            LOG.error("cannot accept a connection: %s", error.strerror)
            self._stopping.wait(ACCEPT_POLL_S)
            return
        if not self._arriving.acquire(blocking=False):
            LOG.warning("refused a connection: %d requests are arriving", MAX_ARRIVING)
            connection.close()
            return
        worker = threading.Thread(target=self._serve_one, args=(connection,), name="agent-request")
        self._workers = [*(old for old in self._workers if old.is_alive()), worker]
        worker.start()

    def _serve_one(self, connection: socket.socket) -> None:
        try:
            with connection:
                try:
                    request = self._take(connection)
                finally:
                    self._arriving.release()
                self._answer(connection, request)
        except (CytosaeError, OSError) as error:
            LOG.warning("request dropped: %s", error)

    def _take(self, connection: socket.socket) -> bytes:
        uid = _peer_uid(connection)
        if uid not in self._allowed:
            raise MessageError(f"Expected uid in {sorted(self._allowed)}, got uid={uid}.")
        return _receive(connection, self._max_bytes, time.monotonic() + self._deadline_s, HEADER_DEADLINE_S)

    def _answer(self, connection: socket.socket, request: bytes) -> None:
        if not self._slots.acquire(blocking=False):
            raise MessageError(f"Expected at most {MAX_CONNECTIONS} requests in line.", code="busy")
        try:
            with self._turn:
                if _gone(connection):
                    raise MessageError("Expected a peer waiting for its reply, got a closed connection.")
                reply = self._work(request)
            _send(connection, reply, time.monotonic() + self._deadline_s)
        finally:
            self._slots.release()

    def _work(self, request: bytes) -> bytes:
        try:
            return self._handle(request)
        except Exception as error:  # its text may name local files: not even its type goes to the peer
            LOG.error("the handler failed: %s", type(error).__name__)
            LOG.debug("the handler failed", exc_info=error)
            return b""


def call_agent(socket_path: Path, request: bytes, *, timeout_s: float) -> bytes:
    """Send one request to the agent and wait for its reply.

    Args:
        socket_path: the agent's socket.
        request: bytes to send, not empty.
        timeout_s: for the whole exchange, the agent's work included.

    Raises:
        SetupError: nobody listens on the socket, or this user may not connect.
        MessageError: the agent cut the connection, answered nothing, or did not answer in time (`expired`).
    """
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(socket_path))
        except OSError as error:
            raise SetupError(
                f"Expected an agent listening, got {error.strerror}.", hint="Start the site agent."
            ) from error
        try:
            # An agent that refuses closes before it has read everything: its reply decides, not this error.
            with contextlib.suppress(BrokenPipeError):
                _send(connection, request, deadline)
            reply = _receive(connection, MAX_REPLY_BYTES, deadline)
        except OSError as error:
            raise MessageError(f"Expected a whole reply, got {error.strerror}.") from error
    if not reply:
        raise MessageError("Expected a reply, got an empty frame: the agent's log says why.")
    return reply


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`; the file of a dead agent is replaced, that of a living one is not."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise SetupError(f"Expected a socket path of at most {MAX_PATH_BYTES} bytes, got {path}.")
    with _folder_lock(path.parent):
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(path))
            # Between bind and listen nobody can connect, so the mode is in force from the first moment.
            path.chmod(0o660)
            listener.listen(MAX_ARRIVING)
        except OSError as error:
            listener.close()
            raise SetupError(f"Expected a socket at {path}, got {error.strerror}.") from error
    listener.settimeout(ACCEPT_POLL_S)
    return listener


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Two agents that start together must not each remove the other's socket as stale."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SetupError(
            f"Expected a folder for the socket at {folder}, got {error.strerror}.", hint="Create it."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SetupError(f"Expected a socket or nothing at {path}, got another file.", hint="Move it away.")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise SetupError(f"Expected to probe {path}, got {error.strerror}.") from error
    raise SetupError(f"Expected nobody listening at {path}, got another agent.", hint="Stop it first.")


def _peer_uid(connection: socket.socket) -> int:
    credentials = struct.Struct("3i")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    _, uid, _ = credentials.unpack(raw)
    return int(uid)


def _gone(connection: socket.socket) -> bool:
    """True when the peer has closed: nobody would take the reply, so the work is not worth starting."""
    poll = select.poll()
    poll.register(connection, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise MessageError("Expected a whole frame before the deadline, got a slow peer.", code="expired")
    return left


def _receive(connection: socket.socket, max_bytes: int, deadline: float, patience_s: float = 0.0) -> bytes:
    """One frame. The deadline holds for all of it: a peer that sends a byte a minute gains nothing.

    With `patience_s` (a request, not a reply that takes work) the first 8 bytes come within it, and the rest at
    `MIN_BYTES_PER_S` or faster after it.
    """
    soon = min(deadline, time.monotonic() + patience_s) if patience_s else deadline
    (size,) = HEADER.unpack(_receive_exactly(connection, HEADER.size, soon))
    if size > max_bytes:
        raise MessageError(f"Expected at most {max_bytes} bytes, got a frame of {size} bytes announced.")
    return _receive_exactly(connection, size, deadline, patience_s)


def _receive_exactly(connection: socket.socket, size: int, deadline: float, patience_s: float = 0.0) -> bytes:
    chunks: list[bytes] = []
    missing, started = size, time.monotonic()
    while missing:
        earned = started + patience_s + (size - missing) / MIN_BYTES_PER_S
        connection.settimeout(_remaining(min(deadline, earned) if patience_s else deadline))
        try:
            chunk = connection.recv(min(missing, CHUNK_BYTES))
        except TimeoutError:
            continue  # `_remaining` names the fault
        if not chunk:
            raise MessageError(f"Expected {missing} more bytes, got the end of the connection.")
        chunks.append(chunk)
        missing -= len(chunk)
    return b"".join(chunks)


def _send(connection: socket.socket, data: bytes, deadline: float) -> None:
    try:
        for part in (HEADER.pack(len(data)), data) if data else (HEADER.pack(0),):
            connection.settimeout(_remaining(deadline))
            connection.sendall(part)  # sendall's timeout is for the whole call, not per packet
    except TimeoutError as error:
        raise MessageError("Expected the peer to take the frame, got a slow peer.", code="expired") from error
