"""Fake quantization with straight-through gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from p4q_edge.quant import affine


class _RoundSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad: Tensor) -> Tensor:
        return grad[0]


class _FakeQuantize(torch.autograd.Function):
    """In one step, as the six of plain operators would hold six tensors of each activation for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, quant_min: int, quant_max: int) -> Tensor:
        q, error, outside = affine.quantize_with_error(x, scale, quant_min, quant_max)
        slope = torch.where(outside, q, error) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(outside, slope)
        ctx.scale_shape = scale.shape
        return affine.dequantize(q, scale)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        outside, slope = ctx.saved_tensors
        of_scale = None if slope is None else (grad[0] * slope).sum_to_size(ctx.scale_shape)
        return grad[0].masked_fill(outside, 0.0), of_scale, None, None


class _FakeE4M3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(affine.cut_by_e4m3(x, scale))
        return affine.dequantize(affine.to_e4m3(x, scale), scale)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        (cut,) = ctx.saved_tensors
        return grad[0].masked_fill(cut, 0.0), None


def round_ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes unchanged.

    Source: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, arXiv:1308.3432.
    """
    result: Tensor = _RoundSTE.apply(x)
    return result


def clamp_ste(x: Tensor, low: int, high: int) -> Tensor:
    """Clamp whose gradient is 1 on the bounds too.

    torch.clamp has gradient 0 there, which would never move the largest weight of a channel, as its scale puts it
    exactly on the bound.
    """
    inside = (x >= low) & (x <= high)
    return torch.where(inside, x, torch.clamp(x, low, high).detach())


def fake_quantize(x: Tensor, scale: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """`dequantize(quantize(x))` with gradient 1 inside the integer range, bounds included, and 0 outside.

    Forward values equal `affine.quantize` followed by `affine.dequantize` bit for bit. The gradient with respect
    to `scale` is that of LSQ when `scale` requires one: `round(x/s) - x/s` inside, the bound outside.

    Args:
        x: float, any shape.
        scale: positive, broadcastable to `x`.

    Source: LSQ, Esser et al., arXiv:1902.08153, eq. (1) to (3).
    """
    if not torch.is_grad_enabled() or not (x.requires_grad or scale.requires_grad):
        return affine.dequantize(affine.quantize(x, scale, quant_min, quant_max), scale)
    quantized: Tensor = _FakeQuantize.apply(x, scale, quant_min, quant_max)
    return quantized


def fake_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """`dequantize(to_e4m3(x))` with gradient 1 where a value is rounded, 0 where it is cut, and none for the scale.

    Args:
        x: float, any shape.
        scale: positive, broadcastable to `x`.

    Source: Bengio et al., arXiv:1308.3432 (straight-through estimator).
    """
    quantized: Tensor = _FakeE4M3.apply(x, scale)
    return quantized
