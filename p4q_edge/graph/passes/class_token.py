"""Put the class token before the patches without asking for the batch size."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
from numpy.typing import NDArray

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
    """Turn Concat(Expand(token), patches) into Pad(patches) and one addition of token and positions.

    The same numbers: the padded row is 0, and the token is added to it, with the position of row 0 where positions
    are added to all rows, alone where they are added to the patches before. What goes is the Expand to the batch
    size, and with it every Shape node of a vision transformer, which may ask the image itself.
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
    token = None if expand is None or expand.op_type != "Expand" else constant(input_of(expand, 0))
    joined = concat.outputs[0].shape
    if token is None or patches.shape is None or joined is None or token.size != patches.shape[-1]:
        return False
    # Of a token that is repeated there would be more rows than one.
    if not isinstance(patches.shape[1], int) or joined[1] != patches.shape[1] + 1:
        return False
    return _with_positions_behind(graph, concat, token) or _with_positions_before(graph, concat, token)


def _with_positions_behind(graph: ir.Graph, concat: ir.Node, token: NDArray[np.float32]) -> bool:
    add = only_user(concat.outputs[0])
    found = None if add is None else _positions(add)
    if add is None or found is None:
        return False
    index, positions = found
    rows = tuple(concat.outputs[0].shape[1:])  # type: ignore[index]
    # One that is added to every row alike, such as a bias or the shift of a linear's input, cannot take the token.
    if positions.shape not in (rows, (1, *rows)):
        return False
    joined = positions.copy()
    joined[..., 0, :] += token.reshape(-1)
    add.replace_input_with(index, add_constant(graph, f"{name_of(concat.outputs[0])}.positions", joined))
    replace_node(graph, concat, [_padded(graph, concat, input_of(concat, 1))])
    return True


def _with_positions_before(graph: ir.Graph, concat: ir.Node, token: NDArray[np.float32]) -> bool:
    patches = input_of(concat, 1)
    add = patches.producer()
    found = None if add is None or only_user(patches) is None else _positions(add)
    if add is None or found is None:
        return False
    index, positions = found
    if positions.shape != (1, *patches.shape[1:]):  # type: ignore[index]
        return False
    joined = np.concatenate([token.reshape(1, 1, -1), positions], 1)
    padded = _padded(graph, concat, input_of(add, 1 - index))
    name = name_of(concat.outputs[0])
    rows = add_constant(graph, f"{name}.positions", joined)
    replace_node(graph, concat, [padded, operation("Add", (padded.outputs[0], rows), f"{name}.added", patches)])
    return True


def _positions(add: ir.Node) -> tuple[int, NDArray[np.float32]] | None:
    """Return which input of `add` is constant, and its values; None where neither is."""
    if add.op_type != "Add":
        return None
    index = 0 if constant(input_of(add, 0)) is not None else 1
    positions = constant(input_of(add, index))
    return None if positions is None else (index, positions)


def _padded(graph: ir.Graph, concat: ir.Node, patches: ir.Value) -> ir.Node:
    """Return `patches` with a row of zeros before the first, of the shape that `concat` has."""
    name = name_of(concat.outputs[0])
    # A token row before the first patch, none behind; the rank is 3: batch, tokens, width.
    pads = add_constant(graph, f"{name}.pads", np.array([0, 1, 0, 0, 0, 0], np.int64))
    return operation("Pad", (patches, pads), f"{name}.padded", concat.outputs[0], mode="constant")
