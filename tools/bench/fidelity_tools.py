"""Every quantizer on one image tower: its embeddings on images that it was not calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from accuracy_tools import (
    FloatClassifier,
    encoder_features,
    float_encoder,
    linear_nodes,
    model_optimizer_encoder,
    nncf_graph,
    onnxruntime_graph,
    run_graph,
)
from numpy.typing import NDArray
from torch import nn

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.models import to_batch
from p4q_edge.quant import count_macs, macs_by_module
from p4q_edge.recipe import QuantizationSection

Features = NDArray[np.float32]
MOVING = ("Reshape", "Transpose", "Slice", "Gather", "Split", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Concat")
"""Operators that move values and compute none."""

W8A8 = QuantizationSection()
W4A8 = {"weight_bits": 4, "weight_rounding": "descent"}
"""Changes that make it the grid of the recipe `w4a8`."""
W4A16 = {"weight_bits": 4, "activation_bits": 16, "weight_block": 128, "weight_rounding": "descent"}
"""Changes that make it the grid of the recipe `w4a16`."""
FP8 = {"number_format": "fp8"}
"""Changes that make it the grid of the recipe `fp8`."""
DENSE = "without depthwise and stem"
"""As the product takes convolutions by default."""
MEANS = (4.25, 4.5, 5.0)
"""Bits of a weight on average that the same grid is measured with too."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What one quantizer gives.

    Attributes:
        features: of the test images, ``(N, dim)``, not normalized.
        int8_mac_share: of the image tower, 0 to 1.
        execution: `executed` by ONNX Runtime's integer kernels, or `simulated` in floating point.
    """

    features: Features
    int8_mac_share: float
    execution: str


Quantizer = Callable[[FloatClassifier], Quantized]


def quantizers(width: str = "W8A8", *, convolutions: bool = False) -> dict[str, Quantizer]:
    """All rows of the table of a width in order; the other tools have none below 8 bits that integer kernels run.

    Args:
        convolutions: with the rows of W8A8 that tell apart which convolutions are quantized.
    """
    if width == "W4A8":
        return {
            "FP32": float_tower,
            "P4Q Edge": partial(ours, changes=W4A8),
            "P4Q Edge, not rotated": partial(ours, changes=W4A8 | {"rotation": False}),
            **{
                f"P4Q at {mean:g} bits a weight on average": partial(ours, changes=W4A8 | {"mean_weight_bits": mean})
                for mean in MEANS
            },
        }
    if width == "W4A16":
        return {
            "FP32": float_tower,
            "P4Q Edge": partial(ours, changes=W4A16),
            "P4Q at W4A16, blocks of 64": partial(ours, changes=W4A16 | {"weight_block": 64}),
            "P4Q at W4A16, blocks of 32": partial(ours, changes=W4A16 | {"weight_block": 32}),
            "P4Q at W4A16, nearest roundings": partial(ours, changes=W4A16 | {"weight_rounding": "nearest"}),
            "P4Q at W4A16, adaround": partial(ours, changes=W4A16 | {"weight_rounding": "adaround"}),
            "P4Q at W4A16, not rotated": partial(ours, changes=W4A16 | {"rotation": False}),
            "P4Q at W4A16, not folded": partial(ours, changes=W4A16 | {"fold_norm": False, "fold_value": False}),
            "P4Q at W4A8, carried": partial(ours, changes=W4A8),
            "P4Q at W8A8": partial(ours, changes={}),
        }
    if width == "FP8":
        return fp8_quantizers()
    smooth = {"config": "INT8_SMOOTHQUANT_CFG"}
    known = {
        "FP32": float_tower,
        "P4Q Edge": partial(ours, changes={}),
        "P4Q Edge, min-max": partial(ours, changes={"observer": "minmax", "weight_observer": "minmax"}),
        "ONNX Runtime (min-max)": partial(graph_tool, make=partial(onnxruntime_graph, method="MinMax")),
        "ONNX Runtime (percentile)": partial(graph_tool, make=partial(onnxruntime_graph, method="Percentile")),
        "ONNX Runtime (entropy)": partial(graph_tool, make=partial(onnxruntime_graph, method="Entropy")),
        "NNCF": partial(graph_tool, make=partial(nncf_graph, transformer=False)),
        "NNCF (SmoothQuant)": partial(graph_tool, make=nncf_graph),
        "Model Optimizer (max)": partial(torch_tool, options={"config": "INT8_DEFAULT_CFG"}),
        "Model Optimizer (SmoothQuant)": partial(torch_tool, options=smooth),
        "Model Optimizer (AWQ)": partial(torch_tool, options={"config": "INT8_DEFAULT_CFG", "algorithm": "awq_lite"}),
    }
    return known | (convolution_quantizers() if convolutions else {})


def convolution_quantizers() -> dict[str, Quantizer]:
    """Rows of ours with what is left in float by default, and of the others without it."""
    largest = {"config": "INT8_DEFAULT_CFG"}
    return {
        "P4Q with stem": partial(ours, changes={"stem": True}),
        "P4Q with depthwise": partial(ours, changes={"depthwise": True}),
        "P4Q with depthwise and stem": partial(ours, changes={"depthwise": True, "stem": True}),
        f"ONNX Runtime (min-max), {DENSE}": partial(
            graph_tool, make=partial(onnxruntime_graph, method="MinMax"), dense_only=True
        ),
        f"ONNX Runtime (percentile), {DENSE}": partial(
            graph_tool, make=partial(onnxruntime_graph, method="Percentile"), dense_only=True
        ),
        f"NNCF, {DENSE}": partial(graph_tool, make=partial(nncf_graph, transformer=False), dense_only=True),
        f"Model Optimizer (max), {DENSE}": partial(torch_tool, options=largest, dense_only=True),
    }


def fp8_quantizers() -> dict[str, Quantizer]:
    """The rows of FP8, with what may be left out of it, and of NVIDIA's own."""
    unfolded = {"fold_norm": False, "fold_value": False}
    return {
        "FP32": float_tower,
        "P4Q Edge": partial(ours, changes=FP8),
        "P4Q in FP8, no headroom": partial(ours, changes=FP8 | {"headroom": 1.0}),
        "P4Q in FP8, headroom of 2": partial(ours, changes=FP8 | {"headroom": 2.0}),
        "P4Q in FP8, not folded": partial(ours, changes=FP8 | unfolded),
        "P4Q in FP8, biases not corrected": partial(ours, changes=FP8 | {"bias_correction": False}),
        "P4Q in FP8, ranges and nothing else": partial(
            ours, changes=FP8 | unfolded | {"bias_correction": False, "headroom": 1.0}
        ),
        "P4Q at W8A8": partial(ours, changes={}),
        "Model Optimizer (FP8)": partial(torch_tool, options={"config": "FP8_DEFAULT_CFG"}),
    }


