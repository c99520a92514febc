"""The ClientApp of a hostile app bundle. It marks that it ran, gives up root for the relay's user, and tries what the
relay's user must not be able to do; then what it can do. Results go to a file that the test reads.

It travels with its own `cytosae_core` and `cytosae_client`, which come first on its import path.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import sysconfig
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_config as config
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

Path(config.MARKS, f"imported-{os.getpid()}").write_text(os.environ.get("FLWR_HOME", ""))
app = ClientApp()


def query(message: Message, context: Context) -> Message:
    """Attack, write down what happened, answer nothing of use."""
    Path(config.MARKS, f"ran-{os.getpid()}").touch()
    results = {f"before: {name}": attempt(action) for name, action in AS_SUPERNODE.items()}
    become(config.RELAY_UID)
    results |= {f"refuse: {name}": attempt(action) for name, action in MUST_REFUSE.items()}
    results |= {f"can: {name}": attempt(action) for name, action in CAN.items()}
    Path(config.RESULTS, f"{os.getpid()}.json").write_text(json.dumps(results))
    return Message(Error(code=2, reason="x"), reply_to=message)


app.query()(query)


def become(uid: int) -> None:
    """What `setpriv --reuid --regid --clear-groups` does."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def attempt(action: Callable[[], Any]) -> str:
    """`ALLOWED` with what came of it, or `refused` with the kind of error."""
    try:
        found = action()
    except Exception as error:
        return f"refused {type(error).__name__} {getattr(error, 'errno', '')}"
    return f"ALLOWED {str(found)[:80]}"


def talk(data: bytes) -> bytes:
    """Send bytes to the agent; what it answers. Nothing or an empty frame counts as refused."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(5)
        link.connect(config.SOCKET)
        with contextlib.suppress(BrokenPipeError):
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)
        answer = b""
        while part := link.recv(1 << 16):
            answer += part
    if len(answer) <= 8:
        raise PermissionError("empty frame")
    return answer


def frame(data: bytes) -> bytes:
    return struct.pack(">Q", len(data)) + data


def read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(64)


def write(path: str) -> str:
    with open(path, "w") as stream:
        stream.write("x")
    return path


def trace() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, config.AGENT_PID, 0, 0) != 0:  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "ptrace")
    return config.AGENT_PID


def site_packages(name: str) -> str:
    return str(Path(sysconfig.get_paths()["purelib"]) / name)


PROC = f"/proc/{config.AGENT_PID}"
MUST_REFUSE: dict[str, Callable[[], Any]] = {
    "list the data": lambda: os.listdir(config.DATA),
    "read a patient's file": lambda: read(f"{config.DATA}/patient-7.txt"),
    "read the site's key": lambda: read(config.KEY),
    "read the state": lambda: os.listdir(config.STATE),
    "agent's environment": lambda: read(f"{PROC}/environ"),
    "agent's memory": lambda: read(f"{PROC}/mem"),
    "agent's maps": lambda: read(f"{PROC}/maps"),
    "agent's files": lambda: os.listdir(f"{PROC}/fd"),
    "agent's folder": lambda: os.listdir(f"{PROC}/cwd"),
    "attach to the agent": trace,
    "kill the agent": lambda: os.kill(config.AGENT_PID, signal.SIGKILL),
    "remove the socket": lambda: os.unlink(config.SOCKET),
    "move the socket": lambda: os.rename(config.SOCKET, config.SOCKET + "2"),
    "put a file beside the socket": lambda: write(str(Path(config.SOCKET).parent / "x")),
    "ask unsigned": lambda: talk(frame(b"CYTOSAE1" + b"\xff" * 200)),
    "ask with garbage": lambda: talk(frame(b"\0" * (1 << 20))),
    "announce a terabyte": lambda: talk(struct.pack(">Q", 1 << 40) + b"x"),
    "plant a module": lambda: write(site_packages("evil.py")),
    "plant a .pth": lambda: write(site_packages("evil.pth")),
    "become root": lambda: os.setuid(0),
    "become the agent": lambda: os.setuid(config.AGENT_UID),
}


def poison() -> str:
    """Write into the cache of apps that Flower will run the next message from."""
    folder = next(Path(os.environ["FLWR_HOME"], "apps").iterdir())
    (folder / "poisoned").touch()
    return "cache of apps"


def daemon() -> int:
    """A process that outlives this task. It sleeps and ends."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for number in range(3):
            with contextlib.suppress(OSError):
                os.close(number)
        time.sleep(90)
        os._exit(0)
    Path(config.RESULTS, f"daemon-{pid}").touch()
    return pid


def fill() -> str:
    """64 MiB of a shared folder."""
    path = Path(config.RESULTS, f"fill-{os.getpid()}")
    with open(path, "wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, 64 << 20)
    path.unlink()
    return "64 MiB"


def superlink() -> int:
    """Flower's Control API has no credentials: a proxy must hide it."""
    request = urllib.request.Request(
        f"https://{config.SUPERLINK}/v1/control/list-runs", data=b"", method="POST",
        headers={"content-type": "application/protobuf"},
    )  # fmt: skip
    import ssl

    context = ssl.create_default_context(cafile=config.CA)
    with urllib.request.urlopen(request, timeout=5, context=context) as answer:
        return int(answer.status)


AS_SUPERNODE: dict[str, Callable[[], Any]] = {"poison the cache": poison, "ask the Control API": superlink}
CAN: dict[str, Callable[[], Any]] = {"leave a daemon": daemon, "fill a disk": fill}
