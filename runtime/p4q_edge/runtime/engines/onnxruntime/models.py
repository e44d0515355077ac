"""Variants of a Q/DQ model for a CPU: 7-bit weights, or no quantization. The only module here that needs `onnx`."""

from __future__ import annotations

from typing import Any

import numpy as np

from p4q_edge.runtime.errors import ArtifactError, EnvironmentNotAbleError

_OF_A_GRID = frozenset({"DequantizeLinear", "QuantizeLinear", "Clip", "Cast", "Concat", "Slice", "Split"})
"""What lies between a shift and the product; a part of the tokens may stay in float, and is joined again."""

SEVEN_BIT_MAX = 63
"""Two products of an unsigned 8-bit and a weight of this size fit into 16 bits: 2 * 255 * 63 < 2 ** 15."""


def seven_bit_weights(model: bytes) -> bytes:
    """Return a model whose int8 weights lie within [-63, 63]; their scales grow accordingly.

    Each output channel is rounded to the finer of its grids: q' = rint(q * 63 / max|q|). Where a constant is added to
    the input, as it is behind a GELU to use the whole grid, the bias takes up what the rounding makes of that constant.

    Raises:
        EnvironmentNotAbleError: the package `onnx` is not installed.
        ArtifactError: the model has no int8 weights.
    """
    onnx = _import_onnx("--cpu-profile fast")
    graph = onnx.ModelProto.FromString(model)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    scales: dict[str, str] = {}
    changes: dict[str, np.ndarray] = {}
    for node in graph.graph.node:
        weight = _weight(onnx, node, tensors)
        if weight is None:
            continue
        name = node.input[0]
        if name not in scales:
            scale = onnx.numpy_helper.to_array(tensors[node.input[1]])
            rounded, wider = narrowed(weight, scale, axis=_axis(node))
            tensors[name].CopyFrom(onnx.numpy_helper.from_array(rounded, name))
            # The scale may be shared with another weight, so that this one gets one of its own.
            scales[name] = f"{name}.scale7"
            graph.graph.initializer.append(onnx.numpy_helper.from_array(wider, scales[name]))
            if weight.ndim == 2:
                changes[node.output[0]] = restored(rounded, wider, axis=_axis(node)) - restored(
                    weight, scale, axis=_axis(node)
                )
        node.input[1] = scales[name]
    if not scales:
        raise ArtifactError("the model has no int8 weights, so that it has no fast profile. Build it as exact.")
    _correct_biases(onnx, graph, tensors, changes)
    return bytes(graph.SerializeToString(deterministic=True))


def restored(weight: np.ndarray, scale: np.ndarray, *, axis: int) -> np.ndarray:
    """Return the float64 values of an int8 weight; a scale has one value, or one for each index of `axis`."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    values: np.ndarray = weight.astype(np.float64) * (scale.reshape(shape) if scale.ndim else scale)
    return values


def corrected_bias(bias: np.ndarray, shift: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return a bias `(out,)` that takes up what a change `(in, out)` of the weight makes of a shift `(in,)`."""
    corrected: np.ndarray = (bias - shift.astype(np.float64) @ change).astype(bias.dtype)
    return corrected


def _correct_biases(onnx: Any, graph: Any, tensors: dict[str, Any], changes: dict[str, np.ndarray]) -> None:
    """Give each product of a shifted input and a changed weight a bias of its own."""
    producers = {name: node for node in graph.graph.node for name in node.output}
    for product in graph.graph.node:
        if product.op_type != "MatMul" or product.input[1] not in changes:
            continue
        shift = _shift(producers.get(product.input[0]), producers, tensors)
        if shift is None:
            continue
        # The exporter gives every linear with a shift a bias, and adds it behind the product.
        (adding,) = (node for node in graph.graph.node if node.op_type == "Add" and product.output[0] in node.input)
        bias = next(name for name in adding.input if name in tensors)
        old, constant = (onnx.numpy_helper.to_array(tensors[name]) for name in (bias, shift))
        new = corrected_bias(old, constant, changes[product.input[1]])
        # A bias may be shared with another product, so that this one gets one of its own.
        own = f"{product.output[0]}.bias7"
        graph.graph.initializer.append(onnx.numpy_helper.from_array(new, own))
        adding.input[list(adding.input).index(bias)] = own


