"""Variants of a Q/DQ model for a CPU: 7-bit weights, or no quantization. They need the package `onnx`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError, EnvironmentNotAbleError
from p4q_edge.runtime.storage import one_line

_OF_A_GRID = frozenset({"DequantizeLinear", "QuantizeLinear", "Clip", "Cast"})
"""What lies between a shift and the product."""

SEVEN_BIT_MAX = 63
"""Two products of an unsigned 8-bit and a weight of this size fit into 16 bits: 2 * 255 * 63 < 2 ** 15."""


@dataclass(frozen=True, kw_only=True)
class Narrowed:
    """A weight before and after, as integers: in float64 all of a model's would take eight times as much.

    Attributes:
        before: int8.
        scale: of `before`, one value or one for each index of `axis`.
        after: int8 within [-63, 63].
        wider: scale of `after`, of the shape of `scale`.
        axis: of the output channels.
    """

    before: np.ndarray
    scale: np.ndarray
    after: np.ndarray
    wider: np.ndarray
    axis: int

    def change(self) -> np.ndarray:
        """Return what was added to the weight's values, float64 of its shape."""
        after = _restored(self.after, self.wider, axis=self.axis)
        after -= _restored(self.before, self.scale, axis=self.axis)
        return after


def seven_bit_weights(model: bytes, *, kept: frozenset[str] = frozenset()) -> bytes:
    """Return a model whose int8 weights lie within [-63, 63]; their scales grow accordingly.

    An output channel that goes beyond is rounded to a coarser grid, q' = rint(q * 63 / max|q|); others, as those of 6
    or 4 bits, stay as they are. Where a constant is added to the input, as it is behind a GELU to use the whole grid,
    the bias takes up what the rounding makes of that constant.

    Args:
        model: the model.
        kept: names of restored weights that stay as they are.

    Raises:
        EnvironmentNotAbleError: the package `onnx` is not installed.
        ArtifactError: the model has INT4 or FP8 weights or no int8 ones, or one with a shifted input has no bias.
        CorruptArtifactError: a weight is not as the exporter writes it.
    """
    onnx = import_onnx("--cpu-profile fast")
    graph = graph_of_bundle(onnx, model)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    kinds = {tensor.data_type for tensor in graph.graph.initializer}
    for kind, name in ((onnx.TensorProto.INT4, "INT4 weights"), (onnx.TensorProto.FLOAT8E4M3FN, "FP8 weights")):
        if kind in kinds:
            raise ArtifactError(
                f"the model has {name}, whose products are in FP32, so that it has no fast profile. Build it as exact "
                "or float, or leave --cpu-profile and P4Q_EDGE_CPU_PROFILE out for the faster one here."
            )
    with weights_as_exported():
        narrow = _narrow_weights(onnx, graph, tensors, kept=kept)
    if not narrow and not kept:
        raise ArtifactError("the model has no int8 weights, so that it has no fast profile. Build it as exact.")
    with weights_as_exported():
        _correct_biases(onnx, graph, tensors, narrow)
    return bytes(graph.SerializeToString(deterministic=True))


@contextmanager
def weights_as_exported() -> Iterator[None]:
    """Tell of constants whose shapes, sizes or axes contradict each other; a bundle may come from a stranger."""
    try:
        yield
    except (ValueError, LookupError, TypeError, MemoryError) as error:
        said = one_line(error)
        raise CorruptArtifactError(
            f"the bundle's graph has a weight that is not as the exporter writes it: {said}. Export the bundle again."
        ) from error


