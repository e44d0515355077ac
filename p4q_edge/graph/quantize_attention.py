"""Quantize the two products of each attention, on request."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from p4q_edge.graph.attention import find_attentions
from p4q_edge.graph.base import GraphPass
from p4q_edge.graph.edit import add_constant, module_path, name_of, nodes_of, only_user, operation, read
from p4q_edge.graph.parity import run_in_onnxruntime
from p4q_edge.quant import affine

HEAD_SIZES = frozenset({16, 32, 64})
MAX_TOKENS = 512
"""TensorRT fuses INT8 attention for these head sizes, and up to so many tokens."""

SOFTMAX_SCALE = 1 / affine.activation_range(8)[1]
"""Attention weights lie in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class AttentionRanges:
    """Scales of the tensors that an attention multiplies."""

    query: float
    key: float
    value: float


class QuantizeAttention(GraphPass):
    """Put Q/DQ on query, key, softmax and value of the attentions named by their module path.

    All four, or the compiler takes the fused attention apart. Attentions that ask for one token are left: their fused
    kernel has no INT8 form, and they are a small part of the work.

    Source: NVIDIA TensorRT, issues 2981 and 4167: which INT8 attentions fuse.
    """

    def __init__(self, ranges: Mapping[str, AttentionRanges]) -> None:
        self.ranges = ranges

    def requires(self, model: ir.Model) -> Iterable[str]:
        found = {module_path(node) for node in nodes_of(model.graph, "Softmax")}
        for path in self.ranges:
            if path not in found:
                yield f"no attention comes from {path}"

    def apply(self, model: ir.Model) -> bool:
        for softmax in nodes_of(model.graph, "Softmax"):
            path = module_path(softmax)
            if path in self.ranges:
                _quantize(model.graph, softmax, path, self.ranges[path])
        return bool(self.ranges)


def measure_attentions(model: ir.Model, images: NDArray[np.uint8]) -> dict[str, AttentionRanges]:
    """Run `model` on `images` and return the ranges of every attention that TensorRT fuses in INT8.

    Args:
        model: a float32 graph, batch first.
        images: uint8 (N, 3, H, W).
    """
    attentions = {
        module_path(attention.mixed): attention
        for attention in find_attentions(model.graph)
        if attention.token is None and attention.head_size in HEAD_SIZES and attention.tokens <= MAX_TOKENS
    }
    watched = model.clone()
    products = {module_path(a.mixed): a for a in find_attentions(watched.graph)}
    operands = {
        path: (read(products[path].scores, 0), read(products[path].scores, 1), read(products[path].mixed, 1))
        for path in attentions
    }
    names = {name_of(value) for values in operands.values() for value in values}
    watched.graph.outputs.extend(value for values in operands.values() for value in values)
    outputs = run_in_onnxruntime(ir.to_proto(watched).SerializeToString(), images)
    scales = {name: _scale(outputs[name]) for name in names}
    return {
        path: AttentionRanges(query=scales[name_of(q)], key=scales[name_of(k)], value=scales[name_of(v)])
        for path, (q, k, v) in operands.items()
    }


def _scale(array: NDArray[np.float32]) -> float:
    amax = torch.from_numpy(np.array(np.abs(array).max(), np.float32))
    return float(affine.scale_for(amax, affine.activation_range(8)[1]))


def _quantize(graph: ir.Graph, softmax: ir.Node, path: str, ranges: AttentionRanges) -> None:
    scores, mixed = read(softmax, 0).producer(), only_user(softmax.outputs[0])
    if scores is None or mixed is None:
        raise ValueError(f"{softmax.name} does not stand between two products")
    places: Sequence[tuple[ir.Node, int, str, float]] = (
        (scores, 0, "query", ranges.query),
        (scores, 1, "key", ranges.key),
        (mixed, 0, "softmax", SOFTMAX_SCALE),
        (mixed, 1, "value", ranges.value),
    )
    for product, index, name, step in places:
        _insert(graph, product, index, f"{path}.{name}", step)


def _insert(graph: ir.Graph, product: ir.Node, index: int, name: str, step: float) -> None:
    x = read(product, index)
    scale = add_constant(graph, f"{name}_scale", np.array(step, np.float32))
    zeros = [add_constant(graph, f"{name}_zero_point{end}", np.array(0, np.int8)) for end in ("", "_dq")]
    quantize = operation("QuantizeLinear", (x, scale, zeros[0]), f"{name}_int8", x)
    quantize.outputs[0].type = ir.TensorType(ir.DataType.INT8)
    restore = operation("DequantizeLinear", (quantize.outputs[0], scale, zeros[1]), f"{name}_restored", x)
    for node in (quantize, restore):
        node.metadata_props.update(product.metadata_props)
    graph.insert_before(product, [quantize, restore])
    product.replace_input_with(index, restore.outputs[0])
