"""Remove Expand nodes whose reader broadcasts by itself."""

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from p4q_edge.graph.analysis.token_rows import is_constant, is_token_wise
from p4q_edge.graph.edit import constant, input_of, nodes_of
from p4q_edge.graph.passes.base import GraphPass

_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div"})


class DropExpand(GraphPass):
    """Read `x` instead of `Expand(x)` where the reader needs no more.

    Two cases, each with a subgraph that computes shapes: the other operand already has the full shape (a division by
    a norm), and a constant repeated for each image that meets the images in a product (the query of an attention
    pool), until which one copy will do.
    """

    def apply(self, model: ir.Model) -> bool:
        modified = False
        for node in nodes_of(model.graph, "Expand"):
            source, expanded = node.inputs[0], node.outputs[0]
            users = list(expanded.uses())
            if source is None or expanded.is_graph_output():
                continue
            if not all(_broadcasts(*use, expanded) for use in users) and not _is_one_copy(source, expanded):
                continue
            expanded.replace_all_uses_with(source)
            modified = True
        if modified:
            ir_passes.RemoveUnusedNodesPass()(model)
        return modified


def _broadcasts(user: ir.Node, index: int, expanded: ir.Value) -> bool:
    if user.op_type not in _BROADCASTING:
        return False
    other = user.inputs[1 - index]
    return other is not None and other is not expanded and other.shape == expanded.shape


def _is_one_copy(source: ir.Value, expanded: ir.Value) -> bool:
    """Return whether `expanded` repeats a constant over the batch and nothing but products sees how often."""
    array = constant(source)
    if array is None or expanded.shape is None or array.ndim != len(expanded.shape) or array.shape[0] != 1:
        return False
    return array.shape[1:] == tuple(expanded.shape[1:]) and _meets_products(expanded, set())


def _meets_products(value: ir.Value, seen: set[ir.Value]) -> bool:
    if value in seen:
        return True
    seen.add(value)
    if value.is_graph_output():
        return False
    for user in value.consumers():
        others = [other for other in user.inputs if other is not None and other is not value]
        fixed = all(constant(other) is not None or is_constant(other) for other in others)
        if user.op_type == "MatMul" and not fixed:
            continue
        if not fixed or not _keeps_batch(user) or not _meets_products(user.outputs[0], seen):
            return False
    return True


def _keeps_batch(node: ir.Node) -> bool:
    if node.op_type == "Transpose":
        return tuple(node.attributes.get_ints("perm", ()))[:1] == (0,)
    if node.op_type == "Reshape":
        shape = constant(input_of(node, 1))
        return shape is not None and int(shape[0]) == -1
    return is_token_wise(node)
