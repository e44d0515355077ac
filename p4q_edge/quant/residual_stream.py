"""Where a pre-norm transformer's residual stream is written and read, from one trace of the model.

A stream is all tensors that additions and moves of whole tokens tie together. Linears, a convolution and parameters
write it; LayerNorms read it, and linears read those. Such a stream may be held in another basis (`rotation`).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch.fx import Node

from p4q_edge.quant.dataflow import Flow, kind_of, module_of, shape_of

_MOVES = frozenset(
    f"aten.{name}"
    for name in (
        "clone.default",
        "expand.default",
        "permute.default",
        "reshape.default",
        "select.int",
        "slice.Tensor",
        "squeeze.dim",
        "transpose.int",
        "unsqueeze.default",
        "view.default",
    )
)
_IDLE = "aten._assert_tensor_metadata.default"
_NORM = "aten.layer_norm.default"


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """Dotted paths of the weight and, where there is one, the bias of a linear or convolution."""

    weight: str
    bias: str | None


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """A layer scale between a writer and the stream: the dotted paths of its module, its parameter and the writer."""

    module: str
    parameter: str
    writer: Weighted


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A LayerNorm, by its module's dotted path, and the linears that read it."""

    norm: str
    linears: tuple[Weighted, ...]


@dataclass(kw_only=True)
class Stream:
    """One residual stream.

    Attributes:
        width: its channels.
        writers: linears and convolutions whose outputs are parts of it.
        scales: what multiplies some of those first.
        constants: dotted paths of parameters that are parts of it, such as position embeddings.
        readings: in the order of the trace.
    """

    width: int
    writers: list[Weighted] = field(default_factory=list)
    scales: list[Scaled] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)

    def parameters(self) -> list[str]:
        """Dotted paths of what a change of basis changes, beside the LayerNorms."""
        each = [*self.writers, *(linear for reading in self.readings for linear in reading.linears)]
        named = [path for weighted in each for path in (weighted.weight, weighted.bias) if path is not None]
        return [*named, *self.constants, *(scale.parameter for scale in self.scales)]


class _OtherUseError(Exception):
    """A tensor of the stream is made or read by what no change of basis goes through."""


def find_streams(flow: Flow) -> list[Stream]:
    """Return the residual streams that can be held in another basis, in the order of their first LayerNorm."""
    working = (node for node in flow.nodes if str(node.target) != _IDLE)
    uses = Counter(flow.parameters.get(operand.name, "") for node in working for operand in _operands(node))
    found, seen = list[Stream](), set[Node]()
    for norm in (node for node in flow.nodes if str(node.target) == _NORM):
        start = _operands(norm)[0]
        if start in seen:
            continue
        walk = _Walk(flow, width=shape_of(start)[-1])
        try:
            walk.follow(start)
        except _OtherUseError:
            continue
        finally:
            seen |= walk.tensors
        if walk.stream.writers and all(uses[path] == 1 for path in walk.stream.parameters()):
            found.append(walk.stream)
    return found


class _Walk:
    """Collects the stream of one of its tensors."""

    def __init__(self, flow: Flow, *, width: int) -> None:
        self.flow = flow
        self.stream = Stream(width=width)
        self.tensors = set[Node]()

    def follow(self, start: Node) -> None:
        """Visit all tensors of the stream.

        Raises:
            _OtherUseError: one has a maker or reader of another kind.
        """
        waiting = [start]
        while waiting:
            node = waiting.pop()
            if node not in self.tensors:
                self.tensors.add(node)
                waiting += self._makers(node)
                waiting += self._readers(node)
        order = {module_of(node): index for index, node in enumerate(self.flow.nodes) if str(node.target) == _NORM}
        self.stream.readings.sort(key=lambda reading: order[reading.norm])

    def _makers(self, node: Node) -> Iterable[Node]:
        if node.op == "placeholder":
            self.stream.constants.append(self._parameter(node))
            return ()
        if kind_of(node) == "add" or str(node.target) == "aten.cat.default":
            return self._added(node)
        if _moves(node):
            return _operands(node)[:1]
        if kind_of(node) == "mul":
            self.stream.scales.append(self._scaled(node))
            return ()
        self.stream.writers.append(self._weighted(node))
        return ()

    def _added(self, node: Node) -> list[Node]:
        if len(node.kwargs) or (kind_of(node) == "add" and len(_operands(node)) != 2):
            raise _OtherUseError  # a factor, or the addition of a number
        if any(shape_of(operand)[-1:] != (self.stream.width,) for operand in _operands(node)):
            raise _OtherUseError  # broadcast over channels, or joined along them
        return _operands(node)

    def _readers(self, node: Node) -> Iterable[Node]:
        if node.op == "placeholder":
            return ()  # it has one use, from which it was found
        tied = []
        for user in node.users:
            if str(user.target) == _NORM and _operands(user)[0] is node:
                self.stream.readings.append(self._reading(user))
            elif kind_of(user) == "add" or str(user.target) == "aten.cat.default" or _moves(user):
                tied.append(user)
            elif str(user.target) != _IDLE:
                raise _OtherUseError
        if not node.users:
            raise _OtherUseError
        return tied

    def _reading(self, norm: Node) -> Reading:
        if shape_of(norm)[-1] != self.stream.width or list(norm.args[1]) != [self.stream.width]:  # type: ignore[arg-type]
            raise _OtherUseError
        found, waiting = list[Weighted](), [norm]
        while waiting:
            node = waiting.pop()
            for user in node.users:
                if _moves(user):
                    waiting.append(user)
                elif kind_of(user) == "linear" and _operands(user)[0] is node:
                    found.append(self._weighted(user))
                elif str(user.target) != _IDLE:
                    raise _OtherUseError
        path = module_of(norm)
        if not found or self.flow.calls.get(path, 1) != 1:
            raise _OtherUseError
        return Reading(norm=path, linears=tuple(found))

    def _scaled(self, node: Node) -> Scaled:
        """Return a product with one number a channel, and the linear that it multiplies."""
        (before, parameter) = _operands(node) if len(_operands(node)) == 2 else (node, node)
        if before.op == "placeholder" or shape_of(parameter) != (self.stream.width,):
            raise _OtherUseError
        while _moves(before) and len(before.users) == 1:
            before = _operands(before)[0]
        if len(before.users) != 1:
            raise _OtherUseError
        writer = self._weighted(before)
        self.stream.writers.append(writer)
        return Scaled(module=module_of(node), parameter=self._parameter(parameter), writer=writer)

    def _weighted(self, node: Node) -> Weighted:
        if kind_of(node) not in {"conv", "linear"}:
            raise _OtherUseError
        weight, *bias = (operand for operand in _operands(node)[1:])
        return Weighted(weight=self._parameter(weight), bias=self._parameter(bias[0]) if bias else None)

    def _parameter(self, node: Node) -> str:
        if node.name not in self.flow.parameters:
            raise _OtherUseError
        return self.flow.parameters[node.name]


def _moves(node: Node) -> bool:
    """Return whether a node moves or averages whole tokens."""
    if str(node.target) == "aten.mean.dim":
        axes = node.args[1]
        rank = len(shape_of(_operands(node)[0]))
        return isinstance(axes, list) and all(isinstance(axis, int) and axis % rank != rank - 1 for axis in axes)
    return str(node.target) in _MOVES


def _operands(node: Node) -> list[Node]:
    return node.all_input_nodes
