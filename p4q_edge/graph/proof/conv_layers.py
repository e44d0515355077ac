"""Each quantized convolution of a graph by itself: fed what the module's own gets, it has to give what that one gives.

As with linears (see `layers`), but the product is a convolution with the attributes that the graph's node has, added in
float64, so that a wrong stride is found as well as a wrong scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from p4q_edge.graph.proof.graph_index import GraphIndex, quantize_linear
from p4q_edge.graph.proof.layers import EXPLAINED_SHARE, GRID, rounding_of
from p4q_edge.graph.quantization import INT8_WEIGHT, weight_path
from p4q_edge.quant import Phase, QuantConv2d, quant_convs, running_as_cpu_graph, running_in
from p4q_edge.runtime.wording import number_of

IMAGES = 1
"""A convolution has as many results as positions; one image shows enough of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvRecord:
    """What one convolution of the fake-quantized module got and gave, `(N, channels, H, W)` float32.

    Attributes:
        on_grid: its input as the product gets it; `x` itself where the graph for CPUs leaves it in float.
    """

    conv: QuantConv2d
    x: Tensor
    on_grid: Tensor
    y: Tensor


def record_convolutions(model: nn.Module, images: NDArray[np.uint8], *, as_cpu_graph: bool) -> dict[str, ConvRecord]:
    """Return inputs and outputs of the calibrated convolutions by module path, on the first of uint8 (N, 3, H, W).

    Args:
        as_cpu_graph: quantized as the graph for CPUs is, whose convolutions have weights on their grids alone.
    """
    found: dict[str, ConvRecord] = {}

    def keep(path: str, conv: QuantConv2d, x: Tensor) -> None:
        x = x.clone()
        on_grid = x if as_cpu_graph else conv.input.on_grid(x)
        # Not what leaves the module: where additions read it, that is on a grid of its own.
        y = conv.convolve(on_grid, conv.quantized_weight(), conv.bias)
        found[path] = ConvRecord(conv=conv, x=x, on_grid=on_grid, y=y)

    hooks = [
        conv.register_forward_pre_hook(lambda m, args, path=path: keep(path, m, args[0]))
        for path, conv in quant_convs(model).items()
        if conv.calibrated
    ]
    running = running_as_cpu_graph(model) if as_cpu_graph else running_in(model, Phase.QUANTIZED)
    try:
        with torch.inference_mode(), running:
            model(torch.from_numpy(images[:IMAGES]))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def wrong_convolutions(records: Mapping[str, ConvRecord], graph: onnx.ModelProto) -> dict[str, str]:
    """Return what differs by the path of each convolution of a complete graph that does not compute what it should."""
    convolutions = GraphConvolutions(graph)
    problems = {path: convolutions.problem(path, record) for path, record in records.items()}
    return {path: problem for path, problem in problems.items() if problem is not None}


