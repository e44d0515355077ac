"""Each quantized linear of a graph by itself: fed what the module's own layer gets, it has to give what that one gives.

The nodes of the layer are evaluated in NumPy as ONNX defines them, so that no kernel of a library takes part.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from p4q_edge.graph.proof.bypass import grid_of
from p4q_edge.graph.proof.graph_index import GraphIndex, e4m3_step, quantize_linear, quantize_linear_to_e4m3
from p4q_edge.graph.quantization import E4M3, weight_path
from p4q_edge.quant import Phase, QuantLinear, quant_linears, quant_products, running_in, softmax_scale
from p4q_edge.runtime.wording import number_of

ROWS = 128
"""Number of inputs of a layer that are compared."""
EXPLAINED_SHARE = 1e-3
"""Share of integers that may be off by one step: values next to a border, where a division is rounded otherwise."""
FLOAT_TYPES = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16})
GRID = ("QuantizeLinear", "DequantizeLinear", "Clip", "Cast")
"""Operators that put a tensor on its grid."""
_EPSILON = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float16): 2.0**-11}

FloatArray = NDArray[np.float32]


def rounding_of(kind: type[np.floating[Any]]) -> float:
    """Return the largest relative error of rounding to a type of numbers."""
    return _EPSILON[np.dtype(kind)]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The nodes of one linear of a graph.

    Attributes:
        grid: nodes that quantize the input, in the order in which they run.
        weight: the node that restores the weight.
        after: nodes behind the product, up to the bias.
    """

    grid: tuple[onnx.NodeProto, ...]
    weight: onnx.NodeProto
    after: tuple[onnx.NodeProto, ...]


class GraphLayers:
    """The quantized linears of a complete graph by module path."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._index = GraphIndex(model)
        self.layers = dict(self._found(model))

    def _found(self, model: onnx.ModelProto) -> Iterator[tuple[str, Layer]]:
        for product in model.graph.node:
            if product.op_type != "MatMul":
                continue
            weight = self._index.producers.get(product.input[1])
            while weight is not None and weight.op_type == "Cast":
                weight = self._index.producers.get(weight.input[0])
            if weight is None or weight.op_type != "DequantizeLinear" or (path := weight_path(weight.input[0])) is None:
                continue
            yield path, Layer(grid=self._before(product), weight=weight, after=self._behind(product, path))

    def _before(self, product: onnx.NodeProto) -> tuple[onnx.NodeProto, ...]:
        """Return what puts the input on its grid, with the gain and the shift before it, where there are."""
        nodes: list[onnx.NodeProto] = []
        node = self._index.producers.get(product.input[0])
        while node is not None and (node.op_type in GRID or self._moves(node)):
            nodes.insert(0, node)
            node = self._index.producers.get(node.input[0])
        return tuple(nodes)

    def _moves(self, node: onnx.NodeProto) -> bool:
        name = {"Mul": "input_gain", "Add": "input_shift"}.get(node.op_type)
        # The exporter stores equal constants once, under the name of the first layer that has them.
        stored = node.input[1] if len(node.input) > 1 else ""
        return name is not None and f".{name}" in stored and stored in self._index.tensors

    def _behind(self, product: onnx.NodeProto, path: str) -> tuple[onnx.NodeProto, ...]:
        """Return the inverse of a lifted scale and the addition of a bias, where they follow."""
        nodes: list[onnx.NodeProto] = []
        value = product.output[0]
        while len(readers := self._index.readers.get(value, [])) == 1 and readers[0].op_type in ("Mul", "Add", "Cast"):
            (node,) = readers
            if node.op_type == "Cast":  # behind a product in float32
                if next(attribute.i for attribute in node.attribute if attribute.name == "to") not in FLOAT_TYPES:
                    break
                value = node.output[0]
                continue
            constants = [name for name in node.input if name in self._index.tensors]
            lifting = node.op_type == "Mul" and any(name.startswith(f"{path}.weight_lift") for name in constants)
            if not constants or not (lifting or node.op_type == "Add"):
                break
            nodes.append(node)
            value = node.output[0]
            if node.op_type == "Add":
                break
        return tuple(nodes)

    def constant(self, name: str) -> NDArray[Any]:
        """Return an initializer by name."""
        return numpy_helper.to_array(self._index.tensors[name])

    def on_grid(self, layer: Layer, x: FloatArray) -> FloatArray:
        """Return the input as the product gets it, float32 of the same shape."""
        for node in layer.grid:
            if node.op_type == "Clip":
                low, high = (float(self.constant(name)) for name in node.input[1:3])
                x = np.clip(x, np.float32(low), np.float32(high))
            elif node.op_type == "Mul":
                x = x * self.constant(node.input[1]).astype(np.float32)
            elif node.op_type == "Add":
                x = x + self.constant(node.input[1]).astype(np.float32)
            elif node.op_type != "Cast":
                kind = self.constant(node.input[2]).dtype
                scale, zero = (self.constant(name).astype(np.float32) for name in node.input[1:3])
                if node.op_type != "QuantizeLinear":
                    x = (x - zero) * scale
                elif kind == E4M3:
                    x = quantize_linear_to_e4m3(x, scale)
                else:
                    x = quantize_linear(x, scale, zero)
        return x

    def weight(self, layer: Layer) -> NDArray[np.float64]:
        """Return the weight that a DequantizeLinear restores, `(in, out)`."""
        # By way of float32, which holds them all: not every version of NumPy turns numbers of 4 and 8 bits into these.
        integers, scale = (self.constant(n).astype(np.float32).astype(np.float64) for n in layer.weight.input[:2])
        sizes = [attribute.i for attribute in layer.weight.attribute if attribute.name == "block_size"]
        if sizes:
            scale = np.repeat(scale, sizes[0], axis=0)
        return integers * scale

    def product(self, layer: Layer, x: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return product and bias of an input on its grid (rows, in), float64 (rows, out), and how far roundings reach.

        The reach is that of a sum in float32 in any order, and of a bias rounded to the type in which it is stored.
        """
        weight = self.weight(layer)
        wide = x.astype(np.float64)
        value = wide @ weight
        reach = len(weight) * _EPSILON[np.dtype(np.float32)] * (np.abs(wide) @ np.abs(weight))
        for node in layer.after:
            (name,) = [name for name in node.input if name in self._index.tensors]
            other = self.constant(name)
            if node.op_type == "Mul":
                value, reach = value * other.astype(np.float64), reach * np.abs(other.astype(np.float64))
            else:
                value = value + other.astype(np.float64)
                # Next to zero FP16 has fixed steps, of which a learned bias can be a few.
                steps = np.spacing(np.abs(other)).astype(np.float64)
                reach = reach + np.maximum(2 * _EPSILON[other.dtype] * np.abs(other.astype(np.float64)), steps)
        return value, reach + 4 * _EPSILON[np.dtype(np.float32)] * np.abs(value)


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerRecord:
    """What one linear of the fake-quantized module got and gave: `(rows, in)` and `(rows, out)` float32."""

    linear: QuantLinear
    x: Tensor
    y: Tensor


