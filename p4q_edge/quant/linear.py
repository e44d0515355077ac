"""The quantizable linear layer, and the phase that quantizable modules run in."""

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.quant import affine
from p4q_edge.quant.fake import fake_e4m3, fake_quantize
from p4q_edge.quant.observers import ChannelRange, MagnitudeHistogram, activation_scale, weight_scale
from p4q_edge.quant.scheme import QuantScheme


class Phase(enum.Enum):
    """What a quantizable module does with its input.

    TRACED is FLOAT with the biases of QUANTIZED, for the exporter. In PAIRED the products of attentions take the first
    half of a batch as in FLOAT and the second as in QUANTIZED; linears are visited by `paired_pass`. In WEIGHTS weights
    lie on their grid and inputs are as they are, as the graph for CPUs has its convolutions.
    """

    FLOAT = "float"
    RANGING = "ranging"
    CALIBRATING = "calibrating"
    QUANTIZED = "quantized"
    TRACED = "traced"
    PAIRED = "paired"
    WEIGHTS = "weights"


class QuantLinear(nn.Module):
    """A linear layer that runs in float, observes its input, or runs fake-quantized.

    Attributes:
        weight: `(out_features, in_features)` float32.
        bias: `(out_features,)` or None.
        float_bias: where `bias` was corrected for quantization, what it was before.
        weight_scale: `(out_features,)` float32 buffer; `(out_features, blocks)` where weights have blocks.
        block: number of neighbouring inputs that share a scale of the weight; None: all of a row do.
        integers: int8 `(out_features, in_features)` where the rounding was chosen; None rounds to the nearest.
        input_scale: `()` float32 buffer; 0 until calibrated, and 1 from then on where the scheme quantizes no inputs.
        input_gain: `(in_features,)` float32, multiplied onto the input before anything else, with the weight divided
            by it: evens out channels where no module before the linear can take that factor. None: no gain.
        input_shift: `(in_features,)` float32, added to the input behind the gain, with its product with the weight
            taken off the bias: an input that is never far below zero, as GELU's, then uses both halves of the signed
            grid. None: no shift.
        in_float: the layer stays in high precision in `Phase.QUANTIZED` and in the exported graph.
        dynamic: while the layer itself is learned, scales follow the weight and the batch at each step;
            `freeze` ends that.
        float_prefix: leading tokens, `x[..., :float_prefix, :]`, that are neither observed nor quantized.
    """

    weight_scale: Tensor
    integers: Tensor | None
    float_bias: Tensor | None
    input_scale: Tensor
    input_gain: Tensor | None
    input_shift: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, scheme: QuantScheme) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().float())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone().float())
        self.scheme = scheme
        self.phase = Phase.FLOAT
        self.dynamic = False
        self.float_prefix = 0
        self.block = None if scheme.weight_block is None else affine.block_for(weight.shape[1], scheme.weight_block)
        self.in_float = scheme.weight_block is not None and self.block is None
        scales = weight.shape[:1] if self.block is None else (weight.shape[0], weight.shape[1] // self.block)
        self.register_buffer("weight_scale", torch.ones(scales, device=weight.device))
        self.register_buffer("integers", None)
        self.register_buffer("float_bias", None)
        self.register_buffer("input_scale", torch.zeros((), device=weight.device))
        self.register_buffer("input_gain", None)
        self.register_buffer("input_shift", None)
        self.channel_range = ChannelRange()
        self.histogram: MagnitudeHistogram | None = None
        self._restored: Tensor | None = None

    def skip_prefix(self, tokens: int) -> None:
        """Leave this number of leading tokens in float."""
        self.float_prefix = tokens

    def follow(self, dynamic: bool) -> None:
        """Let scales follow the weight and each batch, or hold them."""
        self.dynamic = dynamic

    @classmethod
    def from_linear(cls, linear: nn.Linear, scheme: QuantScheme) -> "QuantLinear":
        """Take over weight and bias of a linear layer."""
        return cls(linear.weight, linear.bias, scheme)

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def calibrated(self) -> bool:
        """Whether the layer is quantized in `Phase.QUANTIZED`."""
        return bool(self.input_scale > 0) and not self.in_float

    @property
    def sums_integers(self) -> bool:
        """Whether its product is one of integers with integers."""
        return self.scheme.quantizes_inputs and not self.scheme.in_fp8

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in_features) -> (..., out_features)`."""
        if self.phase is Phase.QUANTIZED and not self.in_float:
            return F.linear(self.quantized_input(x), self.quantized_weight(), self.bias)
        x = self.gained(x)
        if self.phase is Phase.WEIGHTS and self.calibrated:
            return F.linear(x, self.quantized_weight(), self.bias)
        if self.phase is Phase.RANGING:
            self.channel_range.observe(x[..., self.float_prefix :, :] if self.float_prefix else x)
        elif self.phase is Phase.CALIBRATING:
            if self.histogram is None:
                self.histogram = MagnitudeHistogram(self.channel_range.amax)
            self.histogram.observe(x[..., self.float_prefix :, :] if self.float_prefix else x)
        corrected = self.phase in (Phase.TRACED, Phase.WEIGHTS) or self.float_bias is None
        return F.linear(x, self.weight, self.bias if corrected else self.float_bias)

    def correct_bias(self, bias: Tensor) -> None:
        """Take a bias `(out_features,)` that absorbs errors of quantization; the float phases keep their own."""
        if self.float_bias is None:
            self.float_bias = torch.zeros_like(bias) if self.bias is None else self.bias.detach().clone()
        self.bias = nn.Parameter(bias, requires_grad=False)

    def gained(self, x: Tensor) -> Tensor:
        """Return the input as the weight takes it: times the gain and plus the shift, where there are."""
        x = x if self.input_gain is None else x * self.input_gain
        return x if self.input_shift is None else x + self.input_shift

    def keep_float(self) -> None:
        """Keep the layer in high precision from now on, with its bias in float, without gain and shift."""
        self.in_float = True
        if self.input_shift is not None:
            self._move_bias(self.weight.detach() @ self.input_shift)
            self.input_shift = None
        if self.input_gain is not None:
            self.set_weight(self.weight.detach() * self.input_gain)
            self.input_gain = None
        if self.float_bias is not None:
            self.bias, self.float_bias = nn.Parameter(self.float_bias, requires_grad=False), None

    def quantized_input(self, x: Tensor) -> Tensor:
        """Return the input, with its gain, on its integer grid, as real values."""
        x = self.gained(x)
        if self.float_prefix:
            split = self.float_prefix
            return torch.cat([x[..., :split, :], self._on_grid(x[..., split:, :])], dim=-2)
        return self._on_grid(x)

    def _on_grid(self, x: Tensor) -> Tensor:
        if not self.scheme.quantizes_inputs:
            return x
        quant_min, quant_max = affine.activation_range(self.scheme.activation_bits)
        if self.dynamic:
            amax = affine.amax_of(x.detach(), affine.PerTensor())
            scale = affine.e4m3_scale(amax) if self.scheme.in_fp8 else affine.scale_for(amax, quant_max)
        elif self.calibrated:
            scale = self.input_scale
        else:
            raise RuntimeError("this linear has no input scale yet; calibrate the model before Phase.QUANTIZED")
        return fake_e4m3(x, scale) if self.scheme.in_fp8 else fake_quantize(x, scale, quant_min, quant_max)

    def quantized_weight(self) -> Tensor:
        """Return the weight on its integer grid, as real values, `(out_features, in_features)`."""
        if self._restored is not None and not self.dynamic:
            return self._restored
        quant_min, quant_max = affine.weight_range(self.scheme.weight_bits)
        scale = self._follow_weight() if self.dynamic else self.weight_scale
        steps = affine.column_scale(scale, self.weight.shape[1])
        if self.integers is not None and not self.dynamic:
            restored = affine.dequantize(self.integers.to(scale.dtype), steps)
        elif self.scheme.in_fp8:
            restored = fake_e4m3(self.weight, steps)
        else:
            restored = fake_quantize(self.weight, steps, quant_min, quant_max)
        if not (self.weight.requires_grad or scale.requires_grad):
            self._restored = restored
        return restored

    def forget_restored(self) -> None:
        """Give up the copy of the weight on its grid, which is made again when it is asked for."""
        self._restored = None

    def float8_weight(self) -> Tensor:
        """float8_e4m3fn `(out_features, in_features)`: what the exported graph stores where the scheme is of FP8."""
        steps = affine.column_scale(self.weight_scale, self.weight.shape[1])
        return affine.to_e4m3(self.weight.detach(), steps).to(torch.float8_e4m3fn)

    def integer_weight(self) -> Tensor:
        """int8 `(out_features, in_features)`: what the exported graph stores where the scheme is of integers."""
        if self.integers is not None:
            return self.integers.clone()
        quant_min, quant_max = affine.weight_range(self.scheme.weight_bits)
        steps = affine.column_scale(self.weight_scale, self.weight.shape[1])
        q = affine.quantize(self.weight.detach(), steps, quant_min, quant_max)
        return q.to(torch.int8)

    def set_weight(self, weight: Tensor) -> None:
        """Replace the weight; the scale is found again by the caller or by `scale_weight`."""
        self.weight.data = weight.detach().clone()
        self.integers = self._restored = None

    def set_gain(self, gain: Tensor) -> None:
        """Multiply the input by a gain `(in_features,)`, positive and finite, and divide the weight by it.

        The layer's float output stays the same. An earlier gain is multiplied by the new one.
        """
        if not bool((torch.isfinite(gain) & (gain > 0)).all()):
            raise ValueError(f"expected: gains are positive and finite; got {float(gain.min())} to {float(gain.max())}")
        self.set_weight(self.weight.detach() / gain)
        self.input_gain = gain.clone() if self.input_gain is None else self.input_gain * gain
        if self.channel_range.minimum is not None:
            low, high = self.channel_range.require()
            self.channel_range.minimum, self.channel_range.maximum = low * gain, high * gain

    def set_shift(self, shift: Tensor) -> None:
        """Add a finite shift `(in_features,)` to the input, behind the gain, and take what it gives off the bias.

        The layer's float output stays the same. An earlier shift is added to the new one.
        """
        if not bool(torch.isfinite(shift).all()):
            raise ValueError(f"expected: shifts are finite; got {float(shift.min())} to {float(shift.max())}")
        self._move_bias(-(self.weight.detach() @ shift))
        self.input_shift = shift.clone() if self.input_shift is None else self.input_shift + shift
        if self.channel_range.minimum is not None:
            low, high = self.channel_range.require()
            self.channel_range.minimum, self.channel_range.maximum = low + shift, high + shift

    def _move_bias(self, by: Tensor) -> None:
        bias = by if self.bias is None else self.bias.detach() + by
        self.bias = nn.Parameter(bias, requires_grad=False)
        if self.float_bias is not None:
            self.float_bias = self.float_bias + by

    def set_integers(self, integers: Tensor | None, scale: Tensor) -> None:
        """Choose rounding, int8 `(out_features, in_features)` or None for nearest, and scale, as `weight_scale`."""
        self.integers, self.weight_scale, self._restored = integers, scale, None

    def scale_weight(self, *, importance: Tensor | None = None) -> None:
        """Choose the scales from the present weight; see `p4q_edge.quant.observers.weight_scale`."""
        weight, block = self.weight.detach(), self.block
        self.integers = self._restored = None
        if self.scheme.in_fp8:
            self.weight_scale = affine.e4m3_scale(weight.abs().amax(-1))
            return
        scale = weight_scale(
            weight if block is None else affine.in_blocks(weight, block),
            bits=self.scheme.weight_bits,
            observer=self.scheme.weight_observer,
            percentile=self.scheme.percentile,
            importance=importance if block is None or importance is None else affine.in_blocks(importance, block),
        )
        self.weight_scale = scale if block is None else affine.within_span(scale)

    def scale_input(self) -> None:
        """Choose the input scale from the histogram that calibration filled; 1 where inputs are not quantized."""
        if self.histogram is None:
            raise RuntimeError("this linear saw no calibration batch; was it reached by the forward pass?")
        if not self.scheme.quantizes_inputs:
            self.input_scale = torch.ones_like(self.input_scale)
            return
        self.input_scale = activation_scale(self.histogram, self.scheme, bits=self.scheme.activation_bits)

    def forget_observations(self) -> None:
        """Drop ranges and histogram, before a new calibration."""
        self.channel_range = ChannelRange()
        self.histogram = None

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name in ("integers", "float_bias", "input_gain", "input_shift"):
            stored = state.get(prefix + name)
            setattr(self, name, None if stored is None else torch.empty_like(stored, device=self.weight.device))
        super()._load_from_state_dict(state, prefix, *args)
        self._restored = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantLinear":
        self._restored = None  # it lies where the weight was
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _follow_weight(self) -> Tensor:
        amax = affine.amax_of(self.weight.detach(), affine.PerAxis(0))
        if self.scheme.in_fp8:
            return affine.e4m3_scale(amax)
        return affine.scale_for(amax, affine.weight_range(self.scheme.weight_bits)[1])


def quant_linears(model: nn.Module) -> dict[str, QuantLinear]:
    """Return all quantizable linears of a model by dotted path, in order of definition."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantLinear)}


def memory_of(tensor: Tensor) -> int:
    """Return what names the memory of a tensor on any device; views share it. Once freed it is given to others."""
    return int(tensor.untyped_storage()._cdata)


def set_phase(model: nn.Module, phase: Phase) -> None:
    """Put every module of the model that has a phase into one."""
    for module in _phased(model):
        module.phase = phase


@contextmanager
def running_in(model: nn.Module, phase: Phase) -> Iterator[None]:
    """Run the model in a phase for the length of a `with` block, then restore each module's own."""
    before = [(module, module.phase) for module in _phased(model)]
    set_phase(model, phase)
    try:
        yield
    finally:
        for module, own in before:
            module.phase = own


def _phased(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(getattr(module, "phase", None), Phase)]
