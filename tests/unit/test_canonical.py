"""Canonical JSON, strict parsing and tensor blobs, against independent vectors."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from cytosae_core.canonical import canonical_json, digest_of, parse_json
from cytosae_core.errors import MessageError
from cytosae_core.tensors import pack_tensors, unpack_tensors, write_atomic


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e21, "1e+21"),
        (1e-7, "1e-7"),
        (1e-6, "0.000001"),
        (-0.0, "0"),
        (4.5, "4.5"),
        (1e20, "100000000000000000000"),
    ],
)
def test_numbers_as_ecmascript_writes_them(value: float, text: str) -> None:
    assert canonical_json(value) == text.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53 + 1, {1: 2}, b"x", "\ud800"])
def test_values_without_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(MessageError):
        canonical_json(value)


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("JSON_DUP", b'{"a":1,"a":2}'),
        ("JSON_DUP", b'[{"\\u0061":1,"a":2}]'),
        ("JSON_CONST", b"[NaN]"),
        ("JSON_CONST", b"-Infinity"),
        ("JSON_UTF8", b"\xff"),
        ("JSON_UTF8", b'"\xed\xa0\x80"'),
        ("JSON_UTF8", b'["\\ud800"]'),
        ("JSON_UTF8", b'{"\\uDFFF":1}'),
        ("JSON_UTF8", b'"\\udc00\\ud800"'),
        ("JSON_BOM", b"\xef\xbb\xbf{}"),
        ("JSON_DEPTH", b"[" * 33 + b"]" * 33),
        ("JSON_DEPTH", b"[" * 10_000_000),
        ("JSON_DEPTH", b'{"a":' * 40 + b"1" + b"}" * 40),
        ("JSON_NUM", b"[1e400]"),
        ("JSON_NUM", b"-1e999"),
        ("JSON_NUM", b"9007199254740993"),
        ("JSON_NUM", b"-9007199254740993"),
        ("JSON_NUM", b"1" + b"0" * 5000),
        ("JSON_TRAIL", b"{}{}"),
        ("JSON_TRAIL", b"1 x"),
        ("JSON_SYNTAX", b""),
        ("JSON_SYNTAX", b" "),
        ("JSON_SYNTAX", b"{"),
        ("JSON_TRAIL", b"01"),
        ("JSON_SYNTAX", b"'a'"),
        ("JSON_SYNTAX", b'"a\nb"'),
        ("JSON_SYNTAX", b"[1,]"),
    ],
)
def test_loose_json_is_refused(reason: str, data: bytes) -> None:
    with pytest.raises(MessageError) as caught:
        parse_json(data)
    assert caught.value.reason == reason


def test_json_over_its_limit_is_refused() -> None:
    with pytest.raises(MessageError) as caught:
        parse_json(b"[1, 2, 3]", max_bytes=8)
    assert caught.value.reason == "JSON_SIZE" and parse_json(b"[1, 2, 3]", max_bytes=9) == [1, 2, 3]


def test_brackets_inside_strings_are_no_depth_and_pairs_are_text() -> None:
    assert parse_json(b'["' + b"[" * 100 + b'\\"[[{"]') == ["[" * 100 + '"[[{']
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"
    assert parse_json(b"[" * 32 + b"]" * 32)


def test_an_endless_string_takes_linear_time() -> None:
    """An unfinished string of escaped quotes must not be scanned again from every one of them."""

    def seconds(count: int) -> float:
        start = time.perf_counter()
        for data in (b'"' + b'\\"' * count, b'"' + b'\\"' * count + b"\\", b'"' * (2 * count + 1)):
            with pytest.raises(MessageError):
                parse_json(data)
        return time.perf_counter() - start

    assert seconds(400_000) < 100 * min(
        seconds(20_000) for _ in range(3)
    )  # 20 times the text; quadratic: 400


def test_digest_does_not_depend_on_key_order() -> None:
    assert digest_of({"a": 1, "b": [True, None]}) == digest_of({"b": [True, None], "a": 1})


def test_tensors_round_trip_and_refuse_riders() -> None:
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(2, dtype=np.float16)}
    blob = pack_tensors(tensors)
    again = unpack_tensors(blob)
    assert all((again[name] == tensors[name]).all() for name in tensors)
    for bad in (blob + b"x", blob[:-1], b"", b"\xff" * 32, _with_metadata(blob)):
        with pytest.raises(MessageError):
            unpack_tensors(bad)


def _with_metadata(blob: bytes) -> bytes:
    length = int.from_bytes(blob[:8], "little")
    header = blob[8 : 8 + length].rstrip()
    changed = header[:-1] + b',"__metadata__":{"x":"y"}}'
    changed += b" " * (-len(changed) % 8)
    return len(changed).to_bytes(8, "little") + changed + blob[8 + length :]


def test_write_atomic_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"1")
    write_atomic(tmp_path / "a", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"2"


def test_headers_whose_length_looks_like_a_pickle_are_read() -> None:
    """Lengths of 640, 896, 1,152 and 1,408 bytes are written as 0x80 and 2 to 5: the first bytes of a pickle."""
    found = set()
    for names in range(4, 28):
        for extra in range(60):
            tensors = {f"t{index:02d}": np.ones(2, np.float32) for index in range(names)}
            tensors["t" + "x" * extra] = np.ones(2, np.float32)
            blob = pack_tensors(tensors)
            found.add(blob[:2])
            assert len(unpack_tensors(blob)) == len(tensors)
    assert {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"} <= found
    for start in (b"\x80\x04\x95", b"PK\x03\x04", b"\x1f\x8b\x08"):
        with pytest.raises(MessageError) as caught:
            unpack_tensors(start + bytes(100))
        assert caught.value.reason == "FORMAT"
