"""INT4 and FP8 weights of an ONNX model: whether there are any, and the same model with their values in FP16.

NumPy has no such types, and TensorRT's bindings hand out no such weights, so both are read from the model's bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from p4q_edge.runtime.artifacts import (
    GRAPH_OF_MODEL,
    NODE_OF_GRAPH,
    RAW_OF_TENSOR,
    TENSOR_OF_GRAPH,
    StoredTensor,
    places_in_graph,
    tensor_head,
    with_graphs,
)
from p4q_edge.runtime.choices import QuantizedFlavour
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import WIRE_BYTES, WIRE_VARINT, WireError, expect_wire, wire_fields, wire_message

# Of onnx.proto: fields of a NodeProto and an AttributeProto, and three types of a TensorProto.
_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 1, 3
_INT4, _E4M3, _FLOAT16 = 22, 17, 10


def flavour_of(model: bytes) -> QuantizedFlavour:
    """Return what the linears of a model are quantized to, by its constants; of what is no model the parser tells."""
    try:
        tensors = list(_tensors(memoryview(model)))
    except (WireError, UnicodeError):
        return "int8"
    if any(tensor.kind == _INT4 for tensor in tensors):
        return "int4"
    return "fp8" if any(tensor.kind == _E4M3 and len(tensor.dims) == 2 for tensor in tensors) else "int8"


def with_fp16_weights(model: bytes) -> bytes:
    """Return a model in which each INT4 weight with scales of blocks along its rows, and each FP8 weight with scales of
    its output channels, is a constant of FP16.

    Args:
        model: ONNX, complete; the scales are FP16.

    Raises:
        CorruptArtifactError: it is no model, or such a weight is not as the exporter writes it.
    """
    try:
        return _with_values(memoryview(model))
    except (WireError, UnicodeError) as error:
        raise CorruptArtifactError(f"the bundle's graph is no model: {error}. Export the bundle again.") from error


def _tensors(model: memoryview) -> Iterator[StoredTensor]:
    return (StoredTensor.read(model, *place) for place in places_in_graph(model, TENSOR_OF_GRAPH))


def _with_values(model: memoryview) -> bytes:
    tensors = {tensor.name: tensor for tensor in _tensors(model)}
    restored: list[bytes] = []
    dropped: set[tuple[int, int]] = set()
    for place in places_in_graph(model, NODE_OF_GRAPH):
        node = _Node.read(model, *place)
        weight = tensors.get(node.inputs[0]) if node.inputs else None
        if node.operator == "DequantizeLinear" and weight is not None and weight.kind in (_INT4, _E4M3):
            values = _values(node, weight, tensors)
            restored.append(_constant(node.outputs[0], values))
            # Zero points are 0 and of their nodes alone, as lint has it.
            zeros = (tensors[name].place for name in node.inputs[2:] if name in tensors)
            dropped |= {place, weight.place, *zeros}
    return b"".join(_rewritten(model, dropped, restored))


@dataclass(frozen=True, kw_only=True)
class _Node:
    operator: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, data: memoryview, start: int, stop: int) -> _Node:
        texts: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _OPERATOR: [""]}
        numbers = {}
        for number, wire, at, end in wire_fields(data, start, stop):
            if number in (*texts, _ATTRIBUTE):
                expect_wire(number, wire, WIRE_BYTES)
            if number in texts:
                texts[number].append(bytes(data[at:end]).decode())
            elif number == _ATTRIBUTE:
                name, value = "", 0
                for inner, wire_of_inner, a, b in wire_fields(data, at, end):
                    if inner == _ATTRIBUTE_NAME:
                        expect_wire(inner, wire_of_inner, WIRE_BYTES)
                        name = bytes(data[a:b]).decode()
                    elif inner == _ATTRIBUTE_INT:
                        expect_wire(inner, wire_of_inner, WIRE_VARINT)
                        value = a
                numbers[name] = value
        inputs, outputs = tuple(texts[_INPUT]), tuple(texts[_OUTPUT])
        return cls(operator=texts[_OPERATOR][-1], inputs=inputs, outputs=outputs, numbers=numbers)


def _values(node: _Node, weight: StoredTensor, tensors: Mapping[str, StoredTensor]) -> np.ndarray:
    """Return the FP16 values `(in, out)` of a weight: computed in float32, and rounded once."""
    if weight.kind == _E4M3:
        return _values_of_e4m3(node, weight, tensors)
    size = node.numbers.get("block_size", 0)
    rows, columns = weight.dims if len(weight.dims) == 2 else (0, 0)
    blocks = rows // max(size, 1)
    form = _Form(operands=2, axis=0, scales=(blocks, columns), weight_bytes=(rows * columns + 1) // 2)
    steps = _steps(node, weight, tensors, form)
    if steps is None or rows != size * blocks:
        raise CorruptArtifactError(
            f"the weight {weight.name} is not in blocks as the exporter writes it. Export the bundle again."
        )
    integers = unpacked(weight.raw, rows * columns).reshape(weight.dims)
    values: np.ndarray = integers.astype(np.float32) * np.repeat(steps, size, axis=0)
    return values.astype(np.float16)


def _values_of_e4m3(node: _Node, weight: StoredTensor, tensors: Mapping[str, StoredTensor]) -> np.ndarray:
    rows, columns = weight.dims if len(weight.dims) == 2 else (0, 0)
    form = _Form(operands=3, axis=1, scales=(columns,), weight_bytes=rows * columns)
    steps = _steps(node, weight, tensors, form)
    if steps is None:
        raise CorruptArtifactError(
            f"the FP8 weight {weight.name} is not as the exporter writes it: with a scale for each output. Export the "
            "bundle again."
        )
    values: np.ndarray = e4m3_values(weight.raw).reshape(weight.dims) * steps
    return values.astype(np.float16)


@dataclass(frozen=True, kw_only=True)
class _Form:
    """How the exporter writes a DequantizeLinear and what it reads."""

    operands: int
    axis: int
    scales: tuple[int, ...]
    weight_bytes: int


def _steps(node: _Node, weight: StoredTensor, tensors: Mapping[str, StoredTensor], form: _Form) -> np.ndarray | None:
    """Return the scales of a weight (in, out) in float32; None where it has another form."""
    scale = tensors.get(node.inputs[1]) if len(node.inputs) == form.operands else None
    fits = (
        len(node.outputs) == 1
        and node.numbers.get("axis", 1) == form.axis
        and scale is not None
        and scale.kind == _FLOAT16
        and len(weight.dims) == 2
        and scale.dims == form.scales
        and len(weight.raw) == form.weight_bytes
        and len(scale.raw) == 2 * math.prod(scale.dims)
    )
    if scale is None or not fits:
        return None
    steps: np.ndarray = np.frombuffer(scale.raw, "<f2").reshape(scale.dims).astype(np.float32)
    return steps


def e4m3_values(raw: bytes | memoryview) -> np.ndarray:
    """Return the float32 values of E4M3 numbers, a byte each: sign, 4 bits of exponent (bias 7), 3 of mantissa.

    >>> e4m3_values(bytes([0x00, 0x01, 0x38, 0xFE])).tolist()
    [0.0, 0.001953125, 1.0, -448.0]
    """
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), np.ldexp(1 + mantissa / 8, exponent - 7))
    size[code & 127 == 127] = np.nan  # the only code that is no number
    table = np.where(code < 128, size, -size).astype(np.float32)
    values: np.ndarray = table[np.frombuffer(raw, np.uint8)]
    return values


def unpacked(raw: bytes | memoryview, count: int) -> np.ndarray:
    """Return `count` signed integers of 4 bits, int8: of each byte the lower half comes first.

    >>> unpacked(bytes([0x9F, 0x07]), 3).tolist()
    [-1, -7, 7]
    """
    data = np.frombuffer(raw, np.uint8)
    halves = np.stack([data & 0x0F, data >> 4], axis=1).ravel()[:count].astype(np.int8)
    signed: np.ndarray = (halves ^ 8) - 8
    return signed


def _rewritten(model: memoryview, dropped: set[tuple[int, int]], tensors: list[bytes]) -> Iterator[bytes | memoryview]:
    """Yield a model without what lies at some places of its graph, followed by one with the tensors alone."""
    yield from with_graphs(model, lambda start, stop: _kept(model, start, stop, dropped))
    # Messages of one model that follow one another merge, and repeated fields append.
    added = b"".join(part for tensor in tensors for part in wire_message(TENSOR_OF_GRAPH, tensor))
    yield from wire_message(GRAPH_OF_MODEL, added)


def _kept(model: memoryview, start: int, stop: int, dropped: set[tuple[int, int]]) -> Iterator[memoryview]:
    at = start
    for _, _, first, end in wire_fields(model, start, stop):
        if (first, end) not in dropped:
            yield model[at:end]
        at = end


def _constant(name: str, values: np.ndarray) -> bytes:
    """Return a TensorProto of FP16."""
    head = tensor_head(name, _FLOAT16, values.shape)
    return b"".join([head, *wire_message(RAW_OF_TENSOR, values.astype("<f2").tobytes())])
