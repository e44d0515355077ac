"""Keep what ONNX Runtime leaves out: a Relu in front of numbers of FP8."""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from p4q_edge.graph.edit import add_constant, input_of, name_of, nodes_of, operation, replace_node
from p4q_edge.graph.passes.base import GraphPass


class ReluAsMax(GraphPass):
    """Turn each Relu that a QuantizeLinear to FP8 reads into Max(x, 0), of the same values.

    ONNX Runtime (1.32 at least) removes a Relu in front of a QuantizeLinear to FP8, as if such numbers were never
    negative, so that negative values go through. It leaves a Max where it is.
    """

    def apply(self, model: ir.Model) -> bool:
        found = list(_relus(model.graph))
        for relu in found:
            x = input_of(relu, 0)
            zero = add_constant(model.graph, f"{name_of(relu.outputs[0])}.zero", np.zeros((), np.float32))
            replace_node(model.graph, relu, [operation("Max", (x, zero), f"{name_of(relu.outputs[0])}.max", x)])
        return bool(found)

    def broken_promises(self, model: ir.Model) -> Iterable[str]:
        for relu in _relus(model.graph):
            yield f"{relu.name} is read by a QuantizeLinear to FP8"


def _relus(graph: ir.Graph) -> Iterator[ir.Node]:
    for relu in nodes_of(graph, "Relu"):
        readers = [user for user, _ in relu.outputs[0].uses() if user.op_type == "QuantizeLinear"]
        if any(user.outputs[0].dtype is ir.DataType.FLOAT8E4M3FN for user in readers):
            yield relu
