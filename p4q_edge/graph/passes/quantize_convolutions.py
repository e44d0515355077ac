"""Quantize the inputs and weights of convolutions, and the tensors that they share with additions and pools."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from p4q_edge.graph.edit import POOLS, add_constant, input_of, module_path, name_of, nodes_of, operation
from p4q_edge.graph.passes.base import GraphPass
from p4q_edge.graph.passes.insert_qdq import quantize_operand
from p4q_edge.graph.quantization import INT8_WEIGHT, ConvQuantization, GridQuantization


class QuantizeConvolutions(GraphPass):
    """Put one pair of QuantizeLinear and DequantizeLinear at each quantized tensor; store weights as int8.

    A tensor with a grid is restored once for all its readers: convolutions, the residual input of additions, pools.
    The other convolutions get a pair at their input, which those that read one tensor with one scale share. Biases stay
    in high precision.
    """

    def __init__(self, convs: Mapping[str, ConvQuantization], grids: Sequence[GridQuantization]) -> None:
        self.convs = convs
        self.grids = grids

    def obstacles(self, model: ir.Model) -> Iterable[str]:
        yield from _missing(model.graph, self.convs)
        nodes = conv_nodes(model.graph)
        for grid in self.grids:
            found = nodes.get(grid.conv, [])
            if len(found) == 1 and grid.via == "pooled":
                pool = input_of(found[0], 0).producer()
                if pool is None or pool.op_type not in POOLS:
                    yield f"the convolution {grid.conv} reads {pool and pool.op_type}, expected a pool"

    def apply(self, model: ir.Model) -> bool:
        graph = model.graph
        nodes = conv_nodes(graph)
        restored: dict[ir.Value, ir.Value] = {}
        for grid in self.grids:
            value = _tensor_of(nodes[grid.conv][0], grid)
            pair = _restore_for_all(graph, value, f"{grid.conv}.{grid.via}", (grid.scale, grid.bits))
            restored[pair] = pair
        pairs: dict[tuple[str, float, int], ir.Value] = {}
        for path, conv in self.convs.items():
            (node,) = nodes[path]
            x = input_of(node, 0)
            if x not in restored:
                key = (name_of(x), conv.input_scale, conv.input_bits)
                if key not in pairs:
                    grid_of_input = conv.input_scale, conv.input_bits
                    pairs[key] = quantize_operand(graph, node, 0, f"{path}.input", grid_of_input)
                node.replace_input_with(0, pairs[key])
            _set_weight(graph, node, _restored_weight(graph, node, path, conv))
        return bool(self.convs)

    def broken_promises(self, model: ir.Model) -> Iterable[str]:
        yield from _without_integers(model.graph, self.convs)


class ConvolutionsFromIntegers(GraphPass):
    """Compute the weights of convolutions from the integers that the other graph stores; quantize no input.

    ONNX Runtime computes the product of integers and scales once, when it loads the graph; a DequantizeLinear it would
    leave, and convolve slowly.
    """

    def __init__(self, convs: Mapping[str, ConvQuantization]) -> None:
        self.convs = convs

    def obstacles(self, model: ir.Model) -> Iterable[str]:
        yield from _missing(model.graph, self.convs)

    def apply(self, model: ir.Model) -> bool:
        nodes = conv_nodes(model.graph)
        for path, conv in self.convs.items():
            (node,) = nodes[path]
            _set_weight(model.graph, node, _computed_weight(model.graph, node, path, conv))
        return bool(self.convs)

    def broken_promises(self, model: ir.Model) -> Iterable[str]:
        yield from _without_integers(model.graph, self.convs)


def conv_nodes(graph: ir.Graph) -> dict[str, list[ir.Node]]:
    """Return the Conv nodes by the path of their module."""
    found: dict[str, list[ir.Node]] = {}
    for node in nodes_of(graph, "Conv"):
        found.setdefault(module_path(node), []).append(node)
    return found


def _missing(graph: ir.Graph, convs: Mapping[str, ConvQuantization]) -> Iterable[str]:
    nodes = conv_nodes(graph)
    for path, conv in convs.items():
        found = nodes.get(path, [])
        if len(found) != 1:
            yield f"the convolution {path} has {len(found)} Conv nodes, expected 1"
            continue
        shape = tuple(input_of(found[0], 1).const_value.shape)  # type: ignore[union-attr]
        if shape != conv.weight.shape:
            yield f"the Conv of {path} has weight {shape}, expected {conv.weight.shape}"


def _without_integers(graph: ir.Graph, convs: Mapping[str, ConvQuantization]) -> Iterable[str]:
    for path in convs:
        if f"{path}{INT8_WEIGHT}" not in graph.initializers:
            yield f"{path} has no int8 weight"


def _tensor_of(node: ir.Node, grid: GridQuantization) -> ir.Value:
    if grid.via == "output":
        return node.outputs[0]
    value = input_of(node, 0)
    if grid.via == "input":
        return value
    pool = value.producer()
    assert pool is not None  # `requires` looked at it
    return input_of(pool, 0)


def _restore_for_all(graph: ir.Graph, value: ir.Value, name: str, grid: tuple[float, int]) -> ir.Value:
    """Put `value` on a grid, connect all its readers, and return the restored tensor."""
    uses = list(value.uses())
    order = {node: index for index, node in enumerate(graph)}
    first, index = min(uses, key=lambda use: order[use[0]])
    pair = quantize_operand(graph, first, index, name, grid)
    for user, at in uses:
        user.replace_input_with(at, pair)
    return pair


def _set_weight(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    before = input_of(node, 1)
    node.replace_input_with(1, weight)
    if not before.uses():
        del graph.initializers[name_of(before)]


def _restored_weight(graph: ir.Graph, node: ir.Node, path: str, conv: ConvQuantization) -> ir.Value:
    integers = add_constant(graph, f"{path}{INT8_WEIGHT}", conv.weight)
    scale = add_constant(graph, f"{path}.weight_scale", conv.weight_scale.astype(np.float32))
    zero = add_constant(graph, f"{path}.weight_zero_point", np.zeros(len(conv.weight), np.int8))
    restore = operation("DequantizeLinear", (integers, scale, zero), f"{path}.weight_dq", integers, axis=0)
    return _before(graph, node, [restore])


def _computed_weight(graph: ir.Graph, node: ir.Node, path: str, conv: ConvQuantization) -> ir.Value:
    integers = add_constant(graph, f"{path}{INT8_WEIGHT}", conv.weight)
    scale = add_constant(graph, f"{path}.weight_factor", conv.weight_scale.astype(np.float32).reshape(-1, 1, 1, 1))
    cast = operation("Cast", (integers,), f"{path}.weight_float", integers, to=ir.DataType.FLOAT)
    cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return _before(graph, node, [cast, operation("Mul", (cast.outputs[0], scale), f"{path}.weight_real", integers)])


def _before(graph: ir.Graph, reader: ir.Node, nodes: list[ir.Node]) -> ir.Value:
    for node in nodes:
        node.metadata_props.update(reader.metadata_props)
    graph.insert_before(reader, nodes)
    nodes[-1].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return nodes[-1].outputs[0]
