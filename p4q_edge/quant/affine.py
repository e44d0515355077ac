"""Symmetric affine quantization: the only place that defines scale, range and rounding.

`q = clamp(round_half_even(x / scale), quant_min, quant_max)` and `x' = q * scale`, zero point 0, as the ONNX
operators QuantizeLinear and DequantizeLinear compute it. TensorRT multiplies by the reciprocal of the scale, so
single integers may differ there by one step. In FP8 `q = e4m3(clamp(x / scale, -448, 448))`: a number has 3 bits of
mantissa whatever its size, down to 2**-6, and equal steps of 2**-9 below that.

Source: ONNX operator specification, QuantizeLinear-19; range convention of P4Q Edge: weights [-127, 127],
activations [-128, 127] at 8 bits. E4M3: Micikevicius et al., arXiv:2209.05433, table 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from p4q_edge.quant.scheme import check_bits

SMALLEST_NORMAL_FP16 = 2.0**-14
"""Scales below it are FP16 subnormals and lose precision in a TensorRT graph with FP16 scales."""

LARGEST_FP16 = 65504.0
SMALLEST_BLOCK = 16
"""Fewest weights that share a scale: ONNX Runtime has no product for smaller blocks."""
BLOCK_SPAN = 2.0**7
"""Factor between the largest and the smallest scale of one row: a power of two then brings all of them into the normal
numbers of FP16, and a block whose weights are smaller still is nothing beside the others."""
SIGNIFICANT_BITS_FP16 = 11

SMALLEST_SCALE = 2.0**-24
"""A channel that is always zero still needs a positive scale."""

LARGEST_E4M3 = 448
"""There is no infinity. It is 28,672 times the smallest normal one: nothing has to be cut off for others to be fine."""
_ROUNDED_TO_LARGEST_E4M3 = 464
"""Halfway to what the next number would be: up to here rounding gives the largest one."""


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor: shape `()`."""


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index of `axis`: shape `(x.shape[axis],)`."""

    axis: int


Granularity = PerTensor | PerAxis


def activation_range(bits: int) -> tuple[int, int]:
    """Return the integer range of a `bits`-bit activation: the whole two's complement range.

    >>> activation_range(8), activation_range(4)
    ((-128, 127), (-8, 7))
    """
    check_bits(bits)
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def weight_range(bits: int) -> tuple[int, int]:
    """Return the integer range of a `bits`-bit weight: symmetric.

    >>> weight_range(8), weight_range(4)
    ((-127, 127), (-7, 7))
    """
    check_bits(bits)
    return -(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1


def representable_scale(scale: Tensor) -> Tensor:
    """Return the nearest scale with the precision of FP16.

    >>> representable_scale(torch.tensor([0.1, 2.0**-20])).tolist()
    [0.0999755859375, 9.5367431640625e-07]

    Args:
        scale: float32, any shape, non-negative.

    Returns:
        float32 of the same shape, positive, of 11 significant bits, so that the FP16 graph, the FP32 graph and the
        fake-quantized module share one grid. FP16 holds those of at least 2**-14 as they are and smaller ones times a
        power of two, as the exporter stores them for weights; for inputs it stores these in float32. Above FP16's
        largest number scales stay as they are.
    """
    scale = scale.float().clamp(min=SMALLEST_SCALE)
    mantissa, exponent = torch.frexp(scale)
    rounded = torch.ldexp(torch.round(mantissa * 2.0**SIGNIFICANT_BITS_FP16), exponent - SIGNIFICANT_BITS_FP16)
    return torch.where(rounded <= LARGEST_FP16, rounded, scale)


def scale_for(amax: Tensor, quant_max: int) -> Tensor:
    """Return the scale whose integer range just covers [-amax, amax]; same shape as `amax`, float32, positive.

    >>> scale_for(torch.tensor([127.0, 0.0]), 127).tolist()
    [1.0, 5.960464477539063e-08]
    """
    return representable_scale(amax / quant_max)


def shift_for(low: Tensor, scale: Tensor, quant_min: int) -> Tensor:
    """Return what moves `low` to the lower end of the grid, as FP16 holds it: whole steps, so that 0 stays on it.

    >>> shift_for(torch.tensor(-0.5), torch.tensor(0.25), -128).item()
    -31.5

    Args:
        low: shape `()`, at most 0.
        scale: shape `()`, positive.
    """
    return ((quant_min - torch.round(low / scale)) * scale).half().float()


def block_for(inputs: int, wanted: int) -> int | None:
    """Return how many neighbouring inputs share a scale: at most `wanted`, in whole blocks, and at least two of them.

    A block that is not whole is read by TensorRT as one of another size, and of a single one it restores the whole
    weight before each product.

    >>> block_for(768, 128), block_for(128, 128), block_for(4304, 128), block_for(100, 128)
    (128, 64, 16, None)

    Args:
        inputs: of the linear.
        wanted: a power of two.

    Returns:
        `wanted` or half of it, and so on; None where no block of at least `SMALLEST_BLOCK` divides the inputs.
    """
    size = wanted
    while size >= SMALLEST_BLOCK:
        if inputs % size == 0 and inputs > size:
            return size
        size //= 2
    return None


def in_blocks(weight: Tensor, block: int) -> Tensor:
    """View a weight `(out, in)` as `(out, in / block, block)`.

    >>> in_blocks(torch.arange(8.0).view(1, 8), 4).tolist()
    [[[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]]
    """
    return weight.view(*weight.shape[:-1], -1, block)


def column_scale(scale: Tensor, inputs: int) -> Tensor:
    """Return scales of a weight so that they broadcast to `(out, in)`.

    >>> column_scale(torch.tensor([[1.0, 2.0]]), 4).tolist(), column_scale(torch.tensor([3.0]), 4).tolist()
    ([[1.0, 1.0, 2.0, 2.0]], [[3.0]])

    Args:
        scale: `(out,)`, or `(out, blocks)` of blocks along the inputs.
        inputs: columns of the weight.
    """
    return scale[:, None] if scale.ndim == 1 else scale.repeat_interleave(inputs // scale.shape[1], dim=1)


def within_span(scale: Tensor) -> Tensor:
    """Raise the small scales of blocks `(out, blocks)` until a row's differ by `BLOCK_SPAN` at most.

    >>> within_span(torch.tensor([[1.0, 0.5, 0.0001]])).tolist()
    [[1.0, 0.5, 0.0078125]]
    """
    return torch.maximum(scale, scale.amax(1, keepdim=True) / BLOCK_SPAN)


def quantize(x: Tensor, scale: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Return integers (kept in x's float dtype) nearest to `x / scale`, ties to even, clamped to the range.

    Args:
        x: float, any shape.
        scale: positive, broadcastable to `x` (see `broadcast_scale`).

    >>> quantize(torch.tensor([0.5, 1.5, -2.5, 300.0]), torch.tensor(1.0), -128, 127).tolist()
    [0.0, 2.0, -2.0, 127.0]
    """
    return torch.clamp(torch.round(x / scale), quant_min, quant_max)


def quantize_with_error(x: Tensor, scale: Tensor, quant_min: int, quant_max: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the integers of `quantize`, what they differ by from `x / scale`, and where the range cut.

    Args:
        x: float, any shape.
        scale: positive, broadcastable to `x`.

    Returns:
        Integers and differences in steps, both float, and bool; all of the shape of `x`.

    >>> [part.tolist() for part in quantize_with_error(torch.tensor([0.75, 7.5, 9.0]), torch.tensor(1.0), -8, 7)]
    [[1.0, 7.0, 7.0], [0.25, -0.5, -2.0], [False, True, True]]
    """
    position = x / scale
    rounded = torch.round(position)
    cut = (rounded < quant_min) | (rounded > quant_max)
    q = rounded.clamp_(quant_min, quant_max)
    return q, q - position, cut


def e4m3_scale(amax: Tensor) -> Tensor:
    """Return the scale whose E4M3 numbers just cover [-amax, amax]; same shape as `amax`, float32, positive.

    >>> e4m3_scale(torch.tensor([448.0, 56.0])).tolist()
    [1.0, 0.125]
    """
    return scale_for(amax, LARGEST_E4M3)


def to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """Return the E4M3 numbers (kept in x's float dtype) nearest to `x / scale`, ties to even, saturating.

    Args:
        x: float, any shape.
        scale: positive, broadcastable to `x`.

    >>> to_e4m3(torch.tensor([0.3, 17.0, -19.0, 1000.0]), torch.tensor(1.0)).tolist()
    [0.3125, 16.0, -20.0, 448.0]
    """
    return torch.clamp(x / scale, -LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn).to(x.dtype)


def cut_by_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """Return where `x / scale` lies beyond what is rounded to an E4M3 number, bool of the shape of `x`.

    A scale of 11 digits may put the largest value a little above the largest number, which cuts nothing off.

    >>> cut_by_e4m3(torch.tensor([449.0, -465.0]), torch.tensor(1.0)).tolist()
    [False, True]
    """
    return (x / scale).abs() > _ROUNDED_TO_LARGEST_E4M3


def floor_and_rest(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the integer at or below `x / scale`, not clamped, and what is left, in [0, 1).

    >>> [part.item() for part in floor_and_rest(torch.tensor(-1.25), torch.tensor(0.5))]
    [-3.0, 0.5]
    """
    position = x / scale
    low = torch.floor(position)
    return low, position - low


def dequantize(q: Tensor, scale: Tensor) -> Tensor:
    """Return the real values `q * scale`.

    >>> dequantize(torch.tensor([-3.0, 2.0]), torch.tensor(0.5)).tolist()
    [-1.5, 1.0]
    """
    return q * scale


def broadcast_scale(scale: Tensor, rank: int, granularity: Granularity) -> Tensor:
    """View a scale of shape `()` or `(channels,)` so that it broadcasts to a tensor of `rank` dimensions.

    >>> tuple(broadcast_scale(torch.ones(3), 4, PerAxis(1)).shape)
    (1, 3, 1, 1)
    """
    if isinstance(granularity, PerTensor):
        return scale
    shape = [1] * rank
    shape[granularity.axis] = -1
    return scale.view(shape)


def amax_of(x: Tensor, granularity: Granularity) -> Tensor:
    """Return the largest absolute value of `x`, shape `()` or `(channels,)`.

    >>> amax_of(torch.tensor([[1.0, -4.0], [2.0, 3.0]]), PerAxis(0)).tolist()
    [4.0, 3.0]
    """
    if isinstance(granularity, PerTensor):
        return x.abs().amax()
    others = [d for d in range(x.ndim) if d != granularity.axis % x.ndim]
    return x.abs().amax(dim=others)