def float_tower(tower: FloatClassifier) -> Quantized:
    """The traced graph in ONNX Runtime with nothing quantized: what tracing alone changes."""
    return Quantized(
        features=run_graph(tower.graph(), tower.test, "features"), int8_mac_share=0.0, execution="executed"
    )


def ours(tower: FloatClassifier, *, changes: Mapping[str, Any]) -> Quantized:
    """The product's calibration with keys of [quantization] that differ from the defaults."""
    scheme = msgspec.structs.replace(W8A8, **changes).scheme()
    encoder = calibrate_encoder(tower.model, tower.train, scheme).encoder
    share = count_macs(encoder, to_batch(tower.train[:1], tower.model.preprocess)).integer_share
    return Quantized(features=encoder_features(encoder, tower).numpy(), int8_mac_share=share, execution="simulated")


def graph_tool(
    tower: FloatClassifier,
    *,
    make: Callable[[FloatClassifier, QuantizationSection], onnx.ModelProto],
    dense_only: bool = False,
) -> Quantized:
    """A tool that quantizes the traced graph."""
    tower = replace(tower, dense_only=dense_only) if dense_only else tower  # a copy traces its graph again
    quantized = make(tower, W8A8)
    return Quantized(
        features=run_graph(quantized, tower.test, "features"),
        int8_mac_share=graph_share(tower, quantized),
        execution="executed",
    )


def torch_tool(tower: FloatClassifier, *, options: Mapping[str, str], dense_only: bool = False) -> Quantized:
    """Model Optimizer, which quantizes the module."""
    tower = replace(tower, dense_only=dense_only)
    encoder = model_optimizer_encoder(tower, W8A8, **options)
    counts = _module_macs(tower)
    chosen = [name for name, module in encoder.named_modules() if _quantizes(module)]
    return Quantized(
        features=encoder_features(encoder, tower).numpy(),
        int8_mac_share=sum(counts.get(name, 0) for name in chosen) / counts[""],
        execution="simulated",
    )


def graph_share(tower: FloatClassifier, quantized: onnx.ModelProto) -> float:
    """Share of the image tower's multiply-accumulates whose two inputs are dequantized integers."""
    macs = node_macs(tower.graph())
    named = set(linear_nodes(tower.graph().graph, convolutions=True))
    weighted = {name: count for name, count in macs.items() if name in named}
    nodes, integers, known = quantized.graph.node, set[str](), -1
    while len(integers) > known:  # tools leave their nodes in any order
        known = len(integers)
        for node in nodes:
            if node.op_type == "DequantizeLinear" or (node.op_type in MOVING and node.input[0] in integers):
                integers.update(node.output)
    chosen = {node.name for node in quantized.graph.node if integers.issuperset(node.input[:2])}
    return sum(count for name, count in weighted.items() if name in chosen) / _module_macs(tower)[""]


def node_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-accumulates of one image by node: of convolutions and of products with a weight; `model` is changed."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes = {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    found = {}
    for node in graph.node:
        shape = weights.get(node.input[1]) if len(node.input) > 1 else None
        if shape is None or node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        outputs = int(np.prod(shapes[node.output[0]]))
        found[node.name] = outputs * int(np.prod(shape)) // (shape[0] if _rows_first(node) else shape[-1])
    return found


def _rows_first(node: onnx.NodeProto) -> bool:
    """Whether a weight's first axis is that of the outputs."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return node.op_type == "Conv" or transposed


def _module_macs(tower: FloatClassifier) -> dict[str, int]:
    sample = to_batch(tower.train[:1], tower.model.preprocess)
    return macs_by_module(float_encoder(tower, W8A8), sample)


def _quantizes(module: nn.Module) -> bool:
    """Whether Model Optimizer quantizes input and weight of a module."""
    parts = [getattr(module, f"{name}_quantizer", None) for name in ("input", "weight")]
    return all(part is not None and bool(getattr(part, "is_enabled", False)) for part in parts)


def reference_features(tower: FloatClassifier) -> Features:
    """What the float module makes of the test images, ``(N, dim)``."""
    with torch.no_grad():
        features: Features = encoder_features(tower.model.clip.visual, tower).numpy()  # type: ignore[arg-type]
    return features
