"""The quantizable convolution, and the grid of a tensor that several operators read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.quant import affine
from p4q_edge.quant.fake import fake_quantize
from p4q_edge.quant.linear import Phase, QuantLinear, quant_linears, running_in
from p4q_edge.quant.observers import ChannelRange, MagnitudeHistogram, activation_scale, weight_scale
from p4q_edge.quant.scheme import QuantScheme

Via = Literal["input", "output", "pooled"]

DEAD_CHANNEL = 2.0**-8
"""A channel whose weights are below this share of the layer's largest may have a coarser grid than its own."""


class Observed(nn.Module):
    """A tensor `(N, channels, H, W)` that is observed in two passes and then has one scale.

    Attributes:
        scale: `()` float32 buffer; 0 until calibrated.
        channel_range: of its channels.
    """

    scale: Tensor

    def __init__(self, scheme: QuantScheme, *, device: torch.device) -> None:
        super().__init__()
        self.scheme = scheme
        self.register_buffer("scale", torch.zeros((), device=device))
        self.forget()

    def forget(self) -> None:
        """Drop ranges and histogram, before a new calibration."""
        self.channel_range = ChannelRange()
        self.histogram: MagnitudeHistogram | None = None

    def observe_range(self, x: Tensor) -> None:
        """First pass."""
        x = x.detach()
        self.channel_range.observe(torch.stack([x.amin((0, 2, 3)), x.amax((0, 2, 3))]))

    def observe_magnitudes(self, x: Tensor) -> None:
        """Second pass."""
        if self.histogram is None:
            self.histogram = MagnitudeHistogram(self.channel_range.amax)
        self.histogram.observe(x)

    def fix_scale(self) -> bool:
        """Choose the scale; False where nothing was observed."""
        if self.histogram is None:
            return False
        self.scale = activation_scale(self.histogram, self.scheme, bits=self.scheme.activation_bits)
        return True

    def on_grid(self, x: Tensor) -> Tensor:
        """Return the tensor on its integer grid, as real values.

        Raises:
            RuntimeError: it has no scale yet.
        """
        if not bool(self.scale > 0):
            raise RuntimeError("this tensor has no scale yet; calibrate the model before Phase.QUANTIZED")
        return fake_quantize(x, self.scale, *affine.activation_range(self.scheme.activation_bits))


