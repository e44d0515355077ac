"""Which convolutions are quantized, and which tensors between them get a grid that all their readers share.

TensorRT runs an INT8 convolution, its addition and its activation as one kernel from INT8 to INT8 where the tensor
behind the activation is quantized once for all its readers, and where the residual addition reads its other input from
INT8 too.

Source: NVIDIA TensorRT, Working with Quantized Types, Q/DQ placement recommendations.
"""

from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from p4q_edge.quant.conv import Via
from p4q_edge.quant.dataflow import Flow, is_pointwise, kind_of, module_of, producer_module, readers, shape_of, source
from p4q_edge.quant.scheme import QuantScheme

_PADS = frozenset({"aten.constant_pad_nd.default", "aten.pad.default"})

LEAST_CHANNELS = 16
"""Convolutions that read fewer channels have no good INT8 kernel."""


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """A tensor that gets one grid for all its readers.

    Attributes:
        producer: path of the module that returns it.
        conv: path of a quantized convolution by which it is found.
        via: it is that convolution's input or output, or what the pool before the convolution reads.
        sharing: convolutions that read it or its largest values, which take its scale.
    """

    producer: str
    conv: str
    via: Via
    sharing: tuple[str, ...] = ()


def may_be_quantized(module: nn.Module) -> bool:
    """Return whether a module could be one of those, by itself: patch embeddings, which read the image, are not."""
    return isinstance(module, nn.Conv2d) and module.in_channels >= LEAST_CHANNELS


def choose_convolutions(model: nn.Module, flow: Flow, scheme: QuantScheme) -> list[str]:
    """Return the paths of the convolutions that the scheme quantizes, in the order in which they run.

    These are convolutions of one group, at least 16 input channels and more than one pixel of output, which leaves out
    squeeze-and-excite. `scheme.stem` adds the one that reads the image, `scheme.depthwise` those of one channel a group
    that have a quantized neighbour.
    """
    if scheme.convolutions == "off":
        return []
    nodes = {module_of(node): node for node in flow.of_kind("conv") if _is_usable(model, flow, node, scheme)}
    chosen = {path for path, node in nodes.items() if _is_plain(model, node, stem=scheme.stem)}
    if scheme.depthwise:
        chosen |= {path for path, node in nodes.items() if _is_depthwise(model, path) and _neighbours(node) & chosen}
    return [path for path in nodes if path in chosen]


def _is_usable(model: nn.Module, flow: Flow, node: Node, scheme: QuantScheme) -> bool:
    path = module_of(node)
    conv = model.get_submodule(path)
    if type(conv) is not nn.Conv2d or flow.calls[path] > 1 or scheme.keeps_float(path):
        return False
    _, _, height, width = shape_of(node)
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and height * width > 1


def _is_plain(model: nn.Module, node: Node, *, stem: bool) -> bool:
    conv = model.get_submodule(module_of(node))
    assert isinstance(conv, nn.Conv2d)
    if conv.groups != 1:
        return False
    before = source(node)
    while before is not None and str(before.target) in _PADS:
        before = source(before)
    reads_image = before is not None and before.op == "placeholder"
    return stem if reads_image else conv.in_channels >= LEAST_CHANNELS


def _is_depthwise(model: nn.Module, path: str) -> bool:
    conv = model.get_submodule(path)
    return isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels >= LEAST_CHANNELS


def _neighbours(node: Node) -> set[str]:
    """Return the paths of the convolutions before and behind one, with nothing but activations between."""
    before = source(node)
    while before is not None and _between(before):
        before = source(before)
    found = {module_of(before)} if before is not None and kind_of(before) == "conv" else set()
    pending = readers(node)
    while pending:
        reader = pending.pop()
        if kind_of(reader) == "conv":
            found.add(module_of(reader))
        elif _between(reader):
            pending += readers(reader)
    return found


def _between(node: Node) -> bool:
    return is_pointwise(node) or str(node.target) in _PADS


def choose_grids(flow: Flow, chosen: list[str]) -> list[GridPoint]:
    """Return the tensors that get a grid of their own, given the paths of the quantized convolutions.

    A convolution alone quantizes what it reads; graphs share the pair of two that read one tensor. A tensor needs a
    grid of its own where a residual addition or a pool reads it as well, or where both sides of an addition come from
    convolutions. It gets none where anything else reads it, or where no module returns it.
    """
    points = []
    for node in flow.nodes:
        point = _point(node, flow, frozenset(chosen))
        if point is not None:
            points.append(point)
    return points


def _point(node: Node, flow: Flow, chosen: frozenset[str]) -> GridPoint | None:
    reading = readers(node)
    convs = [reader for reader in reading if _is_chosen(reader, chosen)]
    pools = [reader for reader in reading if _pooled_by(reader, chosen)]
    sums = [reader for reader in reading if _is_residual(reader, node, chosen)]
    if not reading or len(convs) + len(pools) + len(sums) < len(reading) or not (pools or sums):
        return None
    sharing = [module_of(conv) for conv in convs]
    sharing += [conv for pool in pools if kind_of(pool) == "max_pool" for conv in _pooled_by(pool, chosen)]
    producer = producer_module(node, flow)
    if producer is None:
        return None
    if convs:
        return GridPoint(producer=producer, conv=module_of(convs[0]), via="input", sharing=tuple(sharing))
    if pools:
        return GridPoint(producer=producer, conv=_pooled_by(pools[0], chosen)[0], via="pooled", sharing=tuple(sharing))
    if _is_chosen(node, chosen):
        return GridPoint(producer=producer, conv=module_of(node), via="output")
    return None


def _is_chosen(node: Node, chosen: frozenset[str]) -> bool:
    return kind_of(node) == "conv" and module_of(node) in chosen


def _pooled_by(node: Node, chosen: frozenset[str]) -> list[str]:
    """Return the quantized convolutions that read a pool, none if anything else reads it."""
    if kind_of(node) not in {"avg_pool", "max_pool"}:
        return []
    found = [module_of(reader) for reader in readers(node) if _is_chosen(reader, chosen)]
    return found if len(found) == len(readers(node)) else []


def _is_residual(reader: Node, node: Node, chosen: frozenset[str]) -> bool:
    """Return whether `reader` adds `node` to the result of a quantized convolution that nothing else reads.

    Where both sides are such results, the second is the residual.
    """
    if kind_of(reader) != "add":
        return False
    sides = [source(reader, 0), source(reader, 1)]
    direct = [side is not None and _is_chosen(side, chosen) and len(readers(side)) == 1 for side in sides]
    if all(direct):
        return sides[1] is node
    return any(direct) and sides[direct.index(False)] is node
