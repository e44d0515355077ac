"""What gives and what reads each value of a graph, and what its quantization computes."""

import numpy as np
import onnx
from numpy.typing import NDArray


class GraphIndex:
    """Lookup of a graph by the names of its values.

    Attributes:
        tensors: initializers by name.
        producers: the node that gives a value.
        readers: the nodes that read a value, in their order.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {output: node for node in model.graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)


def quantize_linear(
    x: NDArray[np.floating], scale: np.floating | NDArray[np.floating], zero: np.floating | NDArray[np.floating]
) -> NDArray[np.floating]:
    """Return the integers that ONNX's QuantizeLinear to int8 gives.

    Written from the operator's definition and not by `quant.affine`, which a proof must not take for granted.
    """
    return np.asarray(np.clip(np.rint(x / scale) + zero, -128, 127))