class QuantConv2d(nn.Module):
    """A convolution that runs in float, observes its input, or runs fake-quantized.

    Weights have a scale for each output channel (axis 0), the input has one; the bias is float.

    Attributes:
        weight: `(out, in / groups, kH, kW)` float32.
        bias: `(out,)`.
        float_bias: where `bias` was corrected for quantization, what it was before.
        weight_scale: `(out,)` float32 buffer.
        integers: int8 of the weight's shape where the rounding was chosen; None rounds to the nearest.
        in_float: the layer stays in high precision in the quantized phases and in the exported graph. Grids of tensors
            that it shares with others stay.
        input: the grid of the input.
    """

    weight_scale: Tensor
    integers: Tensor | None
    float_bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, scheme: QuantScheme) -> None:
        super().__init__()
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"expected a convolution with a padding of zeros in numbers, got {conv}")
        out, device = conv.out_channels, conv.weight.device
        self.weight = nn.Parameter(conv.weight.detach().clone().float(), requires_grad=False)
        bias = torch.zeros(out, device=device) if conv.bias is None else conv.bias.detach().clone().float()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.scheme = scheme
        self.phase = Phase.FLOAT
        self.in_float = False
        self.input = Observed(scheme, device=device)
        self.register_buffer("weight_scale", torch.ones(out, device=device))
        self.register_buffer("integers", None)
        self.register_buffer("float_bias", None)
        self._restored: Tensor | None = None

    @property
    def out_channels(self) -> int:
        return self.weight.shape[0]

    @property
    def calibrated(self) -> bool:
        """Whether the layer is quantized in `Phase.QUANTIZED`."""
        return bool(self.input.scale > 0) and not self.in_float

    def keep_float(self) -> None:
        """Keep the layer in high precision from now on, with the bias that it had in float."""
        self.in_float = True
        if self.float_bias is not None:
            self.bias, self.float_bias = nn.Parameter(self.float_bias, requires_grad=False), None

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in, H, W) -> (N, out, H', W')`."""
        if self.in_float and self.phase in (Phase.QUANTIZED, Phase.PAIRED, Phase.WEIGHTS):
            return self.exact(x)
        if self.phase is Phase.QUANTIZED:
            return self.quantized(x)
        if self.phase is Phase.PAIRED:
            exact, actual = x.chunk(2)
            return torch.cat([self.exact(exact), self.quantized(actual)])
        if self.phase is Phase.WEIGHTS:
            return self.convolve(x, self.quantized_weight(), self.bias)
        if self.phase is Phase.RANGING:
            self.input.observe_range(x)
        elif self.phase is Phase.CALIBRATING:
            self.input.observe_magnitudes(x)
        return self.convolve(x, self.weight, self.bias) if self.phase is Phase.TRACED else self.exact(x)

    def exact(self, x: Tensor) -> Tensor:
        """Return the result in float."""
        return self.convolve(x, self.weight, self.bias if self.float_bias is None else self.float_bias)

    def quantized(self, x: Tensor) -> Tensor:
        """Return the result of the input and the weight on their grids."""
        return self.convolve(self.input.on_grid(x), self.quantized_weight(), self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution itself with another weight and bias."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def quantized_weight(self) -> Tensor:
        """Return the weight on its integer grid, as real values."""
        if self._restored is None:
            integers = self.integer_weight().to(self.weight_scale.dtype)
            self._restored = affine.dequantize(integers, self._broadcast(self.weight_scale))
        return self._restored

    def forget_restored(self) -> None:
        """Give up the copy of the weight on its grid, which is made again when it is asked for."""
        self._restored = None

    def integer_weight(self) -> Tensor:
        """int8 of the weight's shape: what the exported graph stores."""
        if self.integers is not None:
            return self.integers.clone()
        limits = affine.weight_range(self.scheme.weight_bits)
        return affine.quantize(self.weight.detach(), self._broadcast(self.weight_scale), *limits).to(torch.int8)

    def set_integers(self, integers: Tensor | None, scale: Tensor) -> None:
        """Choose rounding, int8 of the weight's shape or None for nearest, and scale `(out,)`."""
        self.integers, self.weight_scale, self._restored = integers, scale, None

    def scale_weight(self) -> None:
        """Choose the scale of each output channel.

        A channel far below the others, as BatchNorms with a tiny factor leave them, gets a scale that FP16 holds as a
        normal number, 2**-14, unless the largest channel has a finer one.
        """
        scale = weight_scale(
            self.weight.detach().flatten(1),
            bits=self.scheme.weight_bits,
            observer=self.scheme.weight_observer,
            percentile=self.scheme.percentile,
        )
        coarse = min(affine.SMALLEST_NORMAL_FP16, float(scale.max()))
        dead = scale < scale.max() * DEAD_CHANNEL
        self.set_integers(None, affine.representable_scale(torch.where(dead, scale.clamp(min=coarse), scale)))

    def correct_bias(self, bias: Tensor) -> None:
        """Take a bias `(out,)` that absorbs errors of quantization; the float phases keep their own."""
        if self.float_bias is None:
            self.float_bias = self.bias.detach().clone()
        self.bias = nn.Parameter(bias, requires_grad=False)

    def _broadcast(self, scale: Tensor) -> Tensor:
        return affine.broadcast_scale(scale, self.weight.ndim, affine.PerAxis(0))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name in ("integers", "float_bias"):
            stored = state.get(prefix + name)
            setattr(self, name, None if stored is None else torch.empty_like(stored, device=self.weight.device))
        super()._load_from_state_dict(state, prefix, *args)
        self._restored = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantConv2d":
        self._restored = None  # it lies where the weight was
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class TensorGrid(Observed):
    """The grid of a tensor that convolutions, residual additions and pools read, applied where it is made.

    Attributes:
        conv: path of the convolution by which the graph finds the tensor, from the model that owns this grid.
        via: the tensor is that convolution's `input` or `output`, or what the pool before it reads (`pooled`).
        layers: the convolutions that it is there for; without any of them in integers the tensor stays as it is.
    """

    def __init__(self, scheme: QuantScheme, *, conv: str, via: Via, layers: tuple[QuantConv2d, ...] = ()) -> None:
        super().__init__(scheme, device=layers[0].weight.device if layers else torch.device("cpu"))
        self.conv, self.via, self.layers = conv, via, layers  # a tuple, so that they are no submodules
        self.phase = Phase.FLOAT

    @property
    def used(self) -> bool:
        """Whether a quantized convolution needs the grid."""
        return not self.layers or any(not layer.in_float for layer in self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)`, on the grid in the quantized phases."""
        if not self.used:
            return x
        if self.phase is Phase.QUANTIZED:
            return self.on_grid(x)
        if self.phase is Phase.PAIRED:
            exact, actual = x.chunk(2)
            return torch.cat([exact, self.on_grid(actual)])
        if self.phase is Phase.RANGING:
            self.observe_range(x)
        elif self.phase is Phase.CALIBRATING:
            self.observe_magnitudes(x)
        return x


def forget_restored_weights(model: nn.Module) -> None:
    """Give up the copies of all weights on their grids, as large as the weights, while a model is not run."""
    layers: tuple[QuantLinear | QuantConv2d, ...] = (*quant_linears(model).values(), *quant_convs(model).values())
    for layer in layers:
        layer.forget_restored()


def quant_convs(model: nn.Module) -> dict[str, QuantConv2d]:
    """Return all quantizable convolutions of a model by dotted path, in order of definition."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantConv2d)}


def tensor_grids(model: nn.Module) -> dict[str, TensorGrid]:
    """Return all grids of shared tensors of a model by their own dotted path."""
    return {name: m for name, m in model.named_modules() if isinstance(m, TensorGrid)}


@contextmanager
def running_as_cpu_graph(model: nn.Module) -> Iterator[None]:
    """Run the model as its graph for CPUs computes: linears quantized, convolutions with their quantized weights only.

    Each module's own phase is restored at the end of the `with` block.
    """
    with running_in(model, Phase.QUANTIZED):
        for conv in quant_convs(model).values():
            conv.phase = Phase.WEIGHTS
        for grid in tensor_grids(model).values():
            grid.phase = Phase.WEIGHTS
        yield
