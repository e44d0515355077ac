"""What an ONNX model from a stranger may hold, decided before a library sees it.

Every field that is not known here is refused, and with it weights in other files, functions, and graphs inside of
attributes: loops and branches, without which every model ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from p4q_edge.runtime.artifacts.onnx_parts import GRAPH_OF_MODEL, NODE_OF_GRAPH, TENSOR_OF_GRAPH
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import (
    WIRE_BYTES,
    WIRE_FIXED32,
    WIRE_FIXED64,
    WIRE_VARINT,
    WireError,
    printable,
    wire_fields,
)

MAX_NODES = 20_000
"""Several times as many as the largest tower of open_clip has."""
MAX_TENSORS = 20_000
MAX_ATTRIBUTES = 32
OPERATORS = frozenset(
    {
        "Add",
        "AveragePool",
        "Cast",
        "Clip",
        "Concat",
        "Conv",
        "DequantizeLinear",
        "Div",
        "Erf",
        "Flatten",
        "Gather",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LayerNormalization",
        "LpNormalization",
        "MatMul",
        "Max",
        "MaxPool",
        "Mul",
        "Neg",
        "Pad",
        "QuantizeLinear",
        "Reciprocal",
        "ReduceL2",
        "ReduceMean",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators of ONNX's own domain that the exporter writes or handles by name; none computes without end."""

Operator = tuple[str, str]
"""Domain (empty for ONNX's own) and name."""

_Kinds = Mapping[int, tuple[int, ...]]
_NUMBER, _TEXT = (WIRE_VARINT,), (WIRE_BYTES,)
# Repeated numbers may be packed.
_NUMBERS, _FLOATS, _DOUBLES = (WIRE_VARINT, WIRE_BYTES), (WIRE_FIXED32, WIRE_BYTES), (WIRE_FIXED64, WIRE_BYTES)

# Fields of onnx.proto by message: number, and wire types that it may have.
_MODEL: _Kinds = {1: _NUMBER, 2: _TEXT, 3: _TEXT, 4: _TEXT, 5: _NUMBER, 6: _TEXT, 7: _TEXT, 8: _TEXT, 14: _TEXT}
_GRAPH: _Kinds = dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 16), _TEXT)
_NODE: _Kinds = dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 9), _TEXT)
_ATTRIBUTE: _Kinds = {
    1: _TEXT,
    2: (WIRE_FIXED32,),
    3: _NUMBER,
    4: _TEXT,
    5: _TEXT,
    7: _FLOATS,
    8: _NUMBERS,
    9: _TEXT,
    13: _TEXT,
    20: _NUMBER,
}
_TENSOR: _Kinds = {
    1: _NUMBERS,
    2: _NUMBER,
    4: _FLOATS,
    5: _NUMBERS,
    7: _NUMBERS,
    8: _TEXT,
    9: _TEXT,
    10: _DOUBLES,
    11: _NUMBERS,
    12: _TEXT,
    14: _NUMBER,
    16: _TEXT,
}
_ATTRIBUTE_OF_NODE, _TENSOR_OF_ATTRIBUTE = 5, 5
_OPERATOR_OF_NODE, _DOMAIN_OF_NODE = 4, 7
_LOCATION_OF_TENSOR = 14
# What is most worth a word of its own, by message and field.
_REFUSED = {
    (id(_TENSOR), 13): "it keeps weights in another file",
    (id(_ATTRIBUTE), 6): "a node holds a graph (a loop or branch)",
    (id(_ATTRIBUTE), 11): "a node holds graphs (a loop or branch)",
    (id(_MODEL), 25): "it defines functions",
}


def check_model(data: bytes | memoryview, *, name: str) -> dict[Operator, int]:
    """Return how often each operator is in a model that is complete in itself, and has no loops, branches or functions.

    Args:
        data: the model.
        name: what errors call it.

    Raises:
        CorruptArtifactError: it is no such model, or too large.
    """
    try:
        # ONNX Runtime would read these as its own format, whatever else they are.
        if data[4:8] == b"ORTM":
            raise WireError("it is in ONNX Runtime's own format")
        return _Reader(data).model()
    except WireError as error:
        raise CorruptArtifactError(
            f"{name} is not a model that P4Q Edge writes: {error}. Build it from a bundle with `p4q-edge build`."
        ) from error


def check_exported(data: bytes, *, name: str) -> None:
    """Check a graph of a bundle: as `check_model`, and it consists of operators that the exporter writes.

    Raises:
        CorruptArtifactError: it is no such model, too large, or has other operators.
    """
    unknown = sorted(set(check_model(data, name=name)) - {("", operator) for operator in OPERATORS})
    if unknown:
        listed = ", ".join(f"{domain}.{operator}".lstrip(".") for domain, operator in unknown[:5])
        raise CorruptArtifactError(
            f"{name} has operators that no bundle of P4Q Edge has: {printable(listed[:200])}. Export the bundle again "
            "with this version; if it was, report this line."
        )


class _Reader:
    """Walks through one model, counts, and refuses."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self._nodes = self._tensors = 0
        self._operators: dict[Operator, int] = {}

    def model(self) -> dict[Operator, int]:
        for number, start, stop in self._fields(_MODEL, 0, len(self._data)):
            if number == GRAPH_OF_MODEL:
                self._graph(start, stop)
        return self._operators

    def _graph(self, start: int, stop: int) -> None:
        for number, at, end in self._fields(_GRAPH, start, stop):
            if number == NODE_OF_GRAPH:
                self._node(at, end)
            elif number == TENSOR_OF_GRAPH:
                self._tensor(at, end)

    def _node(self, start: int, stop: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise WireError(f"it has more than {MAX_NODES} nodes")
        operator = domain = b""
        attributes = 0
        for number, at, end in self._fields(_NODE, start, stop):
            if number == _ATTRIBUTE_OF_NODE:
                attributes += 1
                self._attribute(at, end)
            elif number == _OPERATOR_OF_NODE:
                operator = bytes(self._data[at:end])
            elif number == _DOMAIN_OF_NODE:
                domain = bytes(self._data[at:end])
        if attributes > MAX_ATTRIBUTES:
            raise WireError(f"a node has {attributes} attributes; at most {MAX_ATTRIBUTES} are read")
        key = ("" if domain == b"ai.onnx" else domain.decode(errors="replace"), operator.decode(errors="replace"))
        self._operators[key] = self._operators.get(key, 0) + 1

    def _attribute(self, start: int, stop: int) -> None:
        for number, at, end in self._fields(_ATTRIBUTE, start, stop):
            if number == _TENSOR_OF_ATTRIBUTE:
                self._tensor(at, end)

    def _tensor(self, start: int, stop: int) -> None:
        self._tensors += 1
        if self._tensors > MAX_TENSORS:
            raise WireError(f"it has more than {MAX_TENSORS} tensors")
        for number, value, _ in self._fields(_TENSOR, start, stop):
            if number == _LOCATION_OF_TENSOR and value != 0:
                raise WireError(_REFUSED[id(_TENSOR), 13])

    def _fields(self, kinds: _Kinds, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield number, start and stop of the fields of a message; of numbers, the value instead of the start."""
        for number, wire, at, end in wire_fields(self._data, start, stop):
            if wire not in kinds.get(number, ()):
                raise WireError(_REFUSED.get((id(kinds), number), f"it has an unknown field {number}"))
            yield number, at, end
