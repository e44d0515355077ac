"""The quantized linears of an exported graph: where they are, and whether they hold what the module holds."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from p4q_edge.graph.quantization import E4M3, LinearQuantization, weight_path

_QUANTIZING = ("DequantizeLinear", "QuantizeLinear", "Clip")


@dataclass(frozen=True, kw_only=True)
class LinearNode:
    """One linear of an exported graph.

    Attributes:
        path: module path.
        operator: name of its MatMul.
        input: name of the tensor before it is quantized.
        output: name of the product, before the bias is added.
        input_scales: names of the scales between `input` and the product.
        weight: name of the integers, or E4M3 numbers, of its weight.
        weight_scale: name of the scale of its weight.
    """

    path: str
    operator: str
    input: str
    output: str
    input_scales: tuple[str, ...]
    weight: str
    weight_scale: str


def linear_nodes(model: onnx.ModelProto) -> list[LinearNode]:
    """Return the quantized linears of an exported graph, in the order in which they run."""
    producers = {output: node for node in model.graph.node for output in node.output}
    found = []
    for node in model.graph.node:
        weight = producers.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or weight.op_type != "DequantizeLinear" or (path := weight_path(weight.input[0])) is None:
            continue
        source, scales = node.input[0], []
        while source in producers and producers[source].op_type in _QUANTIZING:
            step = producers[source]
            scales += [step.input[1]] if step.op_type != "Clip" else []
            source = step.input[0]
        found.append(
            LinearNode(
                path=path,
                operator=node.name,
                input=source,
                output=node.output[0],
                input_scales=tuple(scales),
                weight=weight.input[0],
                weight_scale=weight.input[1],
            )
        )
    return found


def differing_linears(model: onnx.ModelProto, linears: Mapping[str, LinearQuantization]) -> tuple[str, ...]:
    """Return the paths of the linears that the graph with FP32 remainder holds otherwise than the module.

    Integers and scales of weights and the scales of inputs are compared bit by bit: where they agree, the graph rounds
    to the same grid, which no comparison of a model's outputs can show in a deep model. A linear without a MatMul in
    the graph reads a constant, such as the learned query of an attention pool, and was computed by the exporter.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.path: node for node in linear_nodes(model)}

    def holds(node: LinearNode, linear: LinearQuantization) -> bool:
        scales = [numpy_helper.to_array(tensors[name]) for name in node.input_scales]
        weight = numpy_helper.to_array(tensors[node.weight])
        return (
            len(scales) == (2 if linear.block is None else 0)
            and all(scale == np.float32(linear.input_scale) for scale in scales)
            and (weight.dtype == E4M3) == linear.in_fp8
            and np.array_equal(weight.astype(np.float32), linear.weight.T.astype(np.float32))
            and np.array_equal(numpy_helper.to_array(tensors[node.weight_scale]), linear.weight_scale.T)
        )

    computed = {node.name.rpartition("/")[0] for node in model.graph.node if node.op_type == "MatMul"}
    differing = [p for p, linear in linears.items() if (not holds(nodes[p], linear) if p in nodes else p in computed)]
    return (*differing, *(path for path in nodes if path not in linears))