def graph_of_bundle(onnx: Any, model: bytes) -> Any:
    """Return a model as the package `onnx` reads it, which is stricter than our own reader."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.ModelProto.FromString(model)
    except DecodeError as error:
        raise CorruptArtifactError(
            f"the bundle's graph is no model that onnx reads: {one_line(error)}. Export the bundle again."
        ) from error


def _narrow_weights(onnx: Any, graph: Any, tensors: dict[str, Any], *, kept: frozenset[str]) -> dict[str, Narrowed]:
    """Replace weights and scales in place; return the weights by the values that restore them."""
    narrow: dict[str, Narrowed] = {}
    originals: dict[str, np.ndarray] = {}
    for node in graph.graph.node:
        if node.output[0] in kept and (weight := _weight(onnx, node, tensors)) is not None:
            originals[node.input[0]] = weight
    done: dict[tuple[str, str, int], tuple[str, str, Narrowed]] = {}
    for node in graph.graph.node:
        weight = None if node.output[0] in kept else _weight(onnx, node, tensors)
        if weight is None:
            continue
        name, axis = node.input[0], _axis(node)
        key = (name, node.input[1], axis)
        if key not in done:
            # A weight may be shared under another scale, and a scale with another weight: each pair gets its own.
            own = f"{name}.{len(done)}" if name in originals else name
            weight = originals.setdefault(name, weight)
            scale = onnx.numpy_helper.to_array(tensors[node.input[1]])
            changed = narrowed(weight, scale, axis=axis)
            target = tensors[name] if own == name else graph.graph.initializer.add()
            target.CopyFrom(onnx.numpy_helper.from_array(changed.after, own))
            graph.graph.initializer.append(onnx.numpy_helper.from_array(changed.wider, f"{own}.scale7"))
            done[key] = own, f"{own}.scale7", changed
        node.input[0], node.input[1], narrow[node.output[0]] = done[key]
    return narrow


def _restored(weight: np.ndarray, scale: np.ndarray, *, axis: int) -> np.ndarray:
    """Return the float64 values of an int8 or FP8 weight; a scale has one value, or one for each index of `axis`.

    Raises:
        ValueError: it has another number of values, which would repeat the weight as often.
    """
    if scale.ndim and scale.shape != (weight.shape[axis],):
        raise ValueError(f"scales {scale.shape} of a weight {weight.shape} along axis {axis}")
    shape = [1] * weight.ndim
    shape[axis] = -1
    values: np.ndarray = weight.astype(np.float64) * (scale.reshape(shape) if scale.ndim else scale)
    return values


def corrected_bias(bias: np.ndarray, shift: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return a bias `(out,)` that takes up what a change `(in, out)` of the weight makes of a shift `(in,)`."""
    corrected: np.ndarray = (bias - shift.astype(np.float64) @ change).astype(bias.dtype)
    return corrected


def _correct_biases(onnx: Any, graph: Any, tensors: dict[str, Any], narrow: dict[str, Narrowed]) -> None:
    """Give each product of a shifted input and a changed weight a bias of its own."""
    producers = {name: node for node in graph.graph.node for name in node.output}
    for product in graph.graph.node:
        if product.op_type != "MatMul" or product.input[1] not in narrow:
            continue
        shift = _shift(producers.get(product.input[0]), producers, tensors)
        if shift is None:
            continue
        adding, bias = _bias_behind(product, graph, tensors)
        old, constant = (onnx.numpy_helper.to_array(tensors[name]) for name in (bias, shift))
        new = corrected_bias(old, constant, narrow[product.input[1]].change())
        # A bias may be shared with another product, so that this one gets one of its own.
        own = f"{product.output[0]}.bias7"
        graph.graph.initializer.append(onnx.numpy_helper.from_array(new, own))
        adding.input[list(adding.input).index(bias)] = own


def _bias_behind(product: Any, graph: Any, tensors: dict[str, Any]) -> tuple[Any, str]:
    """Return the node that adds a bias to a product, and the name of that bias."""
    readers = [node for node in graph.graph.node if product.output[0] in node.input]
    biases = [name for node in readers if node.op_type == "Add" for name in node.input if name in tensors]
    # The exporter gives every linear with a shift a bias, and adds it behind the product.
    if len(readers) != 1 or len(biases) != 1:
        raise ArtifactError(
            f"expected a bias behind the product {product.name or product.output[0]}, whose input is shifted, got "
            "none: export the bundle again, or build it as exact."
        )
    return readers[0], biases[0]


def _shift(node: Any, producers: dict[str, Any], tensors: dict[str, Any]) -> str | None:
    """Return the name of the constant that is added to what is then put on its grid, or None."""
    for _ in range(len(producers)):  # a graph of a stranger may lead back to where it came from
        if node is None or node.op_type not in _OF_A_GRID:
            break
        node = producers.get(node.input[0])
    if node is None or node.op_type != "Add" or ".input_shift" not in node.input[1]:
        return None
    return node.input[1] if node.input[1] in tensors else None


