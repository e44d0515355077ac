"""Write each linear layer as MatMul and Add with a [K, N] weight."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from p4q_edge.graph.edit import add_constant, constant, input_of, module_path, nodes_of, operation, replace_node
from p4q_edge.graph.passes.base import GraphPass


class LinearToMatMul(GraphPass):
    """Replace Gemm by MatMul + Add, and fold a Transpose of a constant weight into the weight.

    One form for all linears keeps the later passes small, and an int8 [K, N] weight feeds MatMul directly.
    """

    def apply(self, model: ir.Model) -> bool:
        graph = model.graph
        gemms = [node for node in nodes_of(graph, "Gemm") if _is_plain(node)]
        for node in gemms:
            _split_gemm(graph, node)
        transposes = [(node, constant(input_of(node, 0))) for node in nodes_of(graph, "Transpose")]
        constants = [(node, array) for node, array in transposes if array is not None]
        for node, array in constants:
            _fold_transpose(graph, node, array)
        return bool(gemms or constants)

    def broken_promises(self, model: ir.Model) -> list[str]:
        return [f"{node.name} is still a Gemm" for node in nodes_of(model.graph, "Gemm") if _is_plain(node)]


def _is_plain(node: ir.Node) -> bool:
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    return factors == [1.0, 1.0] and not node.attributes.get_int("transA", 0)


def _split_gemm(graph: ir.Graph, node: ir.Node) -> None:
    x, weight = input_of(node, 0), input_of(node, 1)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    output = node.outputs[0]
    array = constant(weight)
    if array is None:
        return
    if node.attributes.get_int("transB", 0):
        weight = add_constant(graph, f"{output.name}.weight", array.T)
    product = operation("MatMul", (x, weight), f"{output.name}.product", output)
    if bias is None:
        replace_node(graph, node, [product])
        return
    replace_node(graph, node, [product, operation("Add", (product.outputs[0], bias), f"{output.name}.sum", output)])


def _fold_transpose(graph: ir.Graph, node: ir.Node, array: NDArray[Any]) -> None:
    output = node.outputs[0]
    permutation = node.attributes.get_ints("perm", tuple(reversed(range(array.ndim))))
    folded = add_constant(graph, f"{output.name}.folded", np.transpose(array, permutation))
    output.replace_all_uses_with(folded)
    graph.remove(node, safe=True)


def linear_products(graph: ir.Graph) -> dict[str, list[ir.Node]]:
    """Return the MatMul nodes with a constant weight by the path of their module."""
    found: dict[str, list[ir.Node]] = {}
    for node in nodes_of(graph, "MatMul"):
        if constant(node.inputs[1]) is not None:
            found.setdefault(module_path(node), []).append(node)
    return found
