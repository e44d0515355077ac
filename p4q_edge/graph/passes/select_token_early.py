"""Take the class token before the last block's linears instead of behind them."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from p4q_edge.graph.analysis.attention import AttentionPattern, find_attentions
from p4q_edge.graph.analysis.token_rows import data_inputs, is_token_wise
from p4q_edge.graph.edit import (
    add_constant,
    constant,
    input_of,
    name_of,
    nodes_of,
    only_user,
    operation,
    replace_node,
)
from p4q_edge.graph.passes.base import GraphPass


class SelectTokenEarly(GraphPass):
    """Move the Gather of one token up through everything that treats tokens one by one.

    Behind the last attention only the class token is read, so its query, its output projection, its two MLP
    linears and the final norm need one row instead of all. The numbers are the same.
    """

    def apply(self, model: ir.Model) -> bool:
        modified = False
        # A value that two moved rows need is free to move once the nodes they left are gone.
        while _move_all(model.graph):
            ir_passes.RemoveUnusedNodesPass()(model)
            modified = True
        for attention in find_attentions(model.graph):
            gather = only_user(attention.result)
            if attention.token is None and gather is not None and _selects_token(gather):
                _select_query(model.graph, attention, gather)
                modified = True
        if modified:
            ir_passes.RemoveUnusedNodesPass()(model)
        return modified

    def broken_promises(self, model: ir.Model) -> Iterable[str]:
        for gather in nodes_of(model.graph, "Gather"):
            if _selects_token(gather) and _can_move(input_of(gather, 0)):
                yield f"{gather.name} can still move up"


def _move_all(graph: ir.Graph) -> bool:
    _merge_equal(graph)
    movable = [node for node in nodes_of(graph, "Gather") if _selects_token(node) and _can_move(input_of(node, 0))]
    for gather in movable:
        selected = _Selector(graph, gather).select(input_of(gather, 0))
        output = gather.outputs[0]
        if output.is_graph_output():
            output.name, selected.name = f"{name_of(output)}.gathered", output.name
        output.replace_all_uses_with(selected, replace_graph_outputs=True)
    return bool(movable)


def _merge_equal(graph: ir.Graph) -> None:
    """Keep one of several Gathers that take the same token of one value, so that the value has one reader."""
    kept: dict[tuple[ir.Value, ir.Value], ir.Node] = {}
    for gather in nodes_of(graph, "Gather"):
        if not _selects_token(gather) or gather.outputs[0].is_graph_output():
            continue
        first = kept.setdefault((input_of(gather, 0), input_of(gather, 1)), gather)
        if first is not gather:
            gather.outputs[0].replace_all_uses_with(first.outputs[0])
            graph.remove(gather, safe=True)


class _Selector:
    """Rebuilds the rows above one Gather; each value once."""

    def __init__(self, graph: ir.Graph, gather: ir.Node) -> None:
        self.graph = graph
        self.gather = gather
        self.done: dict[ir.Value, ir.Value] = {}

    def select(self, value: ir.Value) -> ir.Value:
        if value not in self.done:
            self.done[value] = self._rebuild(value) if _can_move(value) else self._gather(value)
        return self.done[value]

    def _rebuild(self, value: ir.Value) -> ir.Value:
        node = value.producer()
        assert node is not None  # _can_move saw one
        moved = {index: self.select(source) for index, source in data_inputs(node)}
        inputs = [moved.get(index, source) for index, source in enumerate(node.inputs)]
        # Axes counted from the front lose one: only the last axis is ever named.
        attributes = [ir.AttrInt64("axis", -1) if a.name == "axis" else a for a in node.attributes.values()]
        return self._insert(ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=1), node, value)

    def _gather(self, value: ir.Value) -> ir.Value:
        node = ir.Node("", "Gather", [value, input_of(self.gather, 1)], self.gather.attributes.values(), num_outputs=1)
        return self._insert(node, self.gather, value)

    def _insert(self, node: ir.Node, like: ir.Node, value: ir.Value) -> ir.Value:
        node.metadata_props.update(like.metadata_props)
        output = node.outputs[0]
        output.name, output.type = f"{name_of(value)}.token", value.type
        output.shape = ir.Shape([dim for axis, dim in enumerate(value.shape) if axis != 1]) if value.shape else None
        self.graph.insert_before(self.gather, node)
        return output


def _select_query(graph: ir.Graph, attention: AttentionPattern, gather: ir.Node) -> None:
    """Ask for the one token that `gather` reads; the heads of one row need no transposition."""
    index = constant(input_of(gather, 1))
    assert index is not None  # _selects_token saw a constant
    prefix, query = name_of(attention.result), input_of(attention.scores, 0)
    bounds = [
        add_constant(graph, f"{prefix}.{end}", np.array([bound], np.int64))
        for end, bound in (("query_start", index), ("query_end", index + 1), ("query_axis", 2))
    ]
    one = operation("Slice", (query, *bounds), f"{prefix}.query", query)
    one.outputs[0].shape = None
    one.metadata_props.update(attention.scores.metadata_props)
    graph.insert_before(attention.scores, one)
    attention.scores.replace_input_with(0, one.outputs[0])
    shape = np.array([-1, attention.heads * attention.head_size], np.int64)
    joined_shape = add_constant(graph, f"{prefix}.joined_shape", shape)
    mixed = attention.mixed.outputs[0]
    for node in (attention.scores, *(user for user in attention.scores.outputs[0].consumers()), attention.mixed):
        node.outputs[0].shape = None
    joined = operation("Reshape", (mixed, joined_shape), f"{prefix}.joined", gather.outputs[0])
    replace_node(graph, gather, [joined])


def _selects_token(gather: ir.Node) -> bool:
    index, shape = constant(input_of(gather, 1)), input_of(gather, 0).shape
    whole = index is not None and index.ndim == 0
    return whole and gather.attributes.get_int("axis", 0) == 1 and shape is not None and len(shape) == 3


def _can_move(value: ir.Value) -> bool:
    """Return whether only the Gather needs `value`, and each of its rows comes from the same row of its inputs."""
    node = value.producer()
    if node is None or only_user(value) is None or not is_token_wise(node) or not data_inputs(node):
        return False
    constants = [constant(source) for source in node.inputs]
    if node.op_type == "MatMul":
        return True
    # A constant with a token axis would have to be gathered as well: none occurs behind the last attention.
    return all(array is None or np.ndim(array) <= 1 for array in constants)
