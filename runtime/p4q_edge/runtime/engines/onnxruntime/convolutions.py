"""The graph of a bundle whose convolutions are quantized, as a CPU multiplies them: with a remainder in FP32."""

from __future__ import annotations

from typing import Any

import numpy as np

from p4q_edge.runtime.engines.onnxruntime.models import (
    graph_of_bundle,
    import_onnx,
    seven_bit_weights,
    weights_as_exported,
)

_LARGEST = 127
"""Of the signed integers of a grid; two products of such a one and an 8-bit weight fit into 16 bits."""
_HALF = ".fp16"
_PURPOSE = "--cpu-profile auto, for convolutions in INT8,"
_LEAST, _ZERO = "unsigned_least", "unsigned_zero_point"
_KEEPS_SIGN = frozenset(
    {"AveragePool", "Cast", "Clip", "DequantizeLinear", "MaxPool", "QuantizeLinear", "Reshape", "Transpose"}
)
"""What gives no negative numbers where it is given none; `Clip` as long as its upper bound is none."""


def integer_convolutions(half: bytes, single: bytes) -> bytes:
    """Return the graph that is made for GPUs with all that is not quantized in FP32, for a library of CPUs.

    Behind a ReLU integers become unsigned, with the same values: signed ones are moved by 128 by such libraries.

    Args:
        half: the bundle's graph with FP16 remainder.
        single: its graph with FP32 remainder, which has the same constants before they became FP16.

    Raises:
        EnvironmentNotAbleError: the package `onnx` is not installed.
        CorruptArtifactError: a constant is not as the exporter writes it.
    """
    onnx = import_onnx(_PURPOSE)
    graph = graph_of_bundle(onnx, half)
    with weights_as_exported():
        _widen(onnx, graph, graph_of_bundle(onnx, single))
        _use_unsigned(onnx, graph.graph)
    return bytes(graph.SerializeToString(deterministic=True))


def without_overflow(model: bytes) -> bytes:
    """Return a model of `integer_convolutions` with weights of 7 bits where products of 8 bits could overflow 16 bits.

    Those of a convolution of unsigned integers cannot: these are at most 127, as the signed ones were.

    Raises:
        EnvironmentNotAbleError, ArtifactError, CorruptArtifactError: as `seven_bit_weights`.
    """
    graph = graph_of_bundle(import_onnx(_PURPOSE), model).graph
    with weights_as_exported():
        kept = _weights_of_convolutions(graph)
    return seven_bit_weights(model, kept=kept)


def overflowing_weights(model: bytes) -> frozenset[str]:
    """Return the names of the integers that convolutions of a model of `integer_convolutions` multiply by signed ones.

    `without_overflow` narrows them.

    Raises:
        EnvironmentNotAbleError, CorruptArtifactError: as `without_overflow`.
    """
    graph = graph_of_bundle(import_onnx(_PURPOSE), model).graph
    with weights_as_exported():
        kept = _weights_of_convolutions(graph)
        read = {node.input[1] for node in graph.node if node.op_type == "Conv"} - kept
        steps = [node for node in graph.node if node.op_type == "DequantizeLinear"]
        return frozenset(node.input[0] for node in steps if node.output[0] in read)


def _widen(onnx: Any, graph: Any, single: Any) -> None:
    """Turn FP16 into FP32 in place; a constant gets the digits that it lost, where the other graph has them."""
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    own = {tensor.name: tensor for tensor in single.graph.initializer if tensor.data_type == full}
    for tensor in graph.graph.initializer:
        if tensor.data_type != half:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        exact = own.get(tensor.name.removesuffix(_HALF))
        found = values.astype(np.float32) if exact is None else onnx.numpy_helper.to_array(exact)
        with np.errstate(over="ignore"):  # the other graph's constant of this name may be another one
            if found.shape != values.shape or not np.array_equal(found.astype(np.float16), values):
                found = values.astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(found, tensor.name))
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = full


def _use_unsigned(onnx: Any, graph: Any) -> None:
    """Make integers that are never negative unsigned, in place."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    # Decided before anything is changed: a step in front of a pool is asked of behind it.
    changed = _steps_behind_relu(onnx, graph, tensors)
    nodes = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0] in changed:
            # The unsigned grid goes to 255; what the signed one cuts off at 127 is cut off here.
            scale = onnx.numpy_helper.to_array(tensors[node.input[1]]).astype(np.float32)
            top, kept = f"{node.output[0]}.largest", f"{node.output[0]}.kept"
            graph.initializer.append(onnx.numpy_helper.from_array((_LARGEST * scale).reshape(()), top))
            nodes.append(onnx.helper.make_node("Clip", [node.input[0], _LEAST, top], [kept], name=f"{kept}/Clip"))
            node.input[0], node.input[2] = kept, _ZERO
        elif node.op_type == "DequantizeLinear" and node.input[0] in changed:
            node.input[2] = _ZERO
        nodes.append(node)
    constants = {_LEAST: np.array(0, np.float32), _ZERO: np.array(0, np.uint8)} if changed else {}
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    del graph.node[:]
    graph.node.extend(nodes)


def _steps_behind_relu(onnx: Any, graph: Any, tensors: dict[str, Any]) -> set[str]:
    """Return the names of signed integers that are never negative and are restored at once."""
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    return {
        node.output[0]
        for node in graph.node
        if node.op_type == "QuantizeLinear"
        and len(node.input) == 3
        and _is_zero(onnx, tensors, node.input[2])
        and node.input[1] in tensors
        and readers.get(node.output[0]) == {"DequantizeLinear"}
        and _never_negative(onnx, node.input[0], producers, tensors)
    }


def _is_zero(onnx: Any, tensors: dict[str, Any], name: str) -> bool:
    """Return whether a constant is the one zero point of signed integers of 8 bits."""
    tensor = tensors.get(name)
    if tensor is None or tensor.data_type != onnx.TensorProto.INT8:
        return False
    values = onnx.numpy_helper.to_array(tensor)
    return bool(values.size == 1 and not values.any())


def _never_negative(onnx: Any, name: str, producers: dict[str, Any], tensors: dict[str, Any]) -> bool:
    """Return whether a tensor comes from a ReLU, or a `Clip` from zero on, through nothing that makes it negative."""
    for _ in range(len(producers)):  # a graph of a stranger may lead back to where it came from
        node = producers.get(name)
        if node is None or node.op_type not in _KEEPS_SIGN:
            return node is not None and node.op_type == "Relu"
        if node.op_type == "Clip":
            low, high = (_bound(onnx, node, index, tensors) for index in (1, 2))
            if high is None or high < 0 or (low is not None and low >= 0):
                return high is not None and high >= 0
        name = node.input[0]
    return False


def _bound(onnx: Any, node: Any, index: int, tensors: dict[str, Any]) -> float | None:
    """Return a bound of a `Clip`, or None where it has none or one that is no constant."""
    tensor = tensors.get(node.input[index]) if len(node.input) > index else None
    return None if tensor is None else float(onnx.numpy_helper.to_array(tensor).reshape(()))


def _weights_of_convolutions(graph: Any) -> frozenset[str]:
    """Return the names of the restored weights that convolutions of unsigned integers read, and nothing else."""
    steps = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    unsigned = {node.output[0] for node in steps if list(node.input[2:]) == [_ZERO]}
    safe: dict[str, bool] = {}
    for node in graph.node:
        for name in node.input:
            reads = node.op_type == "Conv" and name == node.input[1] and node.input[0] in unsigned
            safe[name] = reads and safe.get(name, True)
    return frozenset(name for name, is_safe in safe.items() if is_safe)
