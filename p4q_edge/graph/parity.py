"""Compare a graph in ONNX Runtime with the outputs of the module it was made from."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

GraphOutputs = Mapping[str, NDArray[np.float32]]


def run_in_onnxruntime(model: bytes, images: NDArray[np.uint8], *, optimized: bool = True) -> dict[str, Any]:
    """Run a complete model on the CPU without the saturating 8-bit kernels.

    Args:
        model: bytes of a ModelProto.
        images: uint8 (N, 3, H, W).
        optimized: False runs the graph node by node, as it is written.

    Returns:
        Each output by name.
    """
    # onnxruntime is imported here so that importing a pass stays cheap.
    import onnxruntime as ort

    from p4q_edge.runtime.engines.onnxruntime import FLOAT_ACTIVATIONS

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # this session runs once: nothing is reused
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry(*FLOAT_ACTIVATIONS)
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    # It would round the biases of INT8 convolutions to int32 with a scale in the type of the graph, and in FP16 that
    # scale, of input times weight, is zero or subnormal. No other library does, and no engine of ours is made so.
    session = ort.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def compare_outputs(reference: GraphOutputs, candidate: GraphOutputs) -> dict[str, float]:
    """Return the least cosine of each output over the images, and the share of equal top-1 answers.

    Keys are `cosine_<output>` and `top1_agreement`. A NaN anywhere gives a NaN cosine.
    """
    parity = {f"cosine_{name}": _least_cosine(array, candidate[name]) for name, array in reference.items()}
    same = reference["logits"].argmax(axis=1) == candidate["logits"].argmax(axis=1)
    parity["top1_agreement"] = float(same.mean())
    return parity


def _least_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(np.min((x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))))