def _shift(node: Any, producers: dict[str, Any], tensors: dict[str, Any]) -> str | None:
    """Return the name of the constant that is added to what is then put on its grid, or None."""
    while node is not None and node.op_type in _OF_A_GRID:
        node = producers.get(node.input[0])
    if node is None or node.op_type != "Add" or ".input_shift" not in node.input[1]:
        return None
    return node.input[1] if node.input[1] in tensors else None


def narrowed(weight: np.ndarray, scale: np.ndarray, *, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 weights within [-63, 63] and their scale; a scale has one value, or one for each index of `axis`."""
    others = tuple(index for index in range(weight.ndim) if index != axis) if scale.ndim else None
    largest = np.abs(weight.astype(np.int16)).max(axis=others, keepdims=True)
    factor = np.maximum(largest, 1) / SEVEN_BIT_MAX
    rounded = np.ascontiguousarray(np.rint(weight / factor).astype(np.int8))
    return rounded, (scale.astype(np.float64) * factor.reshape(scale.shape)).astype(scale.dtype)


def float_weights(model: bytes) -> bytes:
    """Return a model that computes in FP32 with the quantized weights: no activation is quantized.

    Raises:
        EnvironmentNotAbleError: the package `onnx` is not installed.
    """
    onnx = _import_onnx("--cpu-profile float or auto")
    graph = onnx.ModelProto.FromString(model)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        if node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] not in tensors):
            renamed[node.output[0]] = node.input[0]
        elif (weight := _weight(onnx, node, tensors)) is not None:
            scale = onnx.numpy_helper.to_array(tensors[node.input[1]]).astype(np.float32)
            shape = [1] * weight.ndim
            shape[_axis(node)] = -1
            value = weight.astype(np.float32) * (scale.reshape(shape) if scale.ndim else scale)
            graph.graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
        else:
            kept.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    unused = [tensor for tensor in graph.graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.graph.initializer.remove(tensor)
    return bytes(graph.SerializeToString(deterministic=True))


def differing_tensors(first: bytes, second: bytes) -> int:
    """Return how many constants differ between two models, or all where their operators do.

    Raises:
        EnvironmentNotAbleError: the package `onnx` is not installed.
    """
    onnx = _import_onnx("comparing this profile with its bundle")
    graphs = [onnx.ModelProto.FromString(model).graph for model in (first, second)]
    tensors = [{tensor.name: tensor for tensor in graph.initializer} for graph in graphs]
    names = tensors[0].keys() | tensors[1].keys()
    if list(graphs[0].node) != list(graphs[1].node):
        return len(names)
    return sum(tensors[0].get(name) != tensors[1].get(name) for name in names)


def _import_onnx(purpose: str) -> Any:
    # Imported here: only these variants need it, and a device that builds the exact profile has none.
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise EnvironmentNotAbleError(
            f"{purpose} needs the package onnx while the engine is built. Run: pip install onnx, or build on another "
            "machine of this kind, or take the exact profile: --cpu-profile exact."
        ) from error
    return onnx


def _weight(onnx: Any, node: Any, tensors: dict[str, Any]) -> np.ndarray | None:
    """Return the int8 weight that a node dequantizes, or None if it does something else."""
    if node.op_type != "DequantizeLinear" or node.input[0] not in tensors or node.input[1] not in tensors:
        return None
    tensor = tensors[node.input[0]]
    return onnx.numpy_helper.to_array(tensor) if tensor.data_type == onnx.TensorProto.INT8 else None


def _axis(node: Any) -> int:
    """Return the axis of a DequantizeLinear; 1 where it names none, as ONNX defines."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 1)
