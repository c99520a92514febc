"""What sites may ask before they are part of the study: post an enrolment, fetch its confirmation and the start file.

Behind the proxy, on loopback. Everything that is given out is signed or public, everything that is taken is verified.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from cytosae_core.canonical import sha256_file
from cytosae_core.errors import CytosaeError
from cytosae_core.invite import MAX_BYTES

from .enrolment import Enrolments


def front(folder: Path) -> Starlette:
    """The application of the study in `folder`."""
    held = Enrolments(folder)

    async def enrol(request: Request) -> Response:
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > MAX_BYTES:
                return JSONResponse({"error": "too large"}, status_code=413)
        try:
            site = held.receive(bytes(data))
        except CytosaeError as error:  # one word: nobody unknown learns more
            return JSONResponse({"error": error.code}, status_code=403)
        return JSONResponse({"site": site, "status": "pending"}, status_code=202)

    async def answer(request: Request) -> Response:
        site = request.path_params["site"]
        found = held.confirmed(site) if site in held.study.sites else None
        if found is None:
            return JSONResponse({"status": "pending"}, status_code=404)
        return Response(found, media_type="application/json")

    async def file(request: Request) -> Response:
        path = folder / "start.safetensors"
        wanted = request.path_params["sha256"]
        if wanted != held.study.dictionary.digest or not path.exists() or sha256_file(path) != wanted:
            return JSONResponse({"error": "no such file"}, status_code=404)
        return FileResponse(path, media_type="application/octet-stream")

    async def healthy(request: Request) -> Response:
        return JSONResponse({"study": held.study.name, "protocol": held.study.digest})

    return Starlette(
        routes=[
            Route("/enrol", enrol, methods=["POST"]),
            Route("/enrol/{site}", answer),
            Route("/files/{sha256}", file),
            Route("/healthz", healthy),
        ]
    )


def main() -> None:
    """`python -m cytosae_server.front OUT --port PORT`."""
    parser = argparse.ArgumentParser(prog="cytosae-front")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(
        front(options.folder), host="127.0.0.1", port=options.port, log_level="warning", access_log=False
    )


if __name__ == "__main__":
    main()
