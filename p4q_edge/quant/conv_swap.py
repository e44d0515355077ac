"""Swapping convolutions for their quantizable form, with the grids between them, and their scales and biases."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.quant.conv import QuantConv2d, TensorGrid, quant_convs, tensor_grids
from p4q_edge.quant.least_squares import Moments, fitted_target
from p4q_edge.quant.linear import Phase, running_in
from p4q_edge.quant.placement import GridPoint
from p4q_edge.quant.rounding import choose_rounding
from p4q_edge.quant.scheme import QuantScheme, RoundingName
from p4q_edge.quant.swap import replace_module

ROWS = 8192
"""Positions of outputs, evenly drawn over all images, that roundings are fitted to."""

GRIDS = "tensor_grids"
"""Name of the child that holds the grids of a model, by their producers' paths."""


class _ThroughGrid:
    """A forward hook that passes a module's result through a grid; a class, so that it is copied with its model."""

    def __init__(self, grid: TensorGrid) -> None:
        self.grid = grid

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        result: Tensor = self.grid(output)
        return result


def swap_convolutions(model: nn.Module, paths: Iterable[str], points: Iterable[GridPoint], scheme: QuantScheme) -> None:
    """Swap the convolutions at `paths` and put grids at `points`, in place."""
    for path in paths:
        conv = model.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        replace_module(model, path, QuantConv2d(conv, scheme))
    convs, grids = quant_convs(model), nn.ModuleDict()
    for point in points:
        layers = tuple(convs[path] for path in dict.fromkeys((point.conv, *point.sharing)))
        grid = TensorGrid(scheme, conv=point.conv, via=point.via, layers=layers)
        model.get_submodule(point.producer).register_forward_hook(_ThroughGrid(grid))
        grids[point.producer.replace(".", "/")] = grid
    if grids:
        model.add_module(GRIDS, grids)


def fix_conv_scales(model: nn.Module, points: Iterable[GridPoint]) -> list[str]:
    """Fix weight and input scales of all convolutions that observed something, and the grids between them.

    Returns:
        Paths of convolutions that the forward pass never reached; they cannot be quantized.
    """
    convs, grids = quant_convs(model), tensor_grids(model)
    unreached = [path for path, conv in convs.items() if not conv.input.fix_scale()]
    for path, conv in convs.items():
        if path not in unreached:
            conv.scale_weight()
    for grid in grids.values():
        grid.fix_scale()
    for point in points:
        scale = grids[f"{GRIDS}.{point.producer.replace('.', '/')}"].scale
        for path in point.sharing:
            convs[path].input.scale = scale.clone()
    return unreached


@torch.no_grad()
def fit_convolutions(model: nn.Module, images: Tensor, rounding: RoundingName = "nearest") -> None:
    """Round the weights of convolutions, and give each the bias with which the means of its outputs are the float ones.

    The batch holds each image twice, in float and quantized. A convolution is fitted when the pass reaches it, so
    that all behind it see what was changed.

    Args:
        images: `(N, 3, H, W)` float32; activations of 2 N images are held at once.
        rounding: of the weights of convolutions of one group; others, which have few inputs a channel, are rounded to
            the nearest.

    Source: Nagel et al., Data-Free Quantization, arXiv:1906.04721, section 4.2 (empirical form), layer by layer.
    """

    def correct(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(conv, QuantConv2d)
        exact, actual = (half.mean((0, 2, 3), dtype=torch.float64) for half in output.chunk(2))
        error = (exact - actual).float()
        conv.correct_bias(conv.bias.detach() + error)
        output[len(output) // 2 :] += error[:, None, None]  # in place: these tensors are the largest of a calibration
        return output

    def choose(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(conv, QuantConv2d)
        choose_rounding(conv, _moments(conv, *inputs[0].chunk(2)), rounding)

    fitted = [conv for conv in quant_convs(model).values() if conv.calibrated]
    handles = [conv.register_forward_hook(correct) for conv in fitted]
    if rounding != "nearest":
        handles += [conv.register_forward_pre_hook(choose) for conv in fitted if conv.groups == 1]
    try:
        with running_in(model, Phase.PAIRED):
            model(torch.cat([images, images]))
    finally:
        for handle in handles:
            handle.remove()


def _moments(conv: QuantConv2d, exact: Tensor, actual: Tensor) -> Moments:
    """Return what the squared error of a convolution of one group depends on, given its float and its actual input."""
    seen = _patches(conv, conv.input.on_grid(actual))
    own, target = _drawn(conv.exact(actual)), _drawn(conv.exact(exact))
    return Moments.of(seen, fitted_target(own, target, rows=len(seen), inputs=seen.shape[1]))


def _patches(conv: QuantConv2d, x: Tensor) -> Tensor:
    """Return what each drawn position of the output reads, `(rows, in * kH * kW)`, of `(N, in, H, W)`."""
    size, options = conv.weight.shape[2:], {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
    each = max(1, ROWS // len(x))
    rows = []
    for image in torch.split(x, 1):  # all patches of all images would be many times as large as what is drawn of them
        found = F.unfold(image, size, **options)[0].T
        rows.append(found[_places(len(found), each, x.device)])
    return torch.cat(rows)


def _drawn(y: Tensor) -> Tensor:
    """Return the drawn positions of an output `(N, out, H', W')`, `(rows, out)`."""
    rows = y.flatten(2).transpose(1, 2)
    return rows[:, _places(rows.shape[1], max(1, ROWS // len(y)), y.device)].flatten(0, 1)


def _places(count: int, most: int, device: torch.device) -> Tensor:
    return torch.linspace(0, count - 1, min(count, most), device=device).round().long()
