"""Lift weight scales that FP16 cannot hold, by exact powers of two."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from p4q_edge.graph.edit import add_constant, constant, input_of, name_of, nodes_of, only_user, operation
from p4q_edge.graph.passes.base import GraphPass
from p4q_edge.graph.quantization import weight_path
from p4q_edge.quant import affine


class RescaleSmallWeights(GraphPass):
    """Multiply weight scales below 2**-14 by a power of two, and the channel's output by its inverse.

    Both steps are exact, and the multiplication joins the epilogue that adds the bias. Float32 scales with a
    Cast behind them are as exact, but NVIDIA's compiler then restores the weight to FP16 and gives the INT8
    product up. A lifted channel stays below 2**-13, so its output is no larger than that of its neighbours.
    """

    def apply(self, model: ir.Model) -> bool:
        small = [node for node in nodes_of(model.graph, "DequantizeLinear") if _is_small_weight(node)]
        for node in small:
            _lift(model.graph, node)
        return bool(small)

    def broken_promises(self, model: ir.Model) -> Iterable[str]:
        for node in nodes_of(model.graph, "DequantizeLinear"):
            if _is_small_weight(node):
                yield f"{node.name} still has a scale below {affine.SMALLEST_NORMAL_FP16}"


def lift(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the powers of two, at least 1, that bring every element of `scale` to 2**-14 or more."""
    _, exponent = np.frexp(scale)  # scale = m * 2**exponent, m in [0.5, 1)
    powers: NDArray[np.float32] = np.ldexp(np.float32(1), np.maximum(-13 - exponent, 0)).astype(np.float32)
    return powers


def _is_small_weight(node: ir.Node) -> bool:
    scale = constant(input_of(node, 1))
    is_weight = constant(input_of(node, 0)) is not None
    return is_weight and scale is not None and float(scale.min()) < affine.SMALLEST_NORMAL_FP16


def _lift(graph: ir.Graph, node: ir.Node) -> None:
    scale = constant(input_of(node, 1))
    product = only_user(node.outputs[0])
    integers = name_of(input_of(node, 0))
    path = weight_path(integers) or integers
    if scale is None or product is None or product.op_type not in {"MatMul", "Conv"}:
        raise ValueError(f"{node.name} does not restore the weight of one MatMul or Conv")
    # Of blocks [blocks, N] the smallest of a channel decides; `affine.within_span` keeps the others near.
    factor = lift(scale.min(axis=0) if scale.ndim == 2 else scale)
    node.replace_input_with(1, add_constant(graph, f"{path}.weight_scale_lifted", scale * factor))
    inverse = 1 / factor
    if product.op_type == "Conv":
        inverse = inverse.reshape(-1, 1, 1)
        _lift_bias(graph, product, path, factor)
    output = product.outputs[0]
    users = list(output.uses())
    lower = add_constant(graph, f"{path}.weight_lift_inverse", inverse)
    restore = operation("Mul", (output, lower), f"{name_of(output)}.lowered", output)
    restore.metadata_props.update(product.metadata_props)
    graph.insert_after(product, restore)
    for user, index in users:
        user.replace_input_with(index, restore.outputs[0])


def _lift_bias(graph: ir.Graph, conv: ir.Node, path: str, factor: NDArray[np.float32]) -> None:
    bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    if bias is not None:
        conv.replace_input_with(2, add_constant(graph, f"{path}.bias_lifted", bias * factor))
