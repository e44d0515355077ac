"""Lay tokens out as (L, N, D) for TensorRT's fused attention."""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from p4q_edge.graph.analysis.attention import AttentionPattern, find_attentions
from p4q_edge.graph.analysis.attention_layout import write_tokens_first
from p4q_edge.graph.analysis.token_rows import data_inputs, is_token_wise
from p4q_edge.graph.edit import add_constant, constant, input_of, name_of, operation
from p4q_edge.graph.passes.base import GraphPass

_SWAP = (1, 0, 2)


class SequenceFirst(GraphPass):
    """Swap batch and token axis between the patches and the choice of the class token.

    TensorRT's fused attention reads and writes (L, N * heads, head_size). With the batch first, every block pays
    a kernel that transposes the attention's result; with the tokens first that result is the input of the output
    projection as it lies. The numbers are the same.
    """

    def obstacles(self, model: ir.Model) -> Iterable[str]:
        for attention in find_attentions(model.graph):
            if _rank(attention.source) != 3:
                yield f"{attention.source.name} has rank {_rank(attention.source)}, expected (N, L, 3 * D)"

    def apply(self, model: ir.Model) -> bool:
        attentions = find_attentions(model.graph)
        if attentions:
            _Region(model.graph, attentions).swap()
            ir_passes.RemoveUnusedNodesPass()(model)
        return bool(attentions)

    def broken_promises(self, model: ir.Model) -> Iterable[str]:
        for attention in find_attentions(model.graph):
            # One without transpositions is not matched any more.
            yield f"the attention behind {attention.source.name} still has the batch first"


class _Region:
    """The values (N, L, D) that token-wise nodes connect with the attentions.

    Attributes:
        entering: values that other nodes compute; readers inside the region get a transposed copy.
        inside: values that are computed with the tokens first from now on.
    """

    def __init__(self, graph: ir.Graph, attentions: list[AttentionPattern]) -> None:
        self.graph = graph
        self.attentions = attentions
        self.results = {attention.result for attention in attentions}
        self.splits = {attention.split for attention in attentions}
        self.inside: dict[ir.Value, None] = {}  # a dict keeps the order, so that exports repeat byte for byte
        self.entering: dict[ir.Value, None] = {}
        self._grow([value for attention in attentions for value in (attention.source, attention.result)])

    def _grow(self, pending: list[ir.Value]) -> None:
        while pending:
            value = pending.pop()
            if value in self.inside or value in self.entering or _rank(value) != 3:
                continue
            sources = self._sources(value)
            if sources is None:
                self.entering[value] = None
            else:
                self.inside[value] = None
                pending.extend(sources)
            pending.extend(user.outputs[0] for user in value.consumers() if is_token_wise(user))

    def _sources(self, value: ir.Value) -> list[ir.Value] | None:
        """Return what an inner value is computed from, None when its producer stays as it is."""
        node = value.producer()
        if value in self.results:
            return []
        if node is None or not (is_token_wise(node) or node.op_type == "Pad"):
            return None
        sources = [source for _, source in data_inputs(node)]
        return sources if sources and all(_rank(source) == 3 for source in sources) else None

    def swap(self) -> None:
        for value in list(self.inside):
            self._leave(value)
        for value in list(self.inside):
            node = value.producer()
            if node is not None and value not in self.results:
                _swap_constants(self.graph, node)
            value.shape = _swapped_shape(value)
        for value in list(self.entering):
            self._enter(value)
        for attention in self.attentions:
            write_tokens_first(self.graph, attention)

    def _inner_uses(self, value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
        for user, index in list(value.uses()):
            if user in self.splits or user.outputs[0] in self.inside:
                yield user, index

    def _enter(self, value: ir.Value) -> None:
        uses = list(self._inner_uses(value))
        swapped = f"{name_of(value)}.tokens_first"
        producer = value.producer()
        if producer is not None and producer.op_type == "Transpose" and len(list(value.uses())) == len(uses):
            before = tuple(producer.attributes.get_ints("perm", ()))
            node = operation(
                "Transpose", (input_of(producer, 0),), swapped, value, perm=[before[axis] for axis in _SWAP]
            )
        else:
            node = operation("Transpose", (value,), swapped, value, perm=_SWAP)
        node.outputs[0].shape = _swapped_shape(value)
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        for user, index in uses:
            user.replace_input_with(index, node.outputs[0])

    def _leave(self, value: ir.Value) -> None:
        inner = set(self._inner_uses(value))
        outer = [use for use in value.uses() if (use.node, use.idx) not in inner]
        for user, index in outer:
            if user.op_type == "Gather" and user.attributes.get_int("axis", 0) == 1:
                user.attributes["axis"] = ir.AttrInt64("axis", 0)
                continue
            node = operation("Transpose", (value,), f"{name_of(value)}.batch_first_{index}", value, perm=_SWAP)
            self.graph.insert_before(user, node)
            user.replace_input_with(index, node.outputs[0])


def _rank(value: ir.Value) -> int:
    return len(value.shape) if value.shape is not None else -1


def _swapped_shape(value: ir.Value) -> ir.Shape | None:
    return ir.Shape([value.shape[axis] for axis in _SWAP]) if value.shape is not None else None


def _swap_constants(graph: ir.Graph, node: ir.Node) -> None:
    """Swap the batch and token axis of a node's constants: the pads of Pad, and what has a token axis."""
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if value is None or array is None or node.op_type == "MatMul":
            continue
        if node.op_type == "Pad" and index == 1:
            swapped = array.reshape(2, 3)[:, _SWAP].reshape(-1)
        elif array.ndim == 3:
            swapped = array.transpose(_SWAP)
        elif array.ndim == 2:
            swapped = array[:, np.newaxis]
        else:
            continue
        name = f"{name_of(value)}.tokens_first.{name_of(node.outputs[0])}"
        node.replace_input_with(index, add_constant(graph, name, swapped))
