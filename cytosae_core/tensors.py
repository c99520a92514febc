"""Named tensors to bytes and back: safetensors only, no metadata, no pickle, strict on reading.

    u64 header length | header: {name: {"dtype", "shape", "data_offsets"}}, canonical JSON, spaces to 8 | data

Everything is checked on the header alone, before a byte of data is touched or memory is taken for it: a reason says
what failed. FORMAT: another kind of file. ST_HEADER: too long, not strict JSON, metadata, other fields, not as we
write it. ST_LAYOUT: tensors overlap, leave gaps, or do not end where the data ends. ALLOWLIST: a name that no tensor
has. DTYPE, SHAPE: a type or shape that does not exist, or does not give the announced bytes.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as _save

from .canonical import parse_json
from .errors import MessageError
from .limits import MAX_TENSOR_DIMENSIONS, MAX_TENSOR_HEADER_BYTES, MAX_TENSOR_NAME_CHARS

Array = NDArray[Any]
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
NAME = re.compile(rf"(?![./])(?!.*\.\.)[A-Za-z0-9_.:/-]{{1,{MAX_TENSOR_NAME_CHARS}}}")
# Beginnings of zip (torch, npz), pickle, npy and gzip files: named, so that nobody looks for a damaged tensor file.
OTHERS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x93NUMPY", b"\x1f\x8b")


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def pack_tensors(tensors: Mapping[str, Array]) -> bytes:
    """Canonical safetensors bytes: names sorted, C order, no metadata (nothing can ride along)."""
    return bytes(_save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}))


def unpack_tensors(data: bytes) -> dict[str, Array]:
    """Tensors of a safetensors blob, as `pack_tensors` writes it and in no other way.

    Raises:
        MessageError: its `reason` says why, see above.
    """
    head = _head(data[: 8 + MAX_TENSOR_HEADER_BYTES], len(data))
    entries = _entries(head, len(data) - 8 - len(head))
    if _canonical(entries) != head:
        _fail("ST_HEADER", "a tensor header as this software writes it, without extra bytes")
    start = 8 + len(head)
    return {
        item.name: np.frombuffer(
            data, DTYPES[item.dtype], prod(item.shape), start + item.start
        ).reshape(item.shape).copy()
        for item in entries
    }  # fmt: skip


def load_tensors(path: Path) -> dict[str, Array]:
    """Tensors of a local safetensors file, each read once: 300 MB of dictionary take 300 MB, not three times that.

    Raises:
        MessageError: as `unpack_tensors`, but the header may be written in another way. OSError: cannot be read.
    """
    with path.open("rb") as stream:
        start, size = stream.read(8 + MAX_TENSOR_HEADER_BYTES), os.fstat(stream.fileno()).st_size
    head = _head(start, size)
    _entries(head, size - 8 - len(head))
    try:
        with safe_open(path, framework="numpy") as opened:
            return {name: np.asarray(opened.get_tensor(name)) for name in sorted(opened.keys())}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MessageError("Expected a well-formed tensor file.", reason="ST_HEADER") from error


def _fail(reason: str, what: str) -> NoReturn:
    raise MessageError(f"Expected {what}.", reason=reason)


def _head(data: bytes, size: int) -> bytes:
    """The header's bytes; `size` is that of the whole blob."""
    # A header of 640, 896, 1,152 or 1,408 bytes begins like a pickle; only a tensor file has its brace at byte 8.
    if data.startswith(OTHERS) and data[8:9] != b"{":
        _fail("FORMAT", "a safetensors blob, not a zip, pickle, npy or gzip file")
    if len(data) < 8:
        _fail("ST_HEADER", "a tensor blob of at least 8 bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(MAX_TENSOR_HEADER_BYTES, size - 8):
        _fail("ST_HEADER", f"a tensor header inside the blob, at most {MAX_TENSOR_HEADER_BYTES} bytes")
    return data[8 : 8 + length]


def _entries(head: bytes, size: int) -> list[_Entry]:
    """The header's tensors in the order of their data, which they fill without gaps."""
    try:
        values = parse_json(head, max_bytes=MAX_TENSOR_HEADER_BYTES)
    except MessageError as error:
        raise MessageError("Expected a well-formed tensor header.", reason="ST_HEADER") from error
    if not isinstance(values, dict) or "__metadata__" in values:
        _fail("ST_HEADER", "a table of tensors and no metadata in a tensor header")
    entries = sorted((_entry(name, value) for name, value in values.items()), key=lambda item: item.start)
    at = 0
    for item in entries:
        if item.start != at:
            _fail("ST_LAYOUT", "tensors that follow each other without overlap or gap")
        at = item.end
    if at != size:
        _fail("ST_LAYOUT", "tensors that end where the data ends")
    return entries


def _entry(name: str, value: Any) -> _Entry:
    if not NAME.fullmatch(name):
        _fail("ALLOWLIST", f"a tensor name of letters, digits, '_', '-', '.' and ':', got {name[:40]!r}")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _fail("ST_HEADER", "dtype, shape and data_offsets of every tensor, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in DTYPES:
        _fail("DTYPE", f"a dtype of {sorted(DTYPES)}")
    if not _counts(shape) or len(shape) > MAX_TENSOR_DIMENSIONS:
        _fail("SHAPE", f"a shape of at most {MAX_TENSOR_DIMENSIONS} dimensions, none negative")
    if not _counts(offsets) or len(offsets) != 2:
        _fail("ST_LAYOUT", "a first and a last offset of every tensor")
    start, end = offsets
    if prod(shape) * np.dtype(DTYPES[dtype]).itemsize != end - start:  # Python's integers do not overflow
        _fail("SHAPE", "a shape that gives the announced bytes")
    return _Entry(name, dtype, tuple(shape), start, end)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in values)


def _canonical(entries: list[_Entry]) -> bytes:
    """The header as safetensors writes it: compact JSON, padded with spaces to a multiple of 8."""
    table = {
        item.name: {"dtype": item.dtype, "shape": list(item.shape), "data_offsets": [item.start, item.end]}
        for item in entries
    }
    text = json.dumps(table, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that a reader sees the old file or the new one, also after kill -9 or power loss."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
