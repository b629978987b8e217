"""ONNX models as bytes: the protocol buffer fields that a runtime needs, with embedded weights."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

OPSET, IR_VERSION = 13, 8

RUNTIME = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}  # TensorProto.DataType
_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7  # AttributeProto.AttributeType


def node(operator: str, inputs: Iterable[str], output: str, *, domain: str = "", **attributes: Any) -> bytes:
    """Return a NodeProto with one output; attributes are floats, integers, texts, or lists of integers."""
    parts = [_bytes(1, name) for name in inputs]
    parts += [_bytes(2, output), _bytes(4, operator), _bytes(7, domain)]
    parts += [_bytes(5, _attribute(name, value)) for name, value in attributes.items()]
    return b"".join(parts)


def tensor(name: str, array: NDArray[Any]) -> bytes:
    """Return a TensorProto with its data."""
    dims = b"".join(_integer(1, n) for n in array.shape)
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return dims + _integer(2, _TYPES[array.dtype.name]) + _bytes(8, name) + _bytes(9, data)


def value(name: str, dtype: str, shape: Iterable[int]) -> bytes:
    """Return a ValueInfoProto, the input or output of a graph."""
    dims = b"".join(_bytes(1, _integer(1, n)) for n in shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, _integer(1, _TYPES[dtype]) + _bytes(2, dims)))


def model(nodes: Iterable[bytes], tensors: Iterable[bytes], given: bytes, result: bytes) -> bytes:
    """Return a ModelProto with one input and one output."""
    parts = [*(_bytes(1, n) for n in nodes), _bytes(2, "encoder"), *(_bytes(5, t) for t in tensors)]
    graph = b"".join([*parts, _bytes(11, given), _bytes(12, result)])
    operators = [_bytes(8, _bytes(1, name) + _integer(2, n)) for name, n in (("", OPSET), (RUNTIME, 1))]
    return b"".join([_integer(1, IR_VERSION), _bytes(2, "stochcl"), _bytes(7, graph), *operators])


def _attribute(name: str, content: float | str | list[int]) -> bytes:
    head = _bytes(1, name)
    if isinstance(content, float):
        return head + _key(2, 5) + struct.pack("<f", content) + _integer(20, _FLOAT)
    if isinstance(content, int):
        return head + _integer(3, content) + _integer(20, _INT)
    if isinstance(content, str):
        return head + _bytes(4, content) + _integer(20, _STRING)
    return head + b"".join(_integer(8, n) for n in content) + _integer(20, _INTS)


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _integer(number: int, content: int) -> bytes:
    return _key(number, 0) + _varint(content % (1 << 64))  # negative numbers take 64 bits


def _bytes(number: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return _key(number, 2) + _varint(len(data)) + data


def _varint(content: int) -> bytes:
    out = bytearray()
    while content > 0x7F:
        out.append(content & 0x7F | 0x80)
        content >>= 7
    out.append(content)
    return bytes(out)