class GraphConvolutions:
    """The Conv nodes of a complete graph whose weights are int8, by module path."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._index = GraphIndex(model)
        self.nodes = {path: node for node in model.graph.node if (path := self._path_of(node)) is not None}

    def problem(self, path: str, record: ConvRecord) -> str | None:
        """Return how the convolution of a path differs from the module's, or None."""
        node = self.nodes.get(path)
        if node is None:
            return "it has no node with int8 weights"
        if record.on_grid is not record.x and (problem := self._input_problem(node, record)) is not None:
            return problem
        weight = self.constant(node.input[1])
        if weight is None or weight.shape != tuple(record.conv.weight.shape):
            return "its weight has another shape"
        value, reach = self._product(node, path, weight, record)
        if value.shape != record.y.shape:
            return f"its result is {tuple(value.shape)}, that of the module {tuple(record.y.shape)}"
        change = (value - record.y.double()).abs()
        if not bool((change <= reach).all()):
            return f"weight, bias or attributes differ (outputs by up to {float(change.max()):.3g})"
        return None

    def constant(self, name: str) -> NDArray[np.float64] | None:
        """Return what initializers give through casts, products and restored integers; None of anything else."""
        if name in self._index.tensors:
            return numpy_helper.to_array(self._index.tensors[name]).astype(np.float64)
        node = self._index.producers.get(name)
        if node is None or node.op_type not in ("Cast", "Mul", "DequantizeLinear"):
            return None
        parts = [self.constant(part) for part in node.input]
        if any(part is None for part in parts):
            return None
        first: NDArray[np.float64] = parts[0]  # type: ignore[assignment]
        if node.op_type == "Cast":
            return first
        scale: NDArray[np.float64] = parts[1]  # type: ignore[assignment]
        if node.op_type == "DequantizeLinear" and scale.ndim == 1:
            axis = int(attributes(node).get("axis", 1))
            shape = [-1 if at == axis else 1 for at in range(first.ndim)]
            zero = parts[2].reshape(shape) if len(parts) > 2 and parts[2] is not None else 0.0
            return np.asarray((first - zero) * scale.reshape(shape))
        return np.asarray(first * scale)

    def _path_of(self, node: onnx.NodeProto) -> str | None:
        if node.op_type != "Conv":
            return None
        names = [node.input[1]]
        while names:
            name = names.pop()
            if (path := weight_path(name, (INT8_WEIGHT,))) is not None:
                return path
            source = self._index.producers.get(name)
            names += [] if source is None else source.input
        return None

    def _input_problem(self, node: onnx.NodeProto, record: ConvRecord) -> str | None:
        grid: list[onnx.NodeProto] = []
        source = self._index.producers.get(node.input[0])
        while source is not None and source.op_type in GRID:
            grid.insert(0, source)
            source = self._index.producers.get(source.input[0])
        found = self._through(grid, record.x.numpy())
        steps = np.abs(found - record.on_grid.numpy()) / float(record.conv.input.scale)
        off = float((steps > 1e-3).mean())
        if steps.max(initial=0.0) <= 1.5 and off <= EXPLAINED_SHARE:
            return None
        return (
            f"its input is on another grid ({100 * off:.3g} % of the values, up to "
            f"{number_of(f'{steps.max():.3g}', 'step')})"
        )

    def _through(self, grid: list[onnx.NodeProto], x: NDArray[np.float32]) -> NDArray[np.float32]:
        for node in grid:
            if node.op_type == "Cast":
                continue
            low, high = (np.float32(numpy_helper.to_array(self._index.tensors[name])) for name in node.input[1:3])
            if node.op_type == "Clip":
                x = np.clip(x, low, high)
            elif node.op_type == "QuantizeLinear":
                x = quantize_linear(x, low, high).astype(np.float32)
            else:
                x = (x - high) * low
        return x

    def _product(
        self, node: onnx.NodeProto, path: str, weight: NDArray[np.float64], record: ConvRecord
    ) -> tuple[Tensor, Tensor]:
        """Return the result in float64 and how far roundings reach: of float32 sums in any order, of stored numbers."""
        kernel, x = torch.from_numpy(weight), record.on_grid.double()
        value = convolve(node, x, kernel)
        magnitude = convolve(node, x.abs(), kernel.abs())
        reach = weight[0].size * rounding_of(np.float32) * magnitude
        stored = self._stored_scale(node)
        if stored is not None and not np.array_equal(stored, record.conv.weight_scale.detach().numpy()):
            # A scale below the normal numbers of FP16 is lifted, and rounded where it is stored.
            reach = reach + 1.01 * rounding_of(np.float16) * magnitude
        if len(node.input) > 2:
            bias = self.constant(node.input[2])
            assert bias is not None  # of an exported convolution it is an initializer
            column = torch.from_numpy(bias).reshape(-1, 1, 1)
            value = value + column
            reach = reach + torch.clamp(2 * rounding_of(np.float16) * column.abs(), min=2.0**-24)
        for reader in self._index.readers.get(node.output[0], []):
            lower = [name for name in reader.input if name.startswith(f"{path}.weight_lift")]
            if reader.op_type == "Mul" and lower and (factor := self.constant(lower[0])) is not None:
                value, reach = value * torch.from_numpy(factor), reach * torch.from_numpy(factor)
        return value, reach + 4 * rounding_of(np.float32) * value.abs()

    def _stored_scale(self, node: onnx.NodeProto) -> NDArray[np.float64] | None:
        restore = self._index.producers.get(node.input[1])
        while restore is not None and restore.op_type == "Cast":
            restore = self._index.producers.get(restore.input[0])
        return None if restore is None else self.constant(restore.input[1])


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def convolve(node: onnx.NodeProto, x: Tensor, weight: Tensor) -> Tensor:
    """Return what a Conv without its bias gives, by the attributes that the node has."""
    given = attributes(node)
    top, left, bottom, right = given.get("pads", (0, 0, 0, 0))
    return F.conv2d(
        F.pad(x, (left, right, top, bottom)),
        weight,
        stride=tuple(given.get("strides", (1, 1))),
        dilation=tuple(given.get("dilations", (1, 1))),
        groups=int(given.get("group", 1)),
    )
