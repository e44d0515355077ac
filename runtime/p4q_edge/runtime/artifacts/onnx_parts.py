"""Graphs and tensors in the bytes of an ONNX model: where they lie, and a model with other ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from p4q_edge.runtime.storage import (
    WIRE_BYTES,
    WIRE_VARINT,
    expect_wire,
    packed_varints,
    wire_fields,
    wire_message,
    wire_varint,
)

GRAPH_OF_MODEL, NODE_OF_GRAPH, TENSOR_OF_GRAPH = 7, 1, 5
"""Fields of onnx.proto."""
RAW_OF_TENSOR = 9
_DIMS, _TYPE, _NAME = 1, 2, 8
_WIRES = {
    _DIMS: (WIRE_VARINT, WIRE_BYTES),
    _TYPE: (WIRE_VARINT,),
    _NAME: (WIRE_BYTES,),
    RAW_OF_TENSOR: (WIRE_BYTES,),
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A TensorProto in the bytes of a model.

    Attributes:
        name: its name.
        kind: number of its type.
        dims: its dimensions.
        raw: its raw values, uint8, where they lie in the model.
        place: where it starts and stops.
        plain: whether it has nothing else.
    """

    name: str
    kind: int
    dims: tuple[int, ...]
    raw: memoryview
    place: tuple[int, int]
    plain: bool

    @classmethod
    def read(cls, model: memoryview, start: int, stop: int) -> StoredTensor:
        """Read the message `model[start:stop]`.

        Raises:
            WireError: it is none.
            UnicodeError: its name is no text.
        """
        name, kind, raw, plain = "", 0, (0, 0), True
        dims: list[int] = []
        for number, wire, at, end in wire_fields(model, start, stop):
            expect_wire(number, wire, *_WIRES.get(number, (wire,)))
            if number == _DIMS:
                dims += packed_varints(model, at, end) if wire == WIRE_BYTES else [at]
            elif number == _TYPE:
                kind = at
            elif number == _NAME:
                name = bytes(model[at:end]).decode()
            elif number == RAW_OF_TENSOR:
                raw = at, end
            else:
                plain = False
        place = (start, stop)
        return cls(name=name, kind=kind, dims=tuple(dims), raw=model[slice(*raw)], place=place, plain=plain)


def places_in_graph(model: memoryview, field_number: int) -> Iterator[tuple[int, int]]:
    """Yield where the nodes or tensors of a model's graph start and stop, of all parts of the graph."""
    for number, wire, start, stop in wire_fields(model, 0, len(model)):
        if number == GRAPH_OF_MODEL and wire == WIRE_BYTES:
            for inner, kind, at, end in wire_fields(model, start, stop):
                if inner == field_number and kind == WIRE_BYTES:
                    yield at, end


def with_graphs(
    model: memoryview, rewritten: Callable[[int, int], Iterable[bytes | memoryview]]
) -> Iterator[bytes | memoryview]:
    """Yield the parts of a model whose graphs are others.

    Args:
        model: ONNX.
        rewritten: gives the parts of a graph, of where the one that it replaces starts and stops.
    """
    at = 0
    for number, wire, start, stop in wire_fields(model, 0, len(model)):
        if number == GRAPH_OF_MODEL and wire == WIRE_BYTES:
            yield from wire_message(GRAPH_OF_MODEL, b"".join(rewritten(start, stop)))
        else:
            yield model[at:stop]
        at = stop


def tensor_head(name: str, kind: int, dims: Sequence[int]) -> bytes:
    """Return a TensorProto without values."""
    sizes = [wire_varint(_DIMS << 3) + wire_varint(size) for size in dims]
    return b"".join([*sizes, wire_varint(_TYPE << 3) + wire_varint(kind), *wire_message(_NAME, name.encode())])
