"""Named tensors to bytes and back: safetensors only, no metadata, no pickle, strict on reading."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as _load
from safetensors.numpy import save as _save

from .errors import MessageError

Array = NDArray[Any]
MAX_HEADER_BYTES = 1 << 20


def pack_tensors(tensors: Mapping[str, Array]) -> bytes:
    """Canonical safetensors bytes: names sorted, C order, no metadata (nothing can ride along)."""
    return bytes(_save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}))


def unpack_tensors(data: bytes) -> dict[str, Array]:
    """Tensors of a safetensors blob; refuses metadata and bytes that re-packing would not give.

    Raises:
        MessageError: truncated, malformed, with metadata, or with trailing or padding bytes.
    """
    try:
        if len(data) < 8:
            raise MessageError("Expected a tensor blob of at least 8 bytes.")
        (length,) = struct.unpack("<Q", data[:8])
        if length > min(MAX_HEADER_BYTES, len(data) - 8):
            raise MessageError("Expected a tensor header inside the blob.")
        if "__metadata__" in json.loads(data[8 : 8 + length]):
            raise MessageError("Expected no metadata in a tensor blob.")
        tensors = dict(_load(data))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MessageError("Expected a well-formed tensor blob.") from error
    if len(pack_tensors(tensors)) != len(data):
        raise MessageError("Expected a tensor blob without extra bytes.")
    return tensors


def load_tensors(path: Path) -> dict[str, Array]:
    """Tensors of a local safetensors file, each read once: 300 MB of dictionary take 300 MB, not three times that.

    Raises:
        MessageError: truncated, malformed or with metadata. OSError: cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as opened:
            if opened.metadata():
                raise MessageError("Expected no metadata in a tensor file.")
            return {name: np.asarray(opened.get_tensor(name)) for name in sorted(opened.keys())}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MessageError("Expected a well-formed tensor file.") from error


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
