"""The relay: carries sealed bytes between the site's SuperNode and the site agent. It can read none of them.

    SuperNode (--isolation process) --task--> relay --Unix socket--> agent
                                   <--reply--       <--------------

It takes the place of `flower-superexec` and `flwr-clientapp`. The coordinator's app bundle is neither unpacked
nor imported, so no code of the coordinator ever runs at the site. Run it as a user of its own:

    python -I -m cytosae_client.relay 127.0.0.1:9094 /run/cytosae-relay/agent.sock --secret-file secret
"""

from __future__ import annotations

import argparse
import gc
import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Message

from cytosae_core.errors import CytosaeError, SetupError

from .agent import call_agent
from .flower_blob import from_records, to_records
from .flower_private import Task, TaskQueue, check_flwr_version

LOG = logging.getLogger("cytosae.relay")
POLL_S = 0.2
# Pause between attempts to reach a SuperNode that does not answer.
RECONNECT_S = 2.0
# Longest time that one request may keep the agent busy, whatever the coordinator asks for.
MAX_AGENT_S = 12 * 3600.0


def run_relay(
    runtime_address: str, socket_path: Path, *, secret_file: Path | None = None, stop: threading.Event
) -> None:
    """Forward tasks until `stop` is set; a task in hand is finished first.

    Args:
        runtime_address: host:port of the SuperNode's runtime API.
        socket_path: the agent's socket.
        secret_file: the SuperNode's `--superexec-auth-secret-file`, read as raw bytes.
        stop: set it to end the relay.

    Raises:
        SetupError: an untested Flower version, an unreadable secret, or a SuperNode that refuses it.
    """
    check_flwr_version()
    queue = TaskQueue(runtime_address, _read_secret(secret_file))
    reachable = True
    try:
        while not stop.is_set():
            try:
                token = queue.acquire()
            except ConnectionError as error:
                if reachable:
                    LOG.warning("%s; trying again every %g s", error, RECONNECT_S)
                reachable = False
                stop.wait(RECONNECT_S)
                continue
            if not reachable:
                LOG.info("the SuperNode answers again")
            reachable = True
            if token is None:
                stop.wait(POLL_S)
            else:
                _serve(runtime_address, token, socket_path, stop)
                gc.collect()  # Flower keeps messages, with their bytes, in cycles of objects
    finally:
        queue.close()


def _serve(runtime_address: str, token: str, socket_path: Path, stop: threading.Event) -> None:
    """One task, whatever happens in it: a failed task must not end the relay."""
    start = time.monotonic()
    try:
        with Task(runtime_address, token, stop) as task:
            _forward(task, socket_path)
        LOG.info("task ended after %.2f s", time.monotonic() - start)
    except Exception as error:  # the SuperNode went away, or sent what Flower's own code cannot read
        LOG.error("task lost after %.2f s: %s", time.monotonic() - start, type(error).__name__)


def _forward(task: Task, socket_path: Path) -> None:
    try:
        message = task.pull()
        timeout_s = min(message.metadata.ttl, MAX_AGENT_S)
        data = call_agent(socket_path, from_records(message.content), timeout_s=timeout_s)
        reply = Message(to_records(data), reply_to=message)
    except Exception as error:  # no text of an error leaves the site
        LOG.error(
            "request not answered: %s", error if isinstance(error, CytosaeError) else type(error).__name__
        )
        task.push_error()
        return
    task.push(reply)


def _read_secret(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise SetupError(f"Expected a secret file at {path}, got {error.strerror}.") from error
    if not secret:
        raise SetupError(f"Expected a secret in {path}, got an empty file.")
    return secret


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the relay; returns the exit status."""
    parser = argparse.ArgumentParser(prog="cytosae-relay", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address", help="host:port of the SuperNode's runtime API")
    parser.add_argument("socket", type=Path, help="the agent's socket")
    parser.add_argument("--secret-file", type=Path, help="the SuperNode's --superexec-auth-secret-file")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    # httpx writes one line for each poll.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    try:
        run_relay(options.address, options.socket, secret_file=options.secret_file, stop=stop)
    except CytosaeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
