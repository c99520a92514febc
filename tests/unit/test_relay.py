"""The relay against a SuperNode's runtime API that refuses, forgets and disappears; no Flower process."""

from __future__ import annotations

import ast
import importlib.metadata
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cytosae_core.errors import SetupError
from tests.flower_processes import free_ports

with warnings.catch_warnings():
    # click, imported by Flower, warns about its own next release.
    warnings.filterwarnings("ignore", "'click", DeprecationWarning)
    from flwr.proto.runtime_pb2 import AcquireTaskResponse, SendTaskHeartbeatResponse
    from flwr.proto.task_pb2 import Task as TaskRecord

    from cytosae_client import flower_private, relay
    from cytosae_client.flower_private import SUPPORTED_FLWR, Task, TaskQueue, check_flwr_version

ROOT = Path(__file__).resolve().parents[2]
Answer = Callable[[str], tuple[int, bytes]]


@contextmanager
def runtime_api(answer: Answer) -> Iterator[str]:
    """A runtime API that answers each path with (status, protobuf bytes); yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, body = answer(self.path)
            self.send_response(status)
            self.send_header("content-type", "application/protobuf")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_installed_flower_is_one_that_was_tested() -> None:
    installed = importlib.metadata.version("flwr")
    assert installed in SUPPORTED_FLWR
    check_flwr_version(installed)


@pytest.mark.parametrize("version", ["1.40.0", "1.42.0", "2.0.0", ""])
def test_other_flower_versions_are_refused_by_name(version: str) -> None:
    with pytest.raises(SetupError, match=r"Expected flwr in \('1.41.0',\)"):
        check_flwr_version(version)


def test_private_parts_of_flower_are_used_in_one_module_only() -> None:
    public = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}
    private: dict[str, set[str]] = {}
    for path in [*(ROOT / "client").glob("*.py"), *(ROOT / "server").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found = {name for name in names if name.split(".")[0] == "flwr"} - public
            if found:
                private.setdefault(path.name, set()).update(found)
    assert set(private) == {"flower_private.py"}


def test_an_empty_queue_gives_no_task_and_a_task_gives_its_token() -> None:
    waiting = [AcquireTaskResponse(), AcquireTaskResponse(task=TaskRecord(task_id=7), token="t")]
    with runtime_api(lambda path: (200, waiting.pop(0).SerializeToString())) as address:
        queue = TaskQueue(address, b"s" * 32)
        assert queue.acquire() is None
        assert queue.acquire() == "t"
        queue.close()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_secret_is_for_it_staff(status: int) -> None:
    with runtime_api(lambda path: (status, b"{}")) as address, pytest.raises(SetupError, match="secret file"):
        relay.run_relay(address, Path("unused"), stop=threading.Event())


@pytest.mark.parametrize("status", [500, 503])
def test_an_ill_supernode_is_tried_again(status: int) -> None:
    with runtime_api(lambda path: (status, b"")) as address:
        queue = TaskQueue(address, None)
        with pytest.raises(ConnectionError):
            queue.acquire()
        queue.close()


def test_the_relay_waits_for_a_supernode_that_is_not_there_and_stops_when_told() -> None:
    (port,) = free_ports(1)
    stop = threading.Event()
    thread = threading.Thread(
        target=relay.run_relay, args=(f"127.0.0.1:{port}", Path("unused")), kwargs={"stop": stop}
    )
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_a_failing_task_does_not_end_the_relay(caplog: pytest.LogCaptureFixture) -> None:
    """The task's input cannot be read: the relay says so and takes the next task."""
    stop, taken = threading.Event(), list[str]()

    def answer(path: str) -> tuple[int, bytes]:
        if path.endswith("acquire-task"):
            taken.append(path)
            if len(taken) == 3:
                stop.set()
            return 200, AcquireTaskResponse(task=TaskRecord(task_id=7), token="t").SerializeToString()
        if path.endswith("heartbeat"):
            return 200, SendTaskHeartbeatResponse(success=True).SerializeToString()
        return 500, b"/data/patient-7"

    with runtime_api(answer) as address:
        relay.run_relay(address, Path("unused"), stop=stop)
    assert len(taken) == 3
    assert caplog.text.count("request not answered: HTTPStatusError") == 3
    assert "patient-7" not in caplog.text


@pytest.mark.parametrize(
    ("status", "body", "lost"),
    [
        (200, SendTaskHeartbeatResponse(success=True).SerializeToString(), False),
        (200, SendTaskHeartbeatResponse(success=False).SerializeToString(), True),
        (401, b"{}", True),
    ],
)
def test_a_lost_task_is_marked_and_the_process_lives(status: int, body: bytes, lost: bool) -> None:
    """Flower's own heartbeat raises SIGINT here, which would end a relay that serves other tasks."""
    paths: list[str] = []

    def answer(path: str) -> tuple[int, bytes]:
        paths.append(path)
        return status, body

    with runtime_api(answer) as address, Task(address, "t", threading.Event()) as task:
        end = time.monotonic() + 5
        while not paths and time.monotonic() < end:
            time.sleep(0.01)
        assert task.lost.wait(0.5) is lost
        if not lost:
            task.lost.set()  # nobody is there to take the end of the task
    assert paths[0].endswith("send-task-heartbeat")


def test_secrets_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "secret"
    empty.write_bytes(b"")
    for path in (empty, tmp_path / "missing"):
        with pytest.raises(SetupError, match="Expected a secret"):
            relay.run_relay("127.0.0.1:1", Path("unused"), secret_file=path, stop=threading.Event())


def test_the_command_says_what_is_wrong_and_returns_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    missing = str(tmp_path / "missing")
    assert relay.main(["127.0.0.1:1", "agent.sock", "--secret-file", missing]) == 1
    assert "Expected a secret file" in capsys.readouterr().err


def test_retries_stop_when_the_relay_is_told_to_stop() -> None:
    (port,) = free_ports(1)
    stop = threading.Event()
    stop.set()
    start = time.monotonic()
    with pytest.raises(Exception, match="refused"), Task(f"127.0.0.1:{port}", "t", stop) as task:
        task.pull()
    assert time.monotonic() - start < flower_private.RETRY_S / 4
