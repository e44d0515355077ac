"""Write timm's way of taking query, key and value apart as a Split."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from p4q_edge.graph.edit import add_constant, constant, input_of, name_of, nodes_of, only_user
from p4q_edge.graph.passes.base import GraphPass

_PARTS_FIRST = (2, 0, 3, 1, 4)  # (N, L, parts, heads, size) -> (parts, N, heads, L, size)
_HEADS_FIRST = (0, 2, 1, 3)


class UnbindToSplit(GraphPass):
    """Turn Reshape to five axes, Transpose and one Slice a part into Split, Reshape and Transpose of each part.

    The same views; the passes that lay attention out know one way to write them.
    """

    def apply(self, model: ir.Model) -> bool:
        modified = False
        for transpose in nodes_of(model.graph, "Transpose"):
            modified |= _rewrite(model.graph, transpose)
        if modified:
            ir_passes.RemoveUnusedNodesPass()(model)
        return modified


def _rewrite(graph: ir.Graph, transpose: ir.Node) -> bool:
    reshape = input_of(transpose, 0).producer()
    if tuple(transpose.attributes.get_ints("perm", ())) != _PARTS_FIRST or reshape is None:
        return False
    shape = constant(input_of(reshape, 1)) if reshape.op_type == "Reshape" else None
    parts = _parts(transpose)
    if shape is None or parts is None or len(parts) != int(shape[2]):
        return False
    _, tokens, number, heads, size = (int(n) for n in shape)
    name, source = name_of(transpose.outputs[0]), input_of(reshape, 0)
    split = ir.node("Split", (source,), {"axis": 2, "num_outputs": number}, num_outputs=number, name=f"{name}.parts")
    target = add_constant(graph, f"{name}.part_shape", np.array([-1, tokens, heads, size], np.int64))
    new = [split]
    for index, (part, old) in enumerate(zip(split.outputs, parts, strict=True)):
        part.name, part.type = f"{name}.part_{index}", source.type
        apart = ir.node("Reshape", (part, target), name=f"{name}.heads_{index}")
        turned = ir.node("Transpose", apart.outputs, {"perm": _HEADS_FIRST}, name=f"{name}.turned_{index}")
        for value in (apart.outputs[0], turned.outputs[0]):
            value.type = source.type
        apart.outputs[0].name, turned.outputs[0].name = f"{name}.heads_{index}", f"{name}.turned_{index}"
        turned.outputs[0].shape = old.shape
        new += [apart, turned]
        old.replace_all_uses_with(turned.outputs[0])
    for node in new:
        node.metadata_props.update(transpose.metadata_props)
    graph.insert_after(transpose, new)
    return True


def _parts(transpose: ir.Node) -> list[ir.Value] | None:
    """Return the values that take one part each, in order; None when something else reads the transposed tensor."""
    found: dict[int, ir.Value] = {}
    for slice_node in transpose.outputs[0].consumers():
        squeeze = only_user(slice_node.outputs[0])
        if slice_node.op_type != "Slice" or squeeze is None or squeeze.op_type != "Squeeze":
            return None
        bounds = [constant(value) for value in slice_node.inputs[1:4]]
        if len(bounds) != 3 or any(bound is None or bound.size != 1 for bound in bounds):
            return None
        start, end, axis = (int(bound.item()) for bound in bounds if bound is not None)
        if axis != 0 or end != start + 1:
            return None
        found[start] = squeeze.outputs[0]
    return [found[index] for index in range(len(found))] if set(found) == set(range(len(found))) else None
