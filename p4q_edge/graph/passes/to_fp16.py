"""Turn the float32 remainder of a Q/DQ graph into FP16."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from p4q_edge.graph.edit import FLOATS, POOLS, add_constant, constant, input_of, name_of, nodes_of, operation
from p4q_edge.graph.passes.base import GraphPass
from p4q_edge.quant import affine

_POINTWISE = frozenset({"Cast", "Add", "Sub", "Mul", "Div"})
_LARGEST = float(np.finfo(np.float16).max)


class ToFp16(GraphPass):
    """Compute in FP16, except where float32 costs no kernel and FP16 would lose digits.

    Float32 stay: the normalization of the uint8 image (it fuses with the Cast), the L2 norm (its sum of
    squares can leave the FP16 range), the graph outputs, and a MatMul or pool whose input has a scale below 2**-14,
    the smallest normal FP16 number. TensorRT wants a scale of the type of its tensor, and NVIDIA's compiler both
    scales of a MatMul of one type, so such a one stands between two Casts, which cost no kernel; between pairs of two
    types it pools in FP16, in a kernel more.
    """

    def obstacles(self, model: ir.Model) -> Iterable[str]:
        for name, value in model.graph.initializers.items():
            if value.dtype is ir.DataType.FLOAT:
                array = constant(value)
                if array is not None and array.size and float(np.abs(array).max()) > _LARGEST:
                    yield f"the constant {name} is beyond the FP16 range"

    def apply(self, model: ir.Model) -> bool:
        graph = model.graph
        keep = image_region(graph) | norm_region(graph) | small_scale_region(graph)
        casts: dict[tuple[str, ir.DataType], ir.Value] = {}
        for node in list(graph):
            wanted = ir.DataType.FLOAT if node in keep else ir.DataType.FLOAT16
            _convert_inputs(graph, node, wanted, casts)
            _convert_outputs(node, wanted)
        _restore_outputs(graph)
        return True

    def broken_promises(self, model: ir.Model) -> Iterable[str]:
        for node in model.graph:
            types = {v.dtype for v in node.inputs if v is not None and v.dtype in FLOATS}
            if len(types) > 1:
                yield f"{node.name} ({node.op_type}) mixes {sorted(t.name for t in types)}"
        for output in model.graph.outputs:
            if output.dtype is not ir.DataType.FLOAT:
                yield f"the output {output.name} is {output.dtype}"


def image_region(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that turn the uint8 image into the normalized one."""
    return _forward(graph, {node for value in graph.inputs for node in value.consumers()}, _POINTWISE)


def norm_region(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes of the L2 normalization, up to its division."""
    region: set[ir.Node] = set()
    for norm in nodes_of(graph, "ReduceL2"):
        node: ir.Node | None = norm
        while node is not None and node.op_type in {"ReduceL2", "Clip", "Max", "Add", "Expand", "Reciprocal"}:
            region.add(node)
            node = next(iter(node.outputs[0].consumers()), None)
        if node is not None and node.op_type in {"Div", "Mul"}:
            region.add(node)
    return region


def small_scale_region(graph: ir.Graph) -> set[ir.Node]:
    """Return Clip, Q and DQ nodes whose scale is no normal number of FP16, with pools and weighted products behind."""
    region: set[ir.Node] = set()
    for node in nodes_of(graph, "QuantizeLinear", "DequantizeLinear"):
        scale = constant(node.inputs[1])
        if scale is not None and float(scale.min()) < affine.SMALLEST_NORMAL_FP16:
            region.add(node)
            before = input_of(node, 0).producer()
            if node.op_type == "QuantizeLinear" and before is not None and before.op_type == "Clip":
                region.add(before)
    for product in [reader for node in region for reader in _products(node)]:
        weight = _restored_weight(product)
        assert weight is not None  # or it were no such product
        region |= {product, weight}
    restored = [node.outputs[0] for node in region if node.op_type == "DequantizeLinear"]
    return region | {reader for value in restored for reader in value.consumers() if reader.op_type in POOLS}


def _products(node: ir.Node) -> list[ir.Node]:
    """Return the products of a weight with an input that a node restores.

    Those of attentions have two such inputs, each with a QuantizeLinear that stays FP16; convolutions are compiled with
    scales of two types, and give float32 anyway.
    """
    readers = node.outputs[0].consumers() if node.op_type == "DequantizeLinear" else ()
    return [reader for reader in readers if reader.op_type == "MatMul" and _restored_weight(reader) not in (None, node)]


def _restored_weight(product: ir.Node) -> ir.Node | None:
    """Return the DequantizeLinear of a product's weight, or None of a product of two activations."""
    node = input_of(product, 1).producer()
    restores = node is not None and node.op_type == "DequantizeLinear" and constant(input_of(node, 0)) is not None
    return node if restores else None


def _forward(graph: ir.Graph, start: set[ir.Node], allowed: frozenset[str]) -> set[ir.Node]:
    region = {node for node in start if node.op_type in allowed}
    for node in graph:
        producers = {value.producer() for value in node.inputs if value is not None}
        if node.op_type in allowed and producers & region:
            region.add(node)
    return region


def _convert_inputs(
    graph: ir.Graph, node: ir.Node, wanted: ir.DataType, casts: dict[tuple[str, ir.DataType], ir.Value]
) -> None:
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype not in FLOATS or value.dtype is wanted or node.op_type == "Cast":
            continue
        key = (name_of(value), wanted)
        if key not in casts:
            casts[key] = _converted(graph, node, value, wanted)
        node.replace_input_with(index, casts[key])
        if not value.uses() and key[0] in graph.initializers:
            del graph.initializers[key[0]]


def _converted(graph: ir.Graph, reader: ir.Node, value: ir.Value, wanted: ir.DataType) -> ir.Value:
    suffix = "fp16" if wanted is ir.DataType.FLOAT16 else "fp32"
    array = constant(value)
    if array is not None:
        return add_constant(graph, f"{value.name}.{suffix}", array.astype(wanted.numpy()))
    cast = operation("Cast", (value,), f"{value.name}.{suffix}", value, to=wanted)
    cast.outputs[0].type = ir.TensorType(wanted)
    producer = value.producer()
    if producer is None:
        graph.insert_before(reader, cast)
    else:
        graph.insert_after(producer, cast)
    return cast.outputs[0]


def _convert_outputs(node: ir.Node, wanted: ir.DataType) -> None:
    if node.op_type == "Cast" and node.attributes.get_int("to") == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", wanted)
    for output in node.outputs:
        if output.dtype in FLOATS:
            output.type = ir.TensorType(wanted)


def _restore_outputs(graph: ir.Graph) -> None:
    for output in list(graph.outputs):
        if output.dtype is not ir.DataType.FLOAT16:
            continue
        name, producer = name_of(output), output.producer()
        assert producer is not None  # an output of float type is never the uint8 input itself
        output.name = f"{name}.fp16"
        cast = operation("Cast", (output,), name, output, to=ir.DataType.FLOAT)
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.insert_after(producer, cast)
        graph.outputs[list(graph.outputs).index(output)] = cast.outputs[0]
