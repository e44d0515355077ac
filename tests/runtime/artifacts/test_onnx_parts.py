"""Tensors in the bytes of a model: what they hold, and fields of another wire type than their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.artifacts.onnx_parts import RAW_OF_TENSOR, StoredTensor, tensor_head
from p4q_edge.runtime.storage import WireError
from p4q_edge.runtime.storage.protobuf import WIRE_BYTES, WIRE_FIXED32, WIRE_FIXED64, WIRE_VARINT, wire_varint

from onnx_bytes import field

PAYLOAD = {WIRE_VARINT: b"\1", WIRE_FIXED64: b"12345678", WIRE_BYTES: b"\1x", WIRE_FIXED32: b"1234"}
OWN = {1: {WIRE_VARINT, WIRE_BYTES}, 2: {WIRE_VARINT}, 8: {WIRE_BYTES}, RAW_OF_TENSOR: {WIRE_BYTES}}


def read(data: bytes) -> StoredTensor:
    return StoredTensor.read(memoryview(data), 0, len(data))


@given(st.text(max_size=9), st.integers(0, 30), st.lists(st.integers(0, 1 << 63), max_size=5), st.binary(max_size=9))
def test_a_head_is_read_as_it_was_written(name: str, kind: int, dims: list[int], raw: bytes) -> None:
    found = read(tensor_head(name, kind, dims) + field(RAW_OF_TENSOR, raw))
    assert (found.name, found.kind, found.dims, bytes(found.raw)) == (name, kind, tuple(dims), raw)
    assert found.plain
    assert not read(tensor_head(name, kind, dims) + field(13, b"elsewhere")).plain


@pytest.mark.parametrize("number", OWN)
@pytest.mark.parametrize("wire", PAYLOAD)
def test_a_field_of_another_wire_type_is_refused(number: int, wire: int) -> None:
    data = wire_varint(number << 3 | wire) + PAYLOAD[wire]
    if wire in OWN[number]:
        read(data)
    else:
        with pytest.raises(WireError, match=f"field {number} has wire type {wire}"):
            read(data)
