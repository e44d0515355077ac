"""Compute once what depends on constants alone."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from p4q_edge.graph.edit import add_constant, constant, input_of, name_of
from p4q_edge.graph.passes.base import GraphPass


class FoldConstants(GraphPass):
    """Replace values that no input reaches by their numbers, quantization included.

    An attention pool asks with a learned query: its linear has one constant row, whatever the image. Restored weights
    are left as integers.
    """

    def apply(self, model: ir.Model) -> bool:
        graph = model.graph
        known: set[ir.Value] = set()
        for node in graph:
            if all(value is None or value in known or constant(value) is not None for value in node.inputs):
                known.update(node.outputs)
        wanted = [value for value in known if _is_needed(value, known) and not _is_weight(value)]
        for value in sorted(wanted, key=name_of):
            folded = add_constant(graph, f"{name_of(value)}.folded", _evaluate(graph, value))
            value.replace_all_uses_with(folded)
        if wanted:
            ir_passes.RemoveUnusedNodesPass()(model)
        return bool(wanted)


def _is_needed(value: ir.Value, known: set[ir.Value]) -> bool:
    return any(user.outputs[0] not in known for user in value.consumers())


def _is_weight(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "DequantizeLinear" and constant(input_of(node, 0)) is not None


def _evaluate(graph: ir.Graph, value: ir.Value) -> NDArray[Any]:
    nodes: list[ir.Node] = []
    constants: dict[str, ir.Value] = {}
    pending = [value]
    seen: set[ir.Node] = set()
    while pending:
        node = pending.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes.append(node)
        for source in node.inputs:
            if source is not None and source.const_value is not None:
                constants[name_of(source)] = source
            elif source is not None:
                pending.append(source)
    order = {node: index for index, node in enumerate(graph)}
    protos = [ir.to_proto(node) for node in sorted(nodes, key=order.__getitem__)]
    tensors = [onnx.numpy_helper.from_array(source.const_value.numpy(), name) for name, source in constants.items()]  # type: ignore[union-attr]
    output = onnx.helper.make_empty_tensor_value_info(name_of(value))
    proto = onnx.helper.make_graph(protos, "constants", [], [output], tensors)
    model = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", graph.opset_imports[""])])
    result: NDArray[Any] = np.asarray(ReferenceEvaluator(model).run(None, {})[0])  # type: ignore[index]
    return result
