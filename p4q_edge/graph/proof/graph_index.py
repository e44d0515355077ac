"""What gives and what reads each value of a graph, and what its quantization computes."""

import ml_dtypes
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


def quantize_linear_to_e4m3(x: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the numbers that ONNX's QuantizeLinear to FLOAT8E4M3FN gives: nearest, ties to even, saturating."""
    saturated = np.clip(x / scale, -448, 448)
    return np.asarray(saturated.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


def e4m3_step(q: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the distance between the E4M3 numbers next to `q`: of 3 bits of mantissa, and of 2**-9 below 2**-6."""
    _, exponent = np.frexp(np.maximum(np.abs(q), 2.0**-9))  # of m * 2**exponent, m in [0.5, 1); 0 has none
    return np.asarray(np.ldexp(np.float32(1), np.maximum(exponent - 4, -9)))
