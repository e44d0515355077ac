"""The wire format of Protocol Buffers, read strictly and in linear time, and written, without the library.

A reader that is to refuse something must not see less than the reader that comes after it. Libraries take numbers in
more bytes than they need and skip what they do not know; here both are errors, so that a message has one reading.
"""

from __future__ import annotations

from collections.abc import Iterator

WIRE_VARINT, WIRE_FIXED64, WIRE_BYTES, WIRE_FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {WIRE_FIXED64: 8, WIRE_FIXED32: 4}
_MAX_VARINT_BYTES = 10
_MORE = 0x80


class WireError(ValueError):
    """Bytes that are no message, or one that has a second reading."""


def wire_fields(data: bytes | memoryview, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of the message `data[start:stop]` in order.

    Yields:
        Number, wire type, and where its value starts and stops; for `WIRE_VARINT` the value itself, and where it stops.

    Raises:
        WireError: the message is cut off, a number has more bytes than it needs, or a wire type is unknown.
    """
    at = start
    while at < stop:
        tag = data[at]
        if tag < _MORE:
            at += 1
        else:
            tag, at = _varint(data, at, stop)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise WireError(f"field number {number} at byte {at}")
        if wire == WIRE_BYTES:
            size, at = _varint(data, at, stop)
            if size > stop - at:
                raise WireError(f"field {number} claims {size} bytes; {stop - at} are left")
            yield number, wire, at, at + size
            at += size
        elif wire == WIRE_VARINT:
            value, at = _varint(data, at, stop)
            yield number, wire, value, at
        elif wire in _FIXED_BYTES:
            size = _FIXED_BYTES[wire]
            if size > stop - at:
                raise WireError(f"field {number} is cut off")
            yield number, wire, at, at + size
            at += size
        else:
            raise WireError(f"field {number} has wire type {wire}")


def expect_wire(number: int, wire: int, *expected: int) -> None:
    """Refuse a field of another wire type than its own: its value would be taken for a place, or a place for its value.

    Raises:
        WireError: it is none of the expected ones.
    """
    if wire not in expected:
        raise WireError(f"field {number} has wire type {wire}")


def packed_varints(data: bytes | memoryview, start: int, stop: int) -> Iterator[int]:
    """Yield the numbers of a packed repeated field that lies at `data[start:stop]`.

    Raises:
        WireError: a number is cut off, or has more bytes than it needs.
    """
    at = start
    while at < stop:
        value, at = _varint(data, at, stop)
        yield value


def wire_varint(value: int) -> bytes:
    """Return a number that is not negative in its shortest form.

    >>> wire_varint(1), wire_varint(300)
    (b'\\x01', b'\\xac\\x02')
    """
    out = bytearray()
    while value >= _MORE:
        out.append(value & 0x7F | _MORE)
        value >>= 7
    return bytes([*out, value])


def wire_message(number: int, payload: bytes) -> tuple[bytes, bytes]:
    """Return a field that holds bytes as its header and the bytes, which may be too large to be copied."""
    return wire_varint(number << 3 | WIRE_BYTES) + wire_varint(len(payload)), payload


def _varint(data: bytes | memoryview, at: int, stop: int) -> tuple[int, int]:
    """Return a number and where it stops."""
    value = shift = 0
    for index in range(at, min(stop, at + _MAX_VARINT_BYTES)):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < _MORE:
            if (byte == 0 and index > at) or value >> 64:
                raise WireError(f"the number at byte {at} is not in its shortest form")
            return value, index + 1
        shift += 7
    raise WireError(f"the number at byte {at} does not end")
