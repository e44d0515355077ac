"""Large weights of a model beside it, which ONNX Runtime copies once: within the model it would copy them twice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from p4q_edge.runtime.storage import WIRE_BYTES, packed_varints, wire_fields, wire_header, wire_varint

LEAST_BYTES = 1 << 14
"""Smaller weights stay in the model."""
# Fields of onnx.proto, by message.
_GRAPH, _TENSOR = 7, 5
_DIMS, _TYPE, _NAME, _RAW, _ELSEWHERE, _LOCATION = 1, 2, 8, 9, 13, 14
_KEY, _VALUE = 1, 2
_EXTERNAL = 1
_TYPES: dict[int, np.dtype[np.generic]] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    10: np.dtype("<f2"),
}
"""By the number of TensorProto; weights of other types stay in the model."""


def split_weights(model: bytes | memoryview) -> tuple[bytes, dict[str, np.ndarray]]:
    """Return a model that says of its large weights that they are elsewhere, and these by name.

    Args:
        model: a model that `check_model` accepts.

    Returns:
        The model, and views of `model` (copies where a value of several bytes is not aligned).
    """
    data, at = memoryview(model), 0
    parts: list[bytes | memoryview] = []
    weights: dict[str, np.ndarray] = {}
    for number, wire, start, stop in wire_fields(data, 0, len(data)):
        if number == _GRAPH and wire == WIRE_BYTES:
            parts += _message(_GRAPH, b"".join(_graph(data, start, stop, weights)))
        else:
            parts.append(data[at:stop])
        at = stop
    return b"".join(parts), weights


def _graph(data: memoryview, start: int, stop: int, weights: dict[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """Yield the fields of a graph, and put its large weights aside."""
    at = start
    for number, wire, first, end in wire_fields(data, start, stop):
        tensor = _Tensor.read(data, first, end) if number == _TENSOR and wire == WIRE_BYTES else None
        values = None if tensor is None else tensor.values(data)
        if tensor is None or values is None or tensor.name in weights:
            yield data[at:end]
        else:
            weights[tensor.name] = values
            yield from _message(_TENSOR, tensor.elsewhere())
        at = end


@dataclass(kw_only=True)
class _Tensor:
    """A TensorProto: `plain` where it has no more than dimensions, type, name and raw values."""

    name: str = ""
    kind: int = 0
    dims: list[int] = field(default_factory=list)
    raw: tuple[int, int] = (0, 0)
    plain: bool = True

    @classmethod
    def read(cls, data: memoryview, start: int, stop: int) -> _Tensor:
        tensor = cls()
        for number, wire, at, end in wire_fields(data, start, stop):
            if number == _DIMS:
                tensor.dims += packed_varints(data, at, end) if wire == WIRE_BYTES else [at]
            elif number == _TYPE:
                tensor.kind = at
            elif number == _NAME:
                tensor.name = bytes(data[at:end]).decode(errors="surrogateescape")
            elif number == _RAW:
                tensor.raw = at, end
            else:
                tensor.plain = False
        return tensor

    def values(self, data: memoryview) -> np.ndarray | None:
        """Return the values where they are large and as many as the dimensions say, else None."""
        start, stop = self.raw
        dtype = _TYPES.get(self.kind)
        if not self.plain or dtype is None or stop - start < LEAST_BYTES:
            return None
        if math.prod(self.dims) * dtype.itemsize != stop - start:
            return None
        return np.require(np.frombuffer(data[start:stop], dtype).reshape(self.dims), requirements="A")

    def elsewhere(self) -> bytes:
        """Return the tensor without its values. ONNX Runtime asks for a place, although it is given them."""
        parts = [wire_varint(_DIMS << 3) + wire_varint(size) for size in self.dims]
        parts.append(wire_varint(_TYPE << 3) + wire_varint(self.kind))
        parts += _message(_NAME, self.name.encode(errors="surrogateescape"))
        for key, value in (("location", "given"), ("offset", "0"), ("length", str(self.raw[1] - self.raw[0]))):
            entry = [*_message(_KEY, key.encode()), *_message(_VALUE, value.encode())]
            parts += _message(_ELSEWHERE, b"".join(entry))
        parts.append(wire_varint(_LOCATION << 3) + wire_varint(_EXTERNAL))
        return b"".join(parts)


def _message(number: int, payload: bytes) -> Iterator[bytes]:
    yield wire_header(number, len(payload))
    yield payload
