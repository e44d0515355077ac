"""The integer grids of the two products of an attention: query times key, softmax times value."""

import torch
from torch import Tensor, nn

from p4q_edge.quant import affine
from p4q_edge.quant.fake import fake_quantize
from p4q_edge.quant.observers import ChannelRange, MagnitudeHistogram, activation_scale
from p4q_edge.quant.scheme import QuantScheme

HEAD_SIZES = frozenset({16, 32, 64})
MAX_TOKENS = 512
"""TensorRT fuses INT8 attention for these head sizes, and up to this number of tokens."""


def fuses_in_int8(*, head_size: int, tokens: int) -> bool:
    """Return whether TensorRT has an INT8 kernel for attention of all tokens.

    Source: NVIDIA TensorRT, issues 2981, 4167 and 3714.
    """
    return head_size in HEAD_SIZES and tokens <= MAX_TOKENS


def softmax_scale(bits: int) -> float:
    """Return the scale of attention weights, which lie in [0, 1]: 1/127 at 8 bits."""
    return float(affine.scale_for(torch.ones(()), affine.activation_range(bits)[1]))


class Operand(nn.Module):
    """One tensor that an attention multiplies: it is observed, then it has a scale.

    Attributes:
        scale: `()` float32 buffer; 0 until calibrated.
        channel_range: of the `heads * head_size` channels.
    """

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.zeros(()))
        self.channel_range = ChannelRange()
        self.histogram: MagnitudeHistogram | None = None

    def observe_range(self, x: Tensor) -> None:
        """First pass, `(N, heads, L, head_size)`."""
        self.channel_range.observe(x.transpose(1, 2).flatten(2))

    def observe_magnitudes(self, x: Tensor) -> None:
        """Second pass, `(N, heads, L, head_size)`."""
        if self.histogram is None:
            self.histogram = MagnitudeHistogram(self.channel_range.amax)
        self.histogram.observe(x)


class AttentionProducts(nn.Module):
    """Query, key, value and softmax of one attention on symmetric per-tensor grids.

    Attributes:
        bits: of all four tensors.
        float_prefix: leading tokens whose query, key and value are neither observed nor quantized.
    """

    def __init__(self, scheme: QuantScheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.bits = scheme.for_attention().activation_bits
        self.float_prefix = 0
        self.query = Operand()
        self.key = Operand()
        self.value = Operand()

    def skip_prefix(self, tokens: int) -> None:
        """Leave this number of leading tokens in float."""
        self.float_prefix = tokens

    @property
    def operands(self) -> tuple[Operand, Operand, Operand]:
        """Query, key and value."""
        return self.query, self.key, self.value

    @property
    def calibrated(self) -> bool:
        return all(bool(operand.scale > 0) for operand in self.operands)

    def observe_ranges(self, *tensors: Tensor) -> None:
        """First pass over query, key and value, each `(N, heads, L, head_size)`."""
        for operand, x in zip(self.operands, tensors, strict=True):
            operand.observe_range(x[..., self.float_prefix :, :])

    def observe_magnitudes(self, *tensors: Tensor) -> None:
        """Second pass over query, key and value, each `(N, heads, L, head_size)`."""
        for operand, x in zip(self.operands, tensors, strict=True):
            operand.observe_magnitudes(x[..., self.float_prefix :, :])

    def on_grid(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value on their integer grids, as real values."""
        if not self.calibrated:
            raise RuntimeError("this attention has no scales yet; calibrate the model before Phase.QUANTIZED")
        return tuple(self._on_grid(x, operand.scale) for operand, x in zip(self.operands, tensors, strict=True))

    def softmax_on_grid(self, weights: Tensor) -> Tensor:
        """Attention weights `(N, heads, L, L)` on their integer grid, as real values."""
        scale = torch.tensor(softmax_scale(self.bits), device=weights.device)
        return fake_quantize(weights, scale, *affine.activation_range(self.bits))

    def fix_scales(self) -> None:
        """Choose the scales from what calibration observed; none where it never came here."""
        for operand in self.operands:
            if operand.histogram is not None:
                operand.scale = activation_scale(operand.histogram, self.scheme, bits=self.bits)

    def forget_observations(self) -> None:
        """Drop ranges and histograms, before a new calibration."""
        for operand in self.operands:
            operand.channel_range, operand.histogram = ChannelRange(), None

    def _on_grid(self, x: Tensor, scale: Tensor) -> Tensor:
        prefix, rest = x[..., : self.float_prefix, :], x[..., self.float_prefix :, :]
        grid = fake_quantize(rest, scale, *affine.activation_range(self.bits))
        return torch.cat([prefix, grid], dim=-2) if self.float_prefix else grid
