"""Large weights of a model beside it, which ONNX Runtime copies once: within the model it would copy them twice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from p4q_edge.runtime.artifacts import TENSOR_OF_GRAPH, StoredTensor, tensor_head, with_graphs
from p4q_edge.runtime.storage import WIRE_BYTES, wire_fields, wire_message, wire_varint

LEAST_BYTES = 1 << 14
"""Smaller weights stay in the model."""
# Fields of onnx.proto: of a TensorProto whose values are elsewhere, and of an entry that says where.
_ELSEWHERE, _LOCATION = 13, 14
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

    Raises:
        UnicodeError: the name of a tensor is no text.
    """
    weights: dict[str, np.ndarray] = {}
    data = memoryview(model)
    return b"".join(with_graphs(data, partial(_without_weights, data, weights))), weights


def _without_weights(
    model: memoryview, weights: dict[str, np.ndarray], start: int, stop: int
) -> Iterator[bytes | memoryview]:
    """Yield the fields of a graph, and put its large weights aside."""
    at = start
    for number, wire, first, end in wire_fields(model, start, stop):
        is_tensor = number == TENSOR_OF_GRAPH and wire == WIRE_BYTES
        tensor = StoredTensor.read(model, first, end) if is_tensor else None
        values = None if tensor is None else _large(tensor)
        if tensor is None or values is None or tensor.name in weights:
            yield model[at:end]
        else:
            weights[tensor.name] = values
            yield from wire_message(TENSOR_OF_GRAPH, _elsewhere(tensor))
        at = end


def _large(tensor: StoredTensor) -> np.ndarray | None:
    """Return the values of a tensor where they are large and as many as the dimensions say, else None."""
    dtype = _TYPES.get(tensor.kind)
    if not tensor.plain or dtype is None or len(tensor.raw) < LEAST_BYTES:
        return None
    claimed = dtype.itemsize
    for size in tensor.dims:
        claimed *= size
        if not 0 < claimed <= len(tensor.raw):  # a product of all could have any number of digits
            return None
    if claimed != len(tensor.raw):
        return None
    return np.require(np.frombuffer(tensor.raw, dtype).reshape(tensor.dims), requirements="A")


def _elsewhere(tensor: StoredTensor) -> bytes:
    """Return a tensor without its values. ONNX Runtime asks for a place, although it is given them."""
    said = [tensor_head(tensor.name, tensor.kind, tensor.dims)]
    for key, value in (("location", "given"), ("offset", "0"), ("length", str(len(tensor.raw)))):
        entry = [*wire_message(_KEY, key.encode()), *wire_message(_VALUE, value.encode())]
        said += wire_message(_ELSEWHERE, b"".join(entry))
    said.append(wire_varint(_LOCATION << 3) + wire_varint(_EXTERNAL))
    return b"".join(said)
