"""The agent's socket against callers that are slow, greedy, many, gone or not allowed."""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cytosae_client.agent import HEADER, MAX_ARRIVING, MAX_CONNECTIONS, AgentServer, call_agent
from cytosae_core.errors import MessageError, SetupError

CANARY = "patient-0042 /data/images/smear.png"
LIMIT = 1 << 20


@pytest.fixture
def path() -> Iterator[Path]:
    """A short path: a socket address holds 107 bytes, pytest's folders may be longer."""
    with tempfile.TemporaryDirectory(prefix="cy") as folder:
        yield Path(folder) / "agent.sock"


@contextmanager
def serving(
    path: Path,
    handle: Callable[[bytes], bytes] = lambda request: request,
    *,
    uids: frozenset[int] = frozenset({os.getuid()}),
    deadline_s: float = 5.0,
    max_bytes: int = 0,
) -> Iterator[AgentServer]:
    server = AgentServer(
        path, handle, allowed_uids=uids, max_request_bytes=max_bytes or LIMIT, request_deadline_s=deadline_s
    )
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    connection.connect(str(path))
    return connection


def read_all(connection: socket.socket) -> bytes:
    """What the server sends until it closes; a reset counts as closed."""
    data = b""
    try:
        while chunk := connection.recv(4096):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def wait_for(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.01)


@pytest.mark.parametrize("size", [1, 1024, LIMIT])
def test_bytes_come_back_as_sent(path: Path, size: int) -> None:
    request = os.urandom(size)
    with serving(path, lambda data: data[::-1]):
        assert call_agent(path, request, timeout_s=5) == request[::-1]
        assert call_agent(path, b"again", timeout_s=5) == b"niaga"


def test_a_large_reply_arrives_whole(path: Path) -> None:
    reply = os.urandom(32 << 20)
    with serving(path, lambda request: reply):
        assert call_agent(path, b"x", timeout_s=20) == reply


def test_socket_mode_lets_only_user_and_group_connect(path: Path) -> None:
    with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_other_users_are_cut_off_before_their_bytes_are_read(path: Path) -> None:
    seen: list[bytes] = []
    others = frozenset({os.getuid() + 1})
    server = serving(path, lambda request: seen.append(request) or b"x", uids=others)
    with server, pytest.raises(MessageError):
        call_agent(path, b"let me in", timeout_s=5)
    assert seen == []


@pytest.mark.parametrize("announced", [LIMIT + 1, 1 << 40, 2**64 - 1])
def test_an_announced_size_over_the_limit_is_cut_off_at_once(path: Path, announced: int) -> None:
    seen: list[bytes] = []
    with (
        serving(path, lambda request: seen.append(request) or b"x", deadline_s=60),
        connect(path) as connection,
    ):
        start = time.monotonic()
        connection.sendall(HEADER.pack(announced))
        assert read_all(connection) == b""
        assert time.monotonic() - start < 2
    assert seen == []


def test_the_deadline_is_for_the_whole_request_not_for_each_byte(path: Path) -> None:
    with serving(path, deadline_s=0.5), connect(path) as connection:
        connection.sendall(HEADER.pack(1000))
        start, sent = time.monotonic(), 0
        with pytest.raises(OSError):
            while time.monotonic() - start < 4:
                connection.sendall(b".")
                sent += 1
                time.sleep(0.05)
        assert sent < 40
        assert call_agent(path, b"next", timeout_s=5) == b"next"


@pytest.mark.parametrize("first", [b"", b"\0\0", HEADER.pack(1000), HEADER.pack(1000) + b"slow"])
def test_fifty_slow_callers_do_not_keep_an_honest_one_out(path: Path, first: bytes) -> None:
    """Slow loris: connections that send nothing, half a header, or a little of what they announced."""
    with serving(path, deadline_s=60):
        slow = [connect(path) for _ in range(50)]
        for connection in slow:
            connection.sendall(first)
        started = time.monotonic()
        assert call_agent(path, b"honest", timeout_s=5) == b"honest"
        assert time.monotonic() - started < 2
        for connection in slow:
            connection.close()


