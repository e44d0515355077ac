"""Put the class token before the patches without asking for the batch size."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

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


class ClassTokenByPad(GraphPass):
    """Turn Concat(Expand(token), patches) + positions into Pad(patches) + (positions with the token added).

    The same numbers: the padded row is 0, and the token is added with the position of row 0. What goes is the
    Expand to the batch size, and with it every Shape node of a vision transformer.
    """

    def apply(self, model: ir.Model) -> bool:
        modified = False
        for concat in nodes_of(model.graph, "Concat"):
            modified |= _rewrite(model.graph, concat)
        if modified:
            ir_passes.RemoveUnusedNodesPass()(model)
        return modified


def _rewrite(graph: ir.Graph, concat: ir.Node) -> bool:
    if len(concat.inputs) != 2 or concat.attributes.get_int("axis", 0) != 1:
        return False
    expand, patches = input_of(concat, 0).producer(), input_of(concat, 1)
    add = only_user(concat.outputs[0])
    if expand is None or expand.op_type != "Expand" or add is None or add.op_type != "Add":
        return False
    token = constant(input_of(expand, 0))
    index = 0 if constant(input_of(add, 0)) is not None else 1
    positions = constant(input_of(add, index))
    if token is None or positions is None or token.size != positions.shape[-1]:
        return False
    joined = positions.copy()
    joined[..., 0, :] += token.reshape(-1)
    name = name_of(concat.outputs[0])
    # A token row before the first patch, none behind; the rank is 3: batch, tokens, width.
    pads = add_constant(graph, f"{name}.pads", np.array([0, 1, 0, 0, 0, 0], np.int64))
    add.replace_input_with(index, add_constant(graph, f"{name}.positions", joined))
    replace_node(
        graph, concat, [operation("Pad", (patches, pads), f"{name}.padded", concat.outputs[0], mode="constant")]
    )
    return True
