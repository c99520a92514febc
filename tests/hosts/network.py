"""Hosts of a test as network namespaces on one bridge. Needs root; everything that is made is taken away again.

coordinator 10.77.0.1      door 10.77.0.254 (tests/hosts/door.py)      sites 10.77.0.11, .12, .13
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from types import TracebackType
from typing import Self


def can_make_networks() -> bool:
    """Whether this machine lets us make namespaces, links and a bridge."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        with Network({"probe": "10.77.0.1"}):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


class Network:
    """Hosts by name -> address; `within(name)` goes before a command that runs there."""

    def __init__(self, hosts: Mapping[str, str]) -> None:
        self._hosts, self._prefix = dict(hosts), f"cy{os.getpid()}"
        self._ports = {name: f"v{index}" for index, name in enumerate(self._hosts)}

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def within(self, name: str) -> list[str]:
        """Words before a command."""
        return ["ip", "netns", "exec", self._space(name)]

    def cable(self, name: str, *, plugged: bool) -> None:
        """Pull or plug a host's network cable."""
        _ip("-n", self._space("switch"), "link", "set", self._ports[name], "up" if plugged else "down")

    def _make(self) -> None:
        switch = self._space("switch")
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for name, address in self._hosts.items():
            space, port = self._space(name), self._ports[name]
            _ip("netns", "add", space)
            _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", switch, "link", "set", port, "master", "br0", "up")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", space, "link", "set", link, "up")

    def _remove(self) -> None:
        for name in (*self._hosts, "switch"):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", self._space(name))

    def _space(self, name: str) -> str:
        return f"{self._prefix}-{name}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)
