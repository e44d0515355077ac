"""Graphs whose weights are rewritten for other profiles and backends: 8 and 7 bits, in float, INT4 blocks, FP8."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

_IN, _OUT, _BLOCK = 8, 6, 4


@cache
def profile_seeds() -> tuple[bytes, ...]:
    """A product with a shifted input and a weight of 8 bits, and products with INT4 weights in blocks."""
    return _of_eight_bits(), _of_blocks(np.float16), _of_blocks(np.float32)


def _model(nodes: list[Any], constants: list[Any], *, opset: int) -> bytes:
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ("n", _IN))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("n", _OUT))
    graph = helper.make_graph(nodes, "graph", [image], [logits], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return bytes(made.SerializeToString())


def _of_eight_bits() -> bytes:
    from onnx import helper, numpy_helper

    constants = {
        "linear.input_shift": np.full(_IN, 0.1, np.float32),
        "x.scale": np.float32(0.01),
        "x.zero": np.int8(0),
        "linear.weight": np.random.default_rng(0).integers(-127, 128, (_IN, _OUT)).astype(np.int8),
        "linear.scale": np.full(_OUT, 0.01, np.float32),
        "linear.zero": np.zeros(_OUT, np.int8),
        "linear.bias": np.ones(_OUT, np.float32),
    }
    nodes = [
        helper.make_node("Add", ["image", "linear.input_shift"], ["shifted"]),
        helper.make_node("QuantizeLinear", ["shifted", "x.scale", "x.zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "x.scale", "x.zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["linear.weight", "linear.scale", "linear.zero"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "linear.bias"], ["logits"]),
    ]
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    return _model(nodes, kept, opset=20)


def _of_blocks(kind: type[np.floating[Any]]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    integers = np.random.default_rng(1).integers(-7, 8, _IN * _OUT).tolist()
    weight = helper.make_tensor("w4", TensorProto.INT4, (_IN, _OUT), integers)
    scale = numpy_helper.from_array(np.full((_IN // _BLOCK, _OUT), 0.1, kind), "scale")
    nodes = [
        helper.make_node("DequantizeLinear", ["w4", "scale"], ["w"], axis=0, block_size=_BLOCK),
        helper.make_node("MatMul", ["image", "w"], ["logits"]),
    ]
    return _model(nodes, [weight, scale], opset=21)


def use_profiles(data: bytes, folder: Path) -> None:
    """Rewrite the graph as every backend and profile does, each whatever the others say of it."""
    from p4q_edge.runtime.artifacts import check_exported
    from p4q_edge.runtime.builders.tensorrt.narrow_weights import flavour_of, with_fp16_weights
    from p4q_edge.runtime.engines.onnxruntime import (
        float_weights,
        integer_convolutions,
        seven_bit_weights,
        without_overflow,
    )
    from p4q_edge.runtime.errors import P4QEdgeError

    check_exported(data, name="graph")
    errors = []
    if flavour_of(data) != "int8":
        check_exported(with_fp16_weights(data), name="graph")
    rewrites = (seven_bit_weights, float_weights, partial(integer_convolutions, single=data), without_overflow)
    for rewrite in rewrites:
        try:
            rewrite(data)
        except P4QEdgeError as error:
            errors.append(error)
    if len(errors) == len(rewrites):
        raise errors[0]
