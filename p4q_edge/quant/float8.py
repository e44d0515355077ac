"""8-bit floating-point numbers E4M3: what FP8 products multiply.

`q = e4m3(clamp(x / scale, -448, 448))` and `x' = q * scale`, as the ONNX operators QuantizeLinear and DequantizeLinear
compute them with a zero point of type FLOAT8E4M3FN: nearest, ties to even, saturating. Scales are those of
`p4q_edge.quant.affine`. A number has 3 bits of mantissa whatever its size, down to 2**-6, and equal steps of 2**-9
below that: 448 is 28,672 times the smallest normal one, so that no value is cut off for the others to be fine.

Source: FP8 Formats for Deep Learning, Micikevicius et al., arXiv:2209.05433, table 1; ONNX, QuantizeLinear-19.
"""

from typing import Any

import torch
from torch import Tensor

from p4q_edge.quant import affine

LARGEST = 448
"""Largest E4M3 number; there is no infinity."""
_ROUNDED_TO_LARGEST = 464
"""Halfway to what the next number would be: up to here rounding gives the largest one, and nothing is cut off."""


def e4m3_scale(amax: Tensor) -> Tensor:
    """Return the scale whose numbers just cover [-amax, amax]; same shape as `amax`, float32, positive.

    >>> e4m3_scale(torch.tensor([448.0, 56.0])).tolist()
    [1.0, 0.125]
    """
    return affine.scale_for(amax, LARGEST)


def to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """Return the E4M3 numbers (kept in x's float dtype) nearest to `x / scale`, ties to even, saturating.

    Args:
        x: float, any shape.
        scale: positive, broadcastable to `x`.

    >>> to_e4m3(torch.tensor([0.3, 17.0, -19.0, 1000.0]), torch.tensor(1.0)).tolist()
    [0.3125, 16.0, -20.0, 448.0]
    """
    return torch.clamp(x / scale, -LARGEST, LARGEST).to(torch.float8_e4m3fn).to(x.dtype)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward((x / scale).abs() > _ROUNDED_TO_LARGEST)
        return affine.dequantize(to_e4m3(x, scale), scale)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        (outside,) = ctx.saved_tensors
        return grad[0].masked_fill(outside, 0.0), None


def fake_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """`dequantize(to_e4m3(x))` with gradient 1 where a value is rounded, 0 where it is cut, and none for the scale.

    A scale of 11 digits may put the largest value a little above the largest number, and it is to be learned too.

    Args:
        x: float, any shape.
        scale: positive, broadcastable to `x`.

    Source: Bengio et al., arXiv:1308.3432 (straight-through estimator).
    """
    quantized: Tensor = _FakeQuantize.apply(x, scale)
    return quantized