def record_layers(model: nn.Module, images: NDArray[np.uint8]) -> dict[str, LayerRecord]:
    """Return inputs and outputs of the calibrated linears by module path, on a few images uint8 (N, 3, H, W)."""
    found: dict[str, LayerRecord] = {}

    def keep(path: str, linear: QuantLinear, x: Tensor, y: Tensor) -> None:
        rows, results = x.flatten(0, -2), y.flatten(0, -2)
        chosen = torch.linspace(0, len(rows) - 1, min(len(rows), ROWS)).round().long()
        found[path] = LayerRecord(linear=linear, x=rows[chosen].clone(), y=results[chosen].clone())

    hooks = [
        linear.register_forward_hook(lambda m, args, y, path=path: keep(path, m, args[0], y))
        for path, linear in quant_linears(model).items()
        if linear.calibrated
    ]
    try:
        with torch.inference_mode(), running_in(model, Phase.QUANTIZED):
            model(torch.from_numpy(images))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def wrong_layers(records: Mapping[str, LayerRecord], graph: onnx.ModelProto) -> dict[str, str]:
    """Return what differs by the path of each linear of a graph that does not compute what the module's computes.

    Args:
        records: of the module.
        graph: complete, with float32 or FP16 remainder. A linear that it lacks was computed by the exporter.
    """
    layers = GraphLayers(graph)
    problems = {path: _problem(layers, layers.layers[path], records[path]) for path in records if path in layers.layers}
    return {path: problem for path, problem in problems.items() if problem is not None}


def _problem(layers: GraphLayers, layer: Layer, record: LayerRecord) -> str | None:
    linear = record.linear
    with torch.inference_mode():
        expected = linear.quantized_input(record.x).numpy()
    scale = float(linear.input_scale)
    steps = np.abs(layers.on_grid(layer, record.x.numpy()) - expected) / scale
    if linear.scheme.in_fp8:
        steps = steps / e4m3_step(expected / scale)
    off = float((steps > 1e-3).mean())
    if not (steps.max(initial=0.0) <= 1.5 and off <= EXPLAINED_SHARE):
        return (
            f"its input is on another grid ({100 * off:.3g} % of the values, up to "
            f"{number_of(f'{steps.max():.3g}', 'step')})"
        )
    if linear.bias is not None and bool(linear.bias.any()) and not any(n.op_type == "Add" for n in layer.after):
        return "it has no bias"
    value, reach = layers.product(layer, expected)
    change = np.abs(value - record.y.numpy())
    if not (change - reach).max(initial=-1.0) <= 0.0:
        return f"weight or bias differ (outputs by up to {change.max():.3g})"
    return None


def differing_attentions(model: nn.Module, graph: onnx.ModelProto) -> tuple[str, ...]:
    """Return the operands, as `<path>.<name>`, that a graph does not hold on the grid of the module's attention."""
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    grids = {grid_of(node): node.input[1] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    expected = {
        f"{path}.{name}": scale
        for path, products in quant_products(model).items()
        for name, scale in zip(
            ("query", "key", "value", "softmax"),
            (*(float(operand.scale) for operand in products.operands), softmax_scale(products.bits)),
            strict=True,
        )
    }

    def holds(operand: str, scale: float) -> bool:
        if operand not in grids:
            return False
        stored = numpy_helper.to_array(tensors[grids[operand]])
        return bool(stored == np.asarray(scale, stored.dtype))

    return tuple(operand for operand, scale in expected.items() if not holds(operand, scale))
