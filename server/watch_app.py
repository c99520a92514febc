"""The dashboard as a small web application for this machine's browser: read-only, no build step, nothing fetched.

/            the page                 /events     newer text, by server-sent events
/state.json  the snapshot             /metrics    Prometheus
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from .watch import snapshot
from .watch_page import POLICY, fragment, metrics, page

LOOK_S, BEAT_S = 1.0, 15.0
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def dashboard(folder: Path, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")) -> Starlette:
    """The application of the study in `folder`.

    Args:
        hosts: names that a browser may call it by (a page elsewhere cannot rebind its own name to it).
    """

    async def show(request: Request) -> HTMLResponse:
        return HTMLResponse(page(snapshot(folder)), headers=HEADERS)

    async def state(request: Request) -> JSONResponse:
        return JSONResponse(snapshot(folder), headers=HEADERS)

    async def numbers(request: Request) -> PlainTextResponse:
        return PlainTextResponse(metrics(snapshot(folder)), headers=HEADERS)

    async def events(request: Request) -> StreamingResponse:
        return StreamingResponse(_newer(folder, request), media_type="text/event-stream", headers=HEADERS)

    return Starlette(
        routes=[
            Route("/", show), Route("/state.json", state), Route("/metrics", numbers), Route("/events", events),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )  # fmt: skip


async def _newer(folder: Path, request: Request) -> AsyncIterator[str]:
    """The page's changing part whenever it changed; a comment now and then, so that a dead browser is noticed."""
    last, quiet = "", 0.0
    while not await request.is_disconnected():
        html = fragment(snapshot(folder))
        if html != last:
            last, quiet = html, 0.0
            yield f"data: {json.dumps({'html': html})}\n\n"
        elif quiet >= BEAT_S:
            quiet = 0.0
            yield ": still here\n\n"
        quiet += LOOK_S
        await asyncio.sleep(LOOK_S)
