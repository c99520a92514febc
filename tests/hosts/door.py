"""A bad network between sites and coordinator: a TCP proxy with latency, stalls and cut connections.

    python tests/hosts/door.py LISTEN_HOST:PORT TO_HOST:PORT CONTROL.json

CONTROL is read again for every piece: {"delay_s": 0.05, "stall": 0.01, "cut": 3}. `stall`: share of pieces that take
another second, as after a lost packet. When `cut` changes, every connection is reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from pathlib import Path


class Door:
    """Carries connections to `to` as the control file says."""

    def __init__(self, to: tuple[str, int], control: Path) -> None:
        self._to, self._control = to, control

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            return
        ways = [
            asyncio.create_task(way)
            for way in (self._pipe(reader, far_writer), self._pipe(far_reader, writer), self._until_cut())
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        writer.transport.abort()
        far_writer.transport.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                now = self._now()
                stalled = random.random() < now["stall"]
                await asyncio.sleep(now["delay_s"] + (1.0 if stalled else 0.0))
                writer.write(data)
                await writer.drain()
            # what was written last must arrive before the connection ends
            await asyncio.sleep(0.2)

    async def _until_cut(self) -> None:
        before = self._now()["cut"]
        while self._now()["cut"] == before:
            await asyncio.sleep(0.1)

    def _now(self) -> dict[str, float]:
        return {"delay_s": 0.0, "stall": 0.0, "cut": 0, **json.loads(self._control.read_text())}


async def main(listen: str, to: str, control: Path) -> None:
    """Serve for ever."""
    (host, port), (far_host, far_port) = listen.rsplit(":", 1), to.rsplit(":", 1)
    door = Door((far_host, int(far_port)), control)
    server = await asyncio.start_server(door.carry, host, int(port))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
