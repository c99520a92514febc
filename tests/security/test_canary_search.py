"""The search that the traffic test trusts: every form at every alignment is found, and nothing else is."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from tests.canary import MAX_DEPTH, Index, Needles, Search, deflate_places

TEXT = "Kq81ZtVw0RmPx73LdYbN"
RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (40, 48, 3), dtype=np.uint8)
TOKENS = RNG.standard_normal((6, 384)).astype(np.float16)
PAST = bytes(RNG.integers(0, 256, 997, dtype=np.uint8))  # what stands before and after


@pytest.fixture(scope="module")
def index() -> Index:
    needles = Needles()
    needles.text("text", TEXT)
    needles.bytes("pixels", PIXELS.tobytes())
    needles.values("tokens", TOKENS, stride=1)
    needles.values("pixel values", (PIXELS[::5] / 255).astype(np.float32).reshape(8, -1))
    needles.digests("digest", TEXT.encode())
    return needles.index()


def found(index: Index, data: bytes) -> set[str]:
    search = Search(index)
    search.feed("here", data)
    return set(search.found)


TO_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda raw: raw,
    "base64": base64.b64encode,
    "url-safe base64": base64.urlsafe_b64encode,
    "base64 without padding": lambda raw: base64.b64encode(raw).rstrip(b"="),
    "base64 in lines": base64.encodebytes,
    "base64 in lines of a JSON text": lambda raw: json.dumps(base64.encodebytes(raw).decode()).encode(),
    "hex": lambda raw: raw.hex().encode(),
    "upper-case hex": lambda raw: raw.hex().upper().encode(),
    "hex with colons": lambda raw: raw.hex(":").encode(),
    "escaped": lambda raw: "".join(f"\\x{byte:02x}" for byte in raw).encode(),
    "zlib": zlib.compress,
    "zlib, stored": lambda raw: zlib.compress(raw, 0),
    "zlib, best": lambda raw: zlib.compress(raw, 9),
    "gzip": gzip.compress,
    "deflate": lambda raw: zlib.compress(raw, wbits=-15),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "JSON list": lambda raw: json.dumps(list(raw)).encode(),
    "JSON list in lines": lambda raw: json.dumps(list(raw), indent=1).encode(),
    "gzip in base64": lambda raw: base64.b64encode(gzip.compress(raw)),
    "base64 in hex in zlib": lambda raw: zlib.compress(base64.b64encode(raw).hex().encode()),
}


@pytest.mark.parametrize("shift", range(9))
@pytest.mark.parametrize("form", TO_BYTES)
def test_bytes_are_found_in_every_form_at_every_offset(index: Index, form: str, shift: int) -> None:
    inner = PAST[:shift]
    for name, raw in (("text", TEXT.encode()), ("pixels", PIXELS[3].tobytes()[5:60])):
        assert found(index, PAST[:shift] + TO_BYTES[form](inner + raw + PAST[:7]) + b"}") >= {name}, name


TO_FLOATS: dict[str, Callable[[np.ndarray], bytes]] = {
    "float16": lambda values: values.astype("<f2").tobytes(),
    "float32": lambda values: values.astype("<f4").tobytes(),
    "float64": lambda values: values.astype("<f8").tobytes(),
    "bfloat16": lambda values: torch.from_numpy(values.astype("f4")).bfloat16().view(torch.int16).numpy().tobytes(),
    "JSON": lambda values: json.dumps([float(value) for value in values]).encode(),
    "base64 of float32": lambda values: base64.b64encode(values.astype("<f4").tobytes()),
    "zlib of float64": lambda values: zlib.compress(values.astype("<f8").tobytes()),
    "safetensors": lambda values: struct.pack("<Q", 3) + b"{} " + values.astype("<f4").tobytes(),
}  # fmt: skip


@pytest.mark.parametrize("shift", range(8))
@pytest.mark.parametrize("form", TO_FLOATS)
def test_a_run_of_8_values_is_found_in_every_format_at_every_alignment(
    index: Index, form: str, shift: int
) -> None:
    run = TOKENS[4, 100 + shift : 108 + shift].astype(np.float64)
    assert found(index, PAST[:shift] + TO_FLOATS[form](run) + b" " + PAST[:3]) == {"tokens"}


@pytest.mark.parametrize("form", TO_FLOATS)
def test_pixel_values_are_found(index: Index, form: str) -> None:
    row = (PIXELS[::5] / 255).astype(np.float64).reshape(8, -1)[2, 3:40]
    assert found(index, b"x" + TO_FLOATS[form](row)) == {"pixel values"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("form", ["as it is", "lower", "upper"])
def test_text_is_found_in_every_encoding_and_case(index: Index, encoding: str, form: str) -> None:
    text = getattr(TEXT, form)() if form != "as it is" else TEXT
    assert found(index, b"a path/" + f"({text[:18]}).png".encode(encoding)) == {"text"}


def test_a_piece_of_text_of_16_characters_is_found_and_one_of_15_is_not(index: Index) -> None:
    assert found(index, TEXT[2:18].encode()) == {"text"} and found(index, TEXT[2:17].encode()) == set()


def test_a_digest_of_a_guessable_text_is_found(index: Index) -> None:
    import hashlib

    assert found(index, b'{"id":"' + hashlib.sha256(TEXT.encode()).hexdigest().encode()) == {"digest"}


def test_images_are_found_by_their_pixels(index: Index) -> None:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG", optimize=True)
    assert found(index, PAST + stream.getvalue() + PAST) == {"pixels"}


def test_members_of_zip_files_are_found(index: Index) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", f"one {TEXT} two")
    assert found(index, PAST + stream.getvalue()) == {"text"}


def test_the_depth_is_three(index: Index) -> None:
    data = TEXT.encode() * 3
    for _ in range(MAX_DEPTH):
        data = base64.b64encode(data)
    assert found(index, data) == {"text"} and found(index, base64.b64encode(data)) == set()


def test_a_stream_that_is_cut_or_goes_wrong_gives_what_it_holds(index: Index) -> None:
    whole = zlib.compress(TEXT.encode() + os.urandom(20000))
    assert found(index, whole[:9000]) == {"text"}
    assert found(index, whole[:9000] + bytes(300)) == {"text"}


@pytest.mark.parametrize("level", range(1, 10))
@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE])
def test_every_deflate_stream_starts_at_a_place_that_is_tried(level: int, strategy: int) -> None:
    rng = np.random.default_rng(level)
    for data in (
        TEXT.encode(),
        TEXT.encode() * 50,
        bytes(rng.normal(90, 9, 5000).astype(np.uint8)),
        bytes(4000),
    ):
        stream = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
        packed = stream.compress(data) + stream.flush()
        stored = packed[0] & 6 == 0
        assert stored or 5 in set(deflate_places(PAST[:5] + packed + PAST))


def test_chance_finds_nothing_and_dull_windows_are_no_needles(index: Index) -> None:
    search = Search(index)
    search.feed("chance", np.random.default_rng(1).bytes(1 << 20))
    search.feed("text", json.dumps([round(float(x), 4) for x in RNG.standard_normal(50000)]).encode())
    assert search.hits == [] and search.fed["chance"] == 1 << 20 and search.read > 3 << 20
    needles = Needles()
    needles.bytes("white", np.full(4096, 255, np.uint8))
    needles.values("zeros", np.zeros((4, 64), np.float32))
    assert needles.added == {"white": 0, "zeros": 0} and needles.skipped["white"] > 0


def test_the_same_piece_counts_for_every_channel(index: Index) -> None:
    search = Search(index)
    for channel in ("wire", "log"):
        search.feed(channel, b"id " + TEXT.encode(), "a piece")
    assert search.found == {"text": {"wire", "log"}} and search.hits[0].piece == "a piece"