def test_slow_callers_are_cut_off_soon_and_their_places_come_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cytosae_client.agent.HEADER_DEADLINE_S", 0.5)
    with serving(path, deadline_s=60):
        slow = [connect(path) for _ in range(MAX_ARRIVING)]
        for connection in slow:
            connection.sendall(HEADER.pack(1000) + b"x")
        with pytest.raises(MessageError):
            call_agent(path, b"full", timeout_s=5)
        wait_for(lambda: _served(path))
        for connection in slow:
            assert read_all(connection) == b""
            connection.close()


def test_a_large_request_that_keeps_coming_is_not_cut_off(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cytosae_client.agent.HEADER_DEADLINE_S", 0.3)
    body = b"x" * (6 << 20)
    with serving(path, deadline_s=60, max_bytes=8 << 20), connect(path) as connection:
        connection.sendall(HEADER.pack(len(body)))
        for start in range(0, len(body), 1 << 20):
            connection.sendall(body[start : start + (1 << 20)])
            time.sleep(0.15)
        assert read_all(connection) == HEADER.pack(len(body)) + body


def test_a_short_frame_is_dropped(path: Path) -> None:
    seen: list[bytes] = []
    with serving(path, lambda request: seen.append(request) or b"x"), connect(path) as connection:
        connection.sendall(HEADER.pack(10) + b"five!")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""
    assert seen == []


def test_the_text_of_a_failure_stays_in_the_debug_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(request: bytes) -> bytes:
        raise ValueError(CANARY)

    caplog.set_level(logging.INFO, logger="cytosae.agent")
    with serving(path, fail):
        with connect(path) as connection:
            connection.sendall(HEADER.pack(1) + b"x")
            assert read_all(connection) == HEADER.pack(0)
        with pytest.raises(MessageError) as caught:
            call_agent(path, b"x", timeout_s=5)
    assert CANARY not in str(caught.value) and CANARY not in caplog.text
    assert "ValueError" in caplog.text


def test_requests_are_worked_on_one_at_a_time_and_a_full_line_is_refused(path: Path) -> None:
    release, busy, most = threading.Event(), [0], [0]

    def handle(request: bytes) -> bytes:
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        release.wait(10)
        busy[0] -= 1
        return request

    with serving(path, handle):
        connections = [connect(path) for _ in range(MAX_CONNECTIONS)]
        for number, connection in enumerate(connections):
            connection.sendall(HEADER.pack(1) + bytes([number]))
        wait_for(lambda: busy[0] == 1)
        with pytest.raises(MessageError):
            call_agent(path, b"one too many", timeout_s=5)
        release.set()
        for number, connection in enumerate(connections):
            with connection:
                assert read_all(connection) == HEADER.pack(1) + bytes([number])
        assert most == [1]
        wait_for(lambda: _served(path))


def _served(path: Path) -> bool:
    try:
        return call_agent(path, b"free again", timeout_s=5) == b"free again"
    except MessageError:
        return False


def test_work_is_not_started_for_a_caller_that_hung_up(path: Path) -> None:
    release, seen = threading.Event(), list[bytes]()

    def handle(request: bytes) -> bytes:
        seen.append(request)
        release.wait(10)
        return request

    with serving(path, handle):
        with connect(path) as first, connect(path) as second:
            first.sendall(HEADER.pack(1) + b"1")
            wait_for(lambda: seen == [b"1"])
            second.sendall(HEADER.pack(1) + b"2")
            time.sleep(0.2)
            second.close()
            release.set()
            assert read_all(first) == HEADER.pack(1) + b"1"
        assert call_agent(path, b"3", timeout_s=5) == b"3"
    assert seen == [b"1", b"3"]


def test_a_caller_that_half_closes_still_gets_its_reply(path: Path) -> None:
    with serving(path), connect(path) as connection:
        connection.sendall(HEADER.pack(2) + b"ok")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == HEADER.pack(2) + b"ok"


def test_call_agent_names_who_is_missing(path: Path) -> None:
    with pytest.raises(SetupError, match="Expected an agent listening"):
        call_agent(path, b"x", timeout_s=1)
    with serving(path, lambda request: (time.sleep(0.6), request)[1]), pytest.raises(MessageError) as caught:
        call_agent(path, b"x", timeout_s=0.2)
    assert caught.value.code == "expired"


@pytest.mark.parametrize("answer", [HEADER.pack(100) + b"half", HEADER.pack(1 << 50), b"", b"\0\0"])
def test_call_agent_refuses_broken_replies(path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(MessageError):
            call_agent(path, b"x", timeout_s=5)
        thread.join()


def test_a_dead_agents_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(SetupError):
        call_agent(path, b"x", timeout_s=1)
    with serving(path):
        assert call_agent(path, b"x", timeout_s=5) == b"x"
    assert not path.exists()


def test_a_living_agents_socket_is_left_alone(path: Path) -> None:
    with serving(path):
        with pytest.raises(SetupError, match="another agent"):
            AgentServer(
                path,
                lambda request: b"usurper",
                allowed_uids=frozenset({os.getuid()}),
                max_request_bytes=1,
                request_deadline_s=1,
            )
        assert call_agent(path, b"x", timeout_s=5) == b"x"


def test_a_socket_that_another_agent_made_since_is_not_removed(path: Path) -> None:
    with serving(path):
        path.unlink()
        path.write_text("another agent's")
    assert path.read_text() == "another agent's"


def test_what_is_not_a_socket_is_left_alone(path: Path) -> None:
    path.write_text("results")
    with pytest.raises(SetupError, match="Expected a socket or nothing"), serving(path):
        pass
    assert path.read_text() == "results"


@pytest.mark.parametrize("name", ["x" * 120, "missing/agent.sock"])
def test_impossible_paths_are_named(path: Path, name: str) -> None:
    with pytest.raises(SetupError, match="Expected"), serving(path.parent / name):
        pass


AGENT = """
import os, sys, time
from pathlib import Path
from cytosae_client.agent import AgentServer, forbid_memory_reads
forbid_memory_reads()
def handle(request):
    print("working", flush=True)
    time.sleep(1)
    return request
server = AgentServer(Path(sys.argv[1]), handle, allowed_uids=frozenset({os.getuid()}),
                     max_request_bytes=100, request_deadline_s=5)
print("up", flush=True)
server.serve_forever()
"""


def test_sigterm_lets_the_request_in_hand_finish(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-c", AGENT, str(path)], stdout=subprocess.PIPE, text=True
    ) as agent:
        assert agent.stdout is not None and agent.stdout.readline() == "up\n"
        replies: list[bytes] = []
        caller = threading.Thread(target=lambda: replies.append(call_agent(path, b"last", timeout_s=10)))
        caller.start()
        assert agent.stdout.readline() == "working\n"
        agent.send_signal(signal.SIGTERM)
        caller.join()
        assert replies == [b"last"]
        assert agent.wait(timeout=10) == 0
    assert not path.exists()


def test_an_agent_can_close_its_memory_to_others() -> None:
    code = (
        "import ctypes; from cytosae_client.agent import forbid_memory_reads as f; "
        "before = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0); f(); print(before, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


def test_the_relays_side_loads_no_torch_and_no_data_code() -> None:
    code = "import sys, cytosae_client.relay, cytosae_client.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "PIL", "timm", "scipy"}
    own = {name for name in loaded if name.startswith("cytosae_core.")}
    assert own == {"cytosae_core.errors"}


def test_the_header_is_the_documented_frame() -> None:
    assert HEADER.pack(258) == struct.pack(">Q", 258) == b"\0\0\0\0\0\0\1\2"
