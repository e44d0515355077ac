"""Remove Expand nodes whose reader broadcasts by itself."""

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from p4q_edge.graph.base import GraphPass
from p4q_edge.graph.edit import nodes_of

_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div"})


class DropExpand(GraphPass):
    """Read `x` instead of `Expand(x)` where the other operand already has the full shape.

    `torch.nn.functional.normalize` leaves such an Expand, and with it a subgraph that computes shapes.
    """

    def apply(self, model: ir.Model) -> bool:
        modified = False
        for node in nodes_of(model.graph, "Expand"):
            source, expanded = node.inputs[0], node.outputs[0]
            users = list(expanded.uses())
            if source is None or expanded.is_graph_output() or not all(_broadcasts(*use, expanded) for use in users):
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
