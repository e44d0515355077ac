"""Store the weights that two graphs share once.

Concatenated protobuf messages merge, and repeated fields append: a graph without its shared initializers
followed by a ModelProto that holds nothing but these is the complete model.

Source: Protocol Buffers encoding, "Last one wins" and merging of embedded messages.
"""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from p4q_edge.graph.edit import add_constant, constant, operation
from p4q_edge.graph.passes.base import GraphPass

SHARED_MINIMUM = 4096
"""Float constants with fewer elements are stored in each graph."""


class StoreWeightsAsFp16(GraphPass):
    """Store each large float32 constant that FP16 holds exactly as FP16, followed by a Cast.

    ONNX Runtime folds the Cast when it loads the graph. Constants that FP16 would round stay float32, and so do
    vectors and what a DequantizeLinear reads: the scales of a weight have to be constants.
    """

    def apply(self, model: ir.Model) -> bool:
        stored = 0
        for name, value in list(model.graph.initializers.items()):
            array = constant(value)
            if value.dtype is not ir.DataType.FLOAT or array is None or array.ndim < 2 or array.size < SHARED_MINIMUM:
                continue
            half = array.astype(np.float16)
            if not np.array_equal(half.astype(np.float32), array):
                continue
            users = list(value.uses())
            if any(user.op_type == "DequantizeLinear" for user, _ in users):
                continue
            cast = operation("Cast", (add_constant(model.graph, f"{name}.fp16", half),), f"{name}.restored", value)
            cast.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
            model.graph.insert_before(model.graph[0], cast)
            for user, index in users:
                user.replace_input_with(index, cast.outputs[0])
            del model.graph.initializers[name]
            stored += 1
        return bool(stored)


def split_shared(models: Sequence[onnx.ModelProto]) -> tuple[list[bytes], bytes]:
    """Take the initializers that all `models` have in common out of them.

    Args:
        models: complete models; they are changed.

    Returns:
        The bytes of each model without the shared initializers, and the bytes of the fragment with them:
        `model + fragment` is a complete ModelProto.
    """
    tables = [{t.name: t.SerializeToString(deterministic=True) for t in m.graph.initializer} for m in models]
    shared = {name for name, data in tables[0].items() if all(table.get(name) == data for table in tables[1:])}
    fragment = onnx.ModelProto()
    fragment.graph.initializer.extend(t for t in models[0].graph.initializer if t.name in shared)
    graphs = []
    for model in models:
        kept = [t for t in model.graph.initializer if t.name not in shared]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        graphs.append(model.SerializeToString(deterministic=True))
    return graphs, fragment.SerializeToString(deterministic=True)
