"""Canonical JSON, strict parsing and tensor blobs, against independent vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytosae_core.canonical import canonical_json, digest_of, parse_json
from cytosae_core.errors import MessageError
from cytosae_core.tensors import pack_tensors, unpack_tensors, write_atomic


@pytest.mark.shared
def test_rfc_8785_vectors(shared: Path) -> None:
    folder = shared / "vectors" / "json-canonicalization" / "testdata"
    inputs = sorted((folder / "input").glob("*.json"))
    assert len(inputs) >= 6
    for path in inputs:
        assert canonical_json(parse_json(path.read_bytes())) == (folder / "output" / path.name).read_bytes()


@pytest.mark.shared
def test_json_test_suite_refuses_what_is_not_json(shared: Path) -> None:
    bad = sorted((shared / "vectors" / "JSONTestSuite" / "test_parsing").glob("n_*.json"))
    assert len(bad) > 150
    for path in bad:
        with pytest.raises(MessageError):
            parse_json(path.read_bytes())


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


@pytest.mark.parametrize("data", [b'{"a":1,"a":2}', b"[NaN]", b"\xff", b"[" * 40 + b"]" * 40, b"[1e999]"])
def test_loose_json_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        parse_json(data)


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
