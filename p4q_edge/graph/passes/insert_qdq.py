"""Quantize the inputs and weights of the linear layers."""

from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir

from p4q_edge.graph.edit import add_constant, input_of, name_of, operation
from p4q_edge.graph.passes.base import GraphPass
from p4q_edge.graph.passes.linear_to_matmul import linear_products
from p4q_edge.graph.quantization import (
    E4M3,
    FP8_WEIGHT,
    INT4_WEIGHT,
    INT8_WEIGHT,
    OPSET_OF_BLOCKS,
    LinearQuantization,
)
from p4q_edge.quant import affine


class InsertQdq(GraphPass):
    """Put QuantizeLinear and DequantizeLinear before each linear, and store its weight as int8.

    A weight with scales of blocks is stored as int4, its input is left as it is, and the model is of opset 21 then, the
    first that knows both. A weight of E4M3 numbers is stored as these, with its input on their grid.

    Only inputs are quantized: additions, LayerNorm, softmax and attention products keep their type. Linears
    that read one tensor with one scale share its pair. Zero points are never shared: ONNX Runtime's
    rewrite of signed to unsigned activations edits them in place.
    """

    def __init__(self, linears: Mapping[str, LinearQuantization]) -> None:
        self.linears = linears

    def obstacles(self, model: ir.Model) -> Iterable[str]:
        products = linear_products(model.graph)
        for path, linear in self.linears.items():
            found = products.get(path, [])
            if len(found) != 1:
                yield f"the linear {path} has {len(found)} MatMul nodes, expected 1"
                continue
            shape = found[0].inputs[1].const_value.shape  # type: ignore[union-attr]
            if tuple(shape) != linear.weight.shape[::-1]:
                yield f"the MatMul of {path} has weight {tuple(shape)}, expected {linear.weight.shape[::-1]}"

    def apply(self, model: ir.Model) -> bool:
        graph = model.graph
        products = linear_products(graph)
        pairs: dict[tuple[str, float, int, bool], ir.Value] = {}
        for path, linear in self.linears.items():
            (product,) = products[path]
            weight = input_of(product, 1)
            if linear.block is None:
                key = (name_of(input_of(product, 0)), linear.input_scale, linear.input_bits, linear.in_fp8)
                if key not in pairs:
                    grid = linear.input_scale, linear.input_bits
                    pairs[key] = quantize_operand(graph, product, 0, f"{path}.input", grid, in_fp8=linear.in_fp8)
                product.replace_input_with(0, pairs[key])
                product.replace_input_with(1, _quantized_weight(graph, product, path, linear))
            else:
                product.replace_input_with(1, _weight_in_blocks(graph, product, path, linear))
                model.opset_imports[""] = OPSET_OF_BLOCKS
            if not weight.uses():
                del graph.initializers[name_of(weight)]
        return bool(self.linears)

    def broken_promises(self, model: ir.Model) -> Iterable[str]:
        for path, linear in self.linears.items():
            if f"{path}{_end(linear)}" not in model.graph.initializers:
                yield f"there is no {path}{_end(linear)}"


def _end(linear: LinearQuantization) -> str:
    """Return how the name of the constant with the weight's numbers ends."""
    if linear.in_fp8:
        return FP8_WEIGHT
    return INT8_WEIGHT if linear.block is None else INT4_WEIGHT


def quantize_operand(
    graph: ir.Graph, reader: ir.Node, index: int, name: str, grid: tuple[float, int], *, in_fp8: bool = False
) -> ir.Value:
    """Put what `reader` reads at `index` on an integer grid, or on that of E4M3, and return it; the caller connects it.

    Args:
        name: prefix of the new values and constants.
        grid: scale and bits; below 8 bits the tensor is clipped first.
    """
    stored, kind, suffix = (E4M3, ir.DataType.FLOAT8E4M3FN, "fp8") if in_fp8 else (np.int8, ir.DataType.INT8, "int8")
    x, (step, bits) = input_of(reader, index), grid
    nodes = []
    if bits < 8:
        bounds = np.float32(step) * np.array(affine.activation_range(bits), np.float32)
        low, high = (
            add_constant(graph, f"{name}_{end}", np.array(bound, np.float32))
            for end, bound in zip(("low", "high"), bounds, strict=True)
        )
        nodes.append(operation("Clip", (x, low, high), f"{name}_clipped", x))
        x = nodes[-1].outputs[0]
    scale = add_constant(graph, f"{name}_scale", np.array(step, np.float32))
    zero = add_constant(graph, f"{name}_zero_point", np.array(0, stored))
    quantize = operation("QuantizeLinear", (x, scale, zero), f"{name}_{suffix}", x)
    quantize.outputs[0].type = ir.TensorType(kind)
    # A zero point of its own: ONNX Runtime refuses one that two nodes share when it rewrites S8 to U8.
    zero = add_constant(graph, f"{name}_zero_point_dq", np.array(0, stored))
    restore = operation("DequantizeLinear", (quantize.outputs[0], scale, zero), f"{name}_dq", x)
    _insert(graph, reader, [*nodes, quantize, restore])
    return restore.outputs[0]


def _quantized_weight(graph: ir.Graph, reader: ir.Node, path: str, linear: LinearQuantization) -> ir.Value:
    integers = add_constant(graph, f"{path}{_end(linear)}", linear.weight.T)  # [K, N]
    scale = add_constant(graph, f"{path}.weight_scale", linear.weight_scale.astype(np.float32))
    zero = add_constant(graph, f"{path}.weight_zero_point", np.zeros(len(linear.weight), linear.weight.dtype))
    restore = operation("DequantizeLinear", (integers, scale, zero), f"{path}.weight_dq", integers, axis=1)
    restore.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    _insert(graph, reader, [restore])
    return restore.outputs[0]


def _weight_in_blocks(graph: ir.Graph, reader: ir.Node, path: str, linear: LinearQuantization) -> ir.Value:
    integers = add_constant(graph, f"{path}{INT4_WEIGHT}", linear.weight.T.astype(ml_dtypes.int4))  # [K, N]
    scale = add_constant(graph, f"{path}.weight_scale", linear.weight_scale.T.astype(np.float32))  # [blocks, N]
    name = f"{path}.weight_dq"
    restore = operation("DequantizeLinear", (integers, scale), name, integers, axis=0, block_size=linear.block)
    restore.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    _insert(graph, reader, [restore])
    return restore.outputs[0]


def _insert(graph: ir.Graph, reader: ir.Node, nodes: list[ir.Node]) -> None:
    for node in nodes:
        node.metadata_props.update(reader.metadata_props)
    graph.insert_before(reader, nodes)
