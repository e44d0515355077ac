"""The strict reader of Protocol Buffers: one reading, in linear time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.storage.protobuf import (
    WIRE_BYTES,
    WIRE_FIXED32,
    WIRE_FIXED64,
    WIRE_VARINT,
    WireError,
    packed_varints,
    wire_fields,
    wire_message,
    wire_varint,
)

from onnx_bytes import field, varint

numbers = st.integers(1, (1 << 29) - 1)
messages = st.lists(
    st.one_of(
        st.tuples(numbers, st.integers(0, (1 << 64) - 1)),
        st.tuples(numbers, st.binary(max_size=300)),
    ),
    max_size=8,
)


def read(data: bytes) -> list[tuple[int, int | bytes]]:
    return [
        (number, start if wire == WIRE_VARINT else data[start:stop])
        for number, wire, start, stop in wire_fields(data, 0, len(data))
    ]


@given(messages)
def test_what_was_written_is_read(fields: list[tuple[int, int | bytes]]) -> None:
    data = b"".join(field(number, value) for number, value in fields)
    assert read(data) == fields


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=20), numbers)
def test_numbers_are_written_as_they_are_read(values: list[int], number: int) -> None:
    packed = b"".join(map(wire_varint, values))
    assert packed == b"".join(map(varint, values))
    assert list(packed_varints(b"\x80" + packed + b"\x80", 1, 1 + len(packed))) == values
    message = b"".join(wire_message(number, packed))
    assert list(wire_fields(message, 0, len(message))) == [
        (number, WIRE_BYTES, len(message) - len(packed), len(message))
    ]


@pytest.mark.parametrize("data", [b"\x80", b"\x80\x00", b"\xff" * 10])
def test_packed_numbers_are_read_strictly(data: bytes) -> None:
    with pytest.raises(WireError, match="the number at byte 0"):
        list(packed_varints(data, 0, len(data)))


def test_fixed_numbers_are_read() -> None:
    data = varint(3 << 3 | WIRE_FIXED32) + b"abcd" + varint(4 << 3 | WIRE_FIXED64) + b"12345678"
    assert read(data) == [(3, b"abcd"), (4, b"12345678")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x88\x00\x01", "is not in its shortest form"),  # the tag 8 in two bytes
        (b"\x08\x81\x00", "is not in its shortest form"),
        (b"\x0a\x81\x80\x00x", "is not in its shortest form"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "is not in its shortest form"),  # beyond 64 bits
        (b"\x08" + b"\x80" * 10 + b"\x01", "does not end"),
        (b"\x08\x80", "does not end"),
        (b"\x08", "does not end"),
        (b"\x0a\x05abc", "claims 5 bytes; 3 are left"),
        (b"\x0d\x00\x00", "is cut off"),
        (b"\x09\x00\x00", "is cut off"),
        (b"\x0b", "has wire type 3"),
        (b"\x0c", "has wire type 4"),
        (b"\x0f", "has wire type 7"),
        (b"\x00\x01", "field number 0"),
        (b"\x80\x80\x80\x80\x10\x01", "field number 536870912"),
    ],
)
def test_a_second_reading_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        read(data)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        fields = read(data)
    except WireError:
        return
    kinds = {WIRE_VARINT, WIRE_BYTES, WIRE_FIXED32, WIRE_FIXED64}
    assert {wire for _, wire, _, _ in wire_fields(data, 0, len(data))} <= kinds
    assert len(fields) <= len(data)
