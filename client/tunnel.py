"""Adds the site's client certificate to Flower's connections, which have none: TLS in on loopback, mutual TLS out.

    SuperNode --TLS, this site's own certificate--> tunnel --TLS, client certificate--> the study's front door

It sees Flower's frames, in which requests and replies are sealed or signed; it reads nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
from pathlib import Path

CHUNK = 1 << 16
CONNECT_S = 20.0


async def serve(keys: Path, ca: Path, endpoint: str, port: int) -> None:
    """Accept on 127.0.0.1:port for ever.

    Args:
        keys: folder with client.crt, tls.key, local.crt and local.key. ca: the study's authority.
    """
    host, _, number = endpoint.rpartition(":")
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(keys / "local.crt", keys / "local.key")

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        outside = ssl.create_default_context(cafile=str(ca))  # read again each time: certificates are renewed
        outside.load_cert_chain(keys / "client.crt", keys / "tls.key")
        try:
            far = await asyncio.wait_for(
                asyncio.open_connection(host, int(number), ssl=outside), timeout=CONNECT_S
            )
        except (OSError, ssl.SSLError, TimeoutError):
            writer.close()
            return
        await asyncio.gather(_pipe(reader, far[1]), _pipe(far[0], writer))

    server = await asyncio.start_server(carry, "127.0.0.1", port, ssl=inside)
    async with server:
        await server.serve_forever()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, ssl.SSLError):
        writer.close()


def main() -> None:
    """`python -m cytosae_client.tunnel KEYS CA ENDPOINT --port PORT`."""
    parser = argparse.ArgumentParser(prog="cytosae-tunnel")
    parser.add_argument("keys", type=Path, help="folder with client.crt, tls.key, local.crt, local.key")
    parser.add_argument("ca", type=Path, help="the study's certificate authority, PEM")
    parser.add_argument("endpoint")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.keys, options.ca, options.endpoint, options.port))


if __name__ == "__main__":
    main()
