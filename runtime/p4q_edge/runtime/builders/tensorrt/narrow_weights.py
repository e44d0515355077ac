"""INT4 and FP8 weights of an ONNX model: whether there are any, and the same model with their values in FP16.

NumPy has no such types, and TensorRT's bindings hand out no such weights, so both are read from the model's bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from p4q_edge.runtime.choices import QuantizedFlavour
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import (
    WIRE_BYTES,
    WIRE_VARINT,
    WireError,
    packed_varints,
    wire_fields,
    wire_header,
    wire_varint,
)

# Of onnx.proto: fields of a ModelProto, GraphProto, NodeProto, AttributeProto and TensorProto, and three of its types.
_GRAPH = 7
_NODE, _TENSOR = 1, 5
_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 1, 3
_DIMS, _TYPE, _NAME, _RAW = 1, 2, 8, 9
_INT4, _E4M3, _FLOAT16 = 22, 17, 10


def flavour_of(model: bytes) -> QuantizedFlavour:
    """Return what the linears of a model are quantized to, by its constants; of what is no model the parser tells."""
    try:
        tensors = [_Tensor.read(model, *place) for place in _places(model, _TENSOR)]
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
        return _with_values(model)
    except (WireError, UnicodeError) as error:
        raise CorruptArtifactError(f"the bundle's graph is no model: {error}. Export the bundle again.") from error


def _with_values(model: bytes) -> bytes:
    tensors = {tensor.name: tensor for tensor in (_Tensor.read(model, *place) for place in _places(model, _TENSOR))}
    restored: list[bytes] = []
    dropped: set[tuple[int, int]] = set()
    for place in _places(model, _NODE):
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
class _Tensor:
    name: str
    kind: int
    dims: tuple[int, ...]
    raw: bytes
    place: tuple[int, int]

    @classmethod
    def read(cls, data: bytes, start: int, stop: int) -> _Tensor:
        name, kind, raw, dims = "", 0, (0, 0), []
        for number, wire, at, end in wire_fields(data, start, stop):
            if number == _DIMS and wire == WIRE_VARINT:
                dims.append(at)
            elif number == _DIMS:
                dims += packed_varints(data, at, end)
            elif number == _TYPE:
                kind = at
            elif number == _NAME:
                name = data[at:end].decode()
            elif number == _RAW:
                raw = at, end
        # Other types may keep their values elsewhere; they are not read.
        kept = data[slice(*raw)] if kind in (_INT4, _E4M3, _FLOAT16) else b""
        return cls(name=name, kind=kind, dims=tuple(dims), raw=kept, place=(start, stop))


@dataclass(frozen=True, kw_only=True)
class _Node:
    operator: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, data: bytes, start: int, stop: int) -> _Node:
        texts: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _OPERATOR: [""]}
        numbers = {}
        for number, _, at, end in wire_fields(data, start, stop):
            if number in texts:
                texts[number].append(data[at:end].decode())
            elif number == _ATTRIBUTE:
                name, value = "", 0
                for inner, _, a, b in wire_fields(data, at, end):
                    name = data[a:b].decode() if inner == _ATTRIBUTE_NAME else name
                    value = a if inner == _ATTRIBUTE_INT else value
                numbers[name] = value
        inputs, outputs = tuple(texts[_INPUT]), tuple(texts[_OUTPUT])
        return cls(operator=texts[_OPERATOR][-1], inputs=inputs, outputs=outputs, numbers=numbers)


def _values(node: _Node, weight: _Tensor, tensors: Mapping[str, _Tensor]) -> np.ndarray:
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


def _values_of_e4m3(node: _Node, weight: _Tensor, tensors: Mapping[str, _Tensor]) -> np.ndarray:
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


def _steps(node: _Node, weight: _Tensor, tensors: Mapping[str, _Tensor], form: _Form) -> np.ndarray | None:
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


def e4m3_values(raw: bytes) -> np.ndarray:
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


def unpacked(raw: bytes, count: int) -> np.ndarray:
    """Return `count` signed integers of 4 bits, int8: of each byte the lower half comes first.

    >>> unpacked(bytes([0x9F, 0x07]), 3).tolist()
    [-1, -7, 7]
    """
    data = np.frombuffer(raw, np.uint8)
    halves = np.stack([data & 0x0F, data >> 4], axis=1).ravel()[:count].astype(np.int8)
    signed: np.ndarray = (halves ^ 8) - 8
    return signed


def _places(model: bytes, field_number: int) -> Iterator[tuple[int, int]]:
    """Yield where the nodes or tensors of a model's graph lie, of all parts of the graph."""
    for number, wire, start, stop in wire_fields(model, 0, len(model)):
        if number == _GRAPH and wire == WIRE_BYTES:
            for inner, kind, at, end in wire_fields(model, start, stop):
                if inner == field_number and kind == WIRE_BYTES:
                    yield at, end


def _rewritten(model: bytes, dropped: set[tuple[int, int]], tensors: list[bytes]) -> Iterator[bytes]:
    """Yield a model without what lies at some places of its graph, followed by one with the tensors alone."""
    at = 0
    for number, wire, start, stop in wire_fields(model, 0, len(model)):
        end = stop
        if number == _GRAPH and wire == WIRE_BYTES:
            yield from _message(_GRAPH, b"".join(_kept(model, start, stop, dropped)))
        else:
            yield model[at:end]
        at = end
    # Messages of one model that follow one another merge, and repeated fields append.
    yield from _message(_GRAPH, b"".join(b"".join(_message(_TENSOR, tensor)) for tensor in tensors))


def _kept(model: bytes, start: int, stop: int, dropped: set[tuple[int, int]]) -> Iterator[bytes]:
    at = start
    for _, _, first, end in wire_fields(model, start, stop):
        if (first, end) not in dropped:
            yield model[at:end]
        at = end


def _constant(name: str, values: np.ndarray) -> bytes:
    """Return a TensorProto of FP16."""
    parts = [wire_varint(_DIMS << 3) + wire_varint(size) for size in values.shape]
    parts.append(wire_varint(_TYPE << 3) + wire_varint(_FLOAT16))
    parts += _message(_NAME, name.encode())
    parts += _message(_RAW, values.astype("<f2").tobytes())
    return b"".join(parts)


def _message(number: int, payload: bytes) -> Iterator[bytes]:
    yield wire_header(number, len(payload))
    yield payload
