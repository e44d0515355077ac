"""Write Gelu with operators that every TensorRT knows."""

import math
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from p4q_edge.graph.edit import add_constant, input_of, name_of, nodes_of, operation, replace_node
from p4q_edge.graph.passes.base import GraphPass

_CUBIC = 0.044715


class GeluInParts(GraphPass):
    """Replace Gelu, which came with opset 20, by `0.5 x (1 + erf(x / sqrt(2)))` or by its tanh approximation.

    NVIDIA's compiler makes the same kernel of both forms; older parsers know the parts only.

    Source: ONNX operator specification, Gelu-20, function body.
    """

    def apply(self, model: ir.Model) -> bool:
        found = list(nodes_of(model.graph, "Gelu"))
        for node in found:
            _rewrite(model.graph, node)
        return bool(found)

    def broken_promises(self, model: ir.Model) -> Iterable[str]:
        return [f"{node.name} is still a Gelu" for node in nodes_of(model.graph, "Gelu")]


def _rewrite(graph: ir.Graph, gelu: ir.Node) -> None:
    x, name = input_of(gelu, 0), name_of(gelu.outputs[0])
    nodes: list[ir.Node] = []

    def constant(label: str, value: float) -> ir.Value:
        return add_constant(graph, f"{name}.{label}", np.array(value, np.float32))

    def add(op_type: str, label: str, *inputs: ir.Value) -> ir.Value:
        nodes.append(operation(op_type, inputs, f"{name}.{label}", x))
        return nodes[-1].outputs[0]

    if gelu.attributes.get_string("approximate", "none") == "tanh":
        slope = math.sqrt(2 / math.pi)
        square = add("Mul", "square", x, x)
        curved = add("Mul", "curved", square, constant("cubic", slope * _CUBIC))
        factor = add("Add", "factor", curved, constant("slope", slope))
        bent = add("Tanh", "bent", add("Mul", "inner", x, factor))
    else:
        bent = add("Erf", "bent", add("Mul", "inner", x, constant("inverse_root", 1 / math.sqrt(2))))
    gated = add("Mul", "gated", x, add("Add", "gate", bent, constant("one", 1.0)))
    add("Mul", "new", gated, constant("half", 0.5))
    replace_node(graph, gelu, nodes)