def narrowed(weight: np.ndarray, scale: np.ndarray, *, axis: int) -> Narrowed:
    """Return int8 weights within [-63, 63] and their scale; a scale has one value, or one for each index of `axis`."""
    others = tuple(index for index in range(weight.ndim) if index != axis) if scale.ndim else None
    largest = np.abs(weight.astype(np.int16)).max(axis=others, keepdims=True)
    factor = np.maximum(largest, SEVEN_BIT_MAX) / SEVEN_BIT_MAX
    rounded = np.ascontiguousarray(np.rint(weight / factor).astype(np.int8))
    wider = (scale.astype(np.float64) * factor.reshape(scale.shape)).astype(scale.dtype)
    return Narrowed(before=weight, scale=scale, after=rounded, wider=wider, axis=axis)


def float_weights(model: bytes) -> bytes:
    """Return a model that computes in FP32 with the quantized weights: no activation is quantized.

    Raises:
        EnvironmentNotAbleError: the package `onnx` is not installed.
        CorruptArtifactError: a weight is not as the exporter writes it.
    """
    onnx = import_onnx("--cpu-profile float or auto")
    graph = graph_of_bundle(onnx, model)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    with weights_as_exported():
        kept = _without_quantization(onnx, graph, tensors)
    del graph.graph.node[:]
    graph.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    unused = [tensor for tensor in graph.graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.graph.initializer.remove(tensor)
    return bytes(graph.SerializeToString(deterministic=True))


def _without_quantization(onnx: Any, graph: Any, tensors: dict[str, Any]) -> list[Any]:
    """Add the values of quantized weights to a graph, and return the nodes that are left."""
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        if node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] not in tensors):
            renamed[node.output[0]] = node.input[0]
        elif (weight := _weight(onnx, node, tensors)) is not None:
            scale = onnx.numpy_helper.to_array(tensors[node.input[1]])
            size = _number(node, "block_size", 0)
            if size:
                value = weight * np.repeat(_scale_of_blocks(weight, scale, size, axis=_axis(node)), size, axis=0)
            else:
                value = _restored(weight, scale, axis=_axis(node))
            graph.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), node.output[0]))
        else:
            kept.append(node)
    return kept


def _scale_of_blocks(weight: np.ndarray, scale: np.ndarray, size: int, *, axis: int) -> np.ndarray:
    """Return a scale `(blocks, out)` of a weight `(in, out)`, which says how much memory its repetition takes.

    Raises:
        ValueError: it is not one of whole blocks along axis 0.
    """
    blocks = weight.shape[0] // size if weight.ndim == 2 and size > 0 else 0
    if axis != 0 or blocks * size != weight.shape[0] or scale.shape != (blocks, *weight.shape[1:]):
        raise ValueError(f"blocks of {size} along axis {axis}, scales {scale.shape} and a weight {weight.shape}")
    return scale


def differing_tensors(first: bytes, second: bytes) -> int:
    """Return how many constants differ between two models, or all where their operators do.

    Raises:
        EnvironmentNotAbleError: the package `onnx` is not installed.
    """
    onnx = import_onnx("comparing this profile with its bundle")
    graphs = [graph_of_bundle(onnx, model).graph for model in (first, second)]
    tensors = [{tensor.name: tensor for tensor in graph.initializer} for graph in graphs]
    names = tensors[0].keys() | tensors[1].keys()
    if list(graphs[0].node) != list(graphs[1].node):
        return len(names)
    return sum(tensors[0].get(name) != tensors[1].get(name) for name in names)


def import_onnx(purpose: str) -> Any:
    # Imported here: only such variants need it, and a device that builds the exact profile has none.
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
    """Return the weight that a node dequantizes, or None if it does something else.

    int8 and INT4 come as int8, FP8 as float32: NumPy has neither of the small types.
    """
    if node.op_type != "DequantizeLinear" or node.input[0] not in tensors or node.input[1] not in tensors:
        return None
    tensor = tensors[node.input[0]]
    types = {onnx.TensorProto.INT8: np.int8, onnx.TensorProto.INT4: np.int8, onnx.TensorProto.FLOAT8E4M3FN: np.float32}
    kind = types.get(tensor.data_type)
    return None if kind is None else np.asarray(onnx.numpy_helper.to_array(tensor)).astype(kind)


def _axis(node: Any) -> int:
    """Return the axis of a DequantizeLinear; 1 where it names none, as ONNX defines."""
    return _number(node, "axis", 1)


def _number(node: Any, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
