"""The quantized convolutions of an exported graph: where they are, and whether they hold what the module holds."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from p4q_edge.graph.quantization import INT8_WEIGHT, ConvQuantization, weight_path

_ENDS = (INT8_WEIGHT,)


@dataclass(frozen=True, kw_only=True)
class ConvNode:
    """One convolution of an exported graph that multiplies int8 weights.

    Attributes:
        path: module path.
        operator: name of its Conv.
        input_scale: name of the scale of its input; "" where the input is not quantized.
        weight_scale: name of the scale of its weight.
    """

    path: str
    operator: str
    input_scale: str
    weight_scale: str


def conv_layers(model: onnx.ModelProto) -> list[ConvNode]:
    """Return the convolutions with restored int8 weights, in the order in which they run."""
    producers = {output: node for node in model.graph.node for output in node.output}
    found = []
    for node in model.graph.node:
        weight = producers.get(node.input[1]) if node.op_type == "Conv" else None
        if (
            weight is None
            or weight.op_type != "DequantizeLinear"
            or (path := weight_path(weight.input[0], _ENDS)) is None
        ):
            continue
        source = producers.get(node.input[0])
        restored = source is not None and source.op_type == "DequantizeLinear"
        found.append(
            ConvNode(
                path=path,
                operator=node.name,
                input_scale=source.input[1] if source is not None and restored else "",
                weight_scale=weight.input[1],
            )
        )
    return found


def differing_convolutions(model: onnx.ModelProto, convs: Mapping[str, ConvQuantization]) -> tuple[str, ...]:
    """Return the paths of the convolutions that a graph before `ToFp16` holds otherwise than the module.

    Integers and scales are compared bit by bit, but for scales that were lifted by a power of two, whose digits are.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.path: node for node in conv_layers(model)}

    def holds(node: ConvNode, conv: ConvQuantization) -> bool:
        if node.input_scale not in tensors:
            return False
        scale = numpy_helper.to_array(tensors[node.weight_scale])
        lifted = np.log2(scale / conv.weight_scale)
        return (
            bool(numpy_helper.to_array(tensors[node.input_scale]) == np.float32(conv.input_scale))
            and np.array_equal(numpy_helper.to_array(tensors[node.path + INT8_WEIGHT]), conv.weight)
            and np.array_equal(lifted, np.round(lifted).clip(min=0))
        )

    differing = [path for path, conv in convs.items() if path not in nodes or not holds(nodes[path], conv)]
    return (*differing, *(path for path in nodes if path not in convs))
