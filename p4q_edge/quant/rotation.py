"""An exact change of basis that spreads outliers of a few channels over all, before ranges are measured.

The basis of a residual stream is free as long as LayerNorms see the same mean and variance: a rotation that keeps the
mean of the channels folds into the weights that write and read the stream, and adds nothing at run time.

Source: QuaRot, Ashkboos et al., arXiv:2404.00456, section 4, stage 1a, there for networks of RMSNorms. Heads' values,
whose basis is free too, stay as they are: on the demo and on photographs of 32 pixels their rotation lost as often as
it gained.
"""

import logging
import math

import torch
from torch import Tensor, nn

from p4q_edge.quant.dataflow import trace_flow
from p4q_edge.quant.residual_stream import Reading, Stream, find_streams
from p4q_edge.quant.swap import replace_module
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest relative change of the output that float32 rounding may cause."""

LEAST_FACTOR = 1e-3
"""Below this share of the largest, a LayerNorm's factor divides its offset by next to nothing."""


def hartley(size: int) -> Tensor:
    """Return the symmetric orthogonal matrix `cas(2 pi j k / n) / sqrt(n)`, `(size, size)` float64.

    Its first row is constant, and no entry is above `sqrt(2 / n)`.
    """
    index = torch.arange(size, dtype=torch.float64)
    angle = torch.outer(index, index).remainder(size) * (2 * math.pi / size)
    return (angle.cos() + angle.sin()) / math.sqrt(size)


def mean_keeping_rotation(size: int, *, seed: int) -> Tensor:
    """Return an orthogonal matrix that spreads each channel over all and leaves their mean, `(size, size)` float64.

    It is `H D H` with the Hartley matrix and random signs, of which the first is 1.
    """
    signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    signs[0] = 1.0
    basis = hartley(size)
    return basis @ (signs[:, None] * basis)


@torch.no_grad()
def rotate_streams(model: nn.Module, sample: Tensor) -> int:
    """Hold every residual stream of a float model in a rotated basis, in place; return how many there are.

    A stream whose first tensor a LayerNorm gives, as behind CLIP's `ln_pre`, stays: its rotation would fold into
    nothing. Layer scales go into the linear in front of them.

    Args:
        sample: `(N, 3, H, W)`, with which the model is traced and compared.

    Raises:
        RuntimeError: the output changed by more than float rounding.
    """
    if not any(isinstance(module, nn.LayerNorm) for module in model.modules()):
        return 0
    before = model(sample)
    streams = find_streams(trace_flow(model, sample if len(sample) > 1 else torch.cat([sample, sample])))
    turned = [stream for stream in streams if _can_turn(model, stream)]
    for seed, stream in enumerate(turned):
        _turn(model, stream, mean_keeping_rotation(stream.width, seed=seed))
    change = float((model(sample) - before).abs().max() / before.abs().max())
    if not change < TOLERANCE:
        raise RuntimeError(
            f"rotating {number_of(len(turned), 'residual stream')} changed the model's output by {change:.1e} of "
            "its maximum "
            f"(allowed {TOLERANCE:.0e}); set rotation = false in the recipe's [quantization]"
        )
    logger.info("rotated %s, output changed by %.1e", number_of(len(turned), "residual stream"), change)
    return len(turned)


def _can_turn(model: nn.Module, stream: Stream) -> bool:
    for reading in stream.readings:
        norm = model.get_submodule(reading.norm)
        if not isinstance(norm, nn.LayerNorm):
            return False
        needs_ratio = norm.bias is not None and any(linear.bias is None for linear in reading.linears)
        if needs_ratio and float(norm.weight.abs().min()) < LEAST_FACTOR * float(norm.weight.abs().max()):
            return False
    for scale in stream.scales:
        module = model.get_submodule(scale.module)
        if len([*module.parameters()]) != 1 or [*module.children()]:
            return False
    return True


def _turn(model: nn.Module, stream: Stream, rotation: Tensor) -> None:
    rotation = rotation.to(next(model.parameters()).device)
    for scale in stream.scales:
        gamma = _get(model, scale.parameter)
        weight = _get(model, scale.writer.weight)
        _put(model, scale.writer.weight, (gamma[:, None] * weight.flatten(1)).view_as(weight))
        if scale.writer.bias is not None:
            _put(model, scale.writer.bias, gamma * _get(model, scale.writer.bias))
        replace_module(model, scale.module, nn.Identity())
    for reading in stream.readings:
        _turn_reading(model, reading, rotation)
    for writer in stream.writers:
        weight = _get(model, writer.weight)
        _put(model, writer.weight, (rotation @ weight.flatten(1)).view_as(weight))
        if writer.bias is not None:
            _put(model, writer.bias, rotation @ _get(model, writer.bias))
    for path in stream.constants:
        _put(model, path, _get(model, path) @ rotation.T)


def _turn_reading(model: nn.Module, reading: Reading, rotation: Tensor) -> None:
    """Take the LayerNorm's factors into its readers, and its offsets where all of those have biases."""
    norm = model.get_submodule(reading.norm)
    assert isinstance(norm, nn.LayerNorm)
    factor = torch.ones_like(rotation[0]) if norm.weight is None else norm.weight.detach().double()
    offset = torch.zeros_like(factor) if norm.bias is None else norm.bias.detach().double()
    absorbed = all(linear.bias is not None for linear in reading.linears)
    for linear in reading.linears:
        weight = _get(model, linear.weight)
        if absorbed and linear.bias is not None:
            _put(model, linear.bias, _get(model, linear.bias) + weight @ offset)
        _put(model, linear.weight, (weight * factor) @ rotation.T)
    if norm.weight is not None:
        norm.weight.data.fill_(1.0)
    if norm.bias is not None:
        left = torch.zeros_like(offset) if absorbed else rotation @ (offset / factor)
        norm.bias.data = left.to(norm.bias.dtype)


def _get(model: nn.Module, path: str) -> Tensor:
    return model.get_parameter(path).detach().double()


def _put(model: nn.Module, path: str, values: Tensor) -> None:
    parameter = model.get_parameter(path)
    parameter.data = values.to(parameter.dtype)
