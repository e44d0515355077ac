"""Learning curves: what each epoch gave, as CSV and as an event file that TensorBoard reads."""

import csv
import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from p4q_edge.runtime.storage import atomic_write, wire_message, wire_varint

CURVE_TABLE = "learning.csv"
EVENTS_NAME = "events.out.tfevents.0.p4q-edge"
"""TensorBoard takes files with `tfevents` in their names."""

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, reflected; zlib has another one."""
_MASK_DELTA = 0xA282EAD8


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one epoch gave.

    Attributes:
        epoch: from 1.
        loss: mean over the images.
        rates: learning rate of each part that is learned.
        held_out_top1: share of right answers on images that were not learned from, 0 to 1; None where not asked.
    """

    epoch: int
    loss: float
    rates: dict[str, float]
    held_out_top1: float | None = None


def encode_curve(points: Sequence[CurvePoint]) -> str:
    """Points as JSON."""
    return msgspec.json.encode(points).decode()


def decode_curve(text: str) -> tuple[CurvePoint, ...]:
    """Points of `encode_curve`; none of an empty text.

    Raises:
        msgspec.DecodeError: the text is not theirs.
    """
    return msgspec.json.decode(text, type=tuple[CurvePoint, ...]) if text else ()


def write_curve(folder: Path, points: Sequence[CurvePoint]) -> tuple[Path, Path]:
    """Write points as CSV and as events, in place of what an earlier run left there; return both paths."""
    table, events = folder / CURVE_TABLE, folder / EVENTS_NAME
    atomic_write(table, as_csv(points).encode(), force=True)
    atomic_write(events, as_events(points), force=True)
    return table, events


def as_csv(points: Sequence[CurvePoint]) -> str:
    """Return a line for each epoch; what was not asked for is empty."""
    parts = list(dict.fromkeys(name for point in points for name in point.rates))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["epoch", "loss", "held_out_top1", *(f"rate_{name}" for name in parts)])
    for point in points:
        held_out = "" if point.held_out_top1 is None else repr(point.held_out_top1)
        rates = [repr(point.rates[name]) if name in point.rates else "" for name in parts]
        rows.writerow([point.epoch, repr(point.loss), held_out, *rates])
    return text.getvalue()


def as_events(points: Sequence[CurvePoint]) -> bytes:
    """Return the same as TensorBoard's records of scalars, without its package; times are 0, so equal runs are equal.

    Each record is a length, the bytes of an `Event` message, and a masked CRC-32C of either.
    """
    events = [_field(3, b"brain.Event:2")]
    for point in points:
        for tag, value in _scalars(point):
            scalar = _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value)
            events.append(b"\x10" + wire_varint(point.epoch) + _field(5, _field(1, scalar)))
    return b"".join(_record(event) for event in events)


def _scalars(point: CurvePoint) -> Iterator[tuple[str, float]]:
    yield "loss", point.loss
    if point.held_out_top1 is not None:
        yield "held_out_top1", point.held_out_top1
    for name, rate in point.rates.items():
        yield f"rate/{name}", rate


def _field(number: int, data: bytes) -> bytes:
    """Return a field of a message that holds bytes."""
    return b"".join(wire_message(number, data))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """Return the Castagnoli checksum of bytes, as of iSCSI (RFC 3720).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
