"""ONNX models as bytes, without the package onnx: also such as no library writes."""

from __future__ import annotations


def varint(value: int) -> bytes:
    output = bytearray()
    while value > 0x7F:
        output.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*output, value])


def field(number: int, payload: bytes | int) -> bytes:
    """Encode one protobuf field: a varint, or bytes with their length."""
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def identity_model(input_name: str, *, element: int, operator: str = "Identity", opset: int = 20) -> bytes:
    """Return a model with one node, written without the onnx package; element 2 is uint8, 1 is float."""
    sides = [field(3, b"N"), field(1, 3), field(1, 8), field(1, 8)]
    shape = b"".join(field(1, side.replace(b"\x1a", b"\x12", 1)) for side in sides)
    kind = field(2, field(1, field(1, element) + field(2, shape)))
    node = field(1, input_name.encode()) + field(2, b"out") + field(4, operator.encode())
    graph = field(1, node) + field(2, b"g") + field(11, field(1, input_name.encode()) + kind)
    graph += field(12, field(1, b"out") + kind)
    return field(1, 9) + field(7, graph) + field(8, field(1, b"") + field(2, opset))


def external_weights(location: str) -> bytes:
    """Return a fragment with one int8 weight whose bytes lie in another file."""
    entry = field(1, b"location") + field(2, location.encode())
    return field(7, field(5, field(1, 4) + field(2, 3) + field(8, b"w") + field(13, entry) + field(14, 1)))
