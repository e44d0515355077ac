"""The choice of one linear's input gain, shift and clip range, by the error that they cause in its output.

Candidates are judged on images that their ranges were not taken from: an unseen image leaves the ranges of those that
were seen, the more so the more channels reach their bound, so that an error on the same images would choose too narrow
a range and too strong a gain. Each half of the images gives the ranges for the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from p4q_edge.quant import affine
from p4q_edge.quant.fake import fake_quantize
from p4q_edge.quant.least_squares import Seen
from p4q_edge.quant.linear import Phase, QuantLinear, memory_of, running_in
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.quant.sensitivity import OutputWeights

STRENGTHS = (0.0, 0.3, 0.4, 0.5, 0.6)
"""Exponents of the channels' ranges that a gain may take out; 0 is no gain. Stronger ones gain on images like those of
the calibration and lose on others."""

CLIPS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3)
"""Clip ranges in units of the largest absolute value; 1 is min-max."""

CLIPPED_BITS = 8
"""Below this number of bits a range may cut values off. With all of them, steps are fine enough to keep the scheme's
headroom: what is cut off from a class token costs an image far more than the mean squared error tells."""

STRESS = 1.2
"""Factor on the rows that candidates are judged on: images of another kind than those of the calibration exceed their
ranges by more than these do each other, and what is cut off from a token that counts costs more than the squared error
tells. Strong gains, which bring every channel to its bound, and ranges without headroom pay for it."""

JUDGED_ROWS = 1024
"""Rows that each candidate is judged on, drawn by their weights."""

DEAD_CHANNEL = 1e-3
"""Ranges below this share of their mean are raised to it: a dead channel must not get an endless gain."""

ROUNDING_GAIN = 0.5
"""Share of the weights' rounding error that is left once roundings are fitted; as measured on a ViT-S/14."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one linear that its model's output depends on.

    Attributes:
        actual: input in the quantized model so far, `(n, in)`.
        target: output in the float model, `(n, out)`.
        weights: of each row's squared error, `(n,)`, positive.
        second: whether the row's image is of the second half of the images, `(n,)`.
        channels: weights of the output channels, `(out,)`.
    """

    actual: Tensor
    target: Tensor
    weights: Tensor
    second: Tensor
    channels: Tensor

    @classmethod
    def of(cls, seen: Seen, weights: OutputWeights) -> "Rows":
        """Take the rows that are read from what a paired pass shows."""
        images = len(seen.actual)
        each = weights.of_rows(images)
        read = each > 0
        second = (torch.arange(len(each), device=each.device) // max(1, len(each) // images)) % 2 == 1
        return cls(
            actual=seen.actual.flatten(0, -2)[read],
            target=seen.target.flatten(0, -2)[read],
            weights=each[read],
            second=second[read],
            channels=weights.channels,
        )

    @property
    def effective(self) -> float:
        """How many rows of one weight tell as much as these: `sum(w)**2 / sum(w**2)`."""
        return float(self.weights.sum().square() / self.weights.square().sum())

    def halves(self) -> tuple[Tensor, Tensor]:
        """Return masks of the two halves of the images; both are all rows where there is only one image."""
        if not bool(self.second.any()):
            return torch.ones_like(self.second), torch.ones_like(self.second)
        return ~self.second, self.second


@dataclass(frozen=True, kw_only=True)
class ScaleChoice:
    """A candidate and its cost.

    Attributes:
        strength: exponent of the gain.
        clip: range in units of the largest absolute value.
        error: mean squared error of the output on images that the ranges were not taken from.
    """

    strength: float
    clip: float
    error: float


def gain_of(largest: Tensor, strength: float) -> Tensor:
    """Return the gain `(largest / mean) ** -strength` of each channel, `(in,)`, as FP16 holds it.

    Args:
        largest: largest absolute value of each channel, `(in,)`.
    """
    mean = largest.mean().clamp(min=torch.finfo(torch.float32).tiny)
    gain = (largest / mean).clamp(min=DEAD_CHANNEL) ** -strength
    return gain.half().float()


def clips(scheme: QuantScheme) -> tuple[float, ...]:
    """Return the clip ranges to try, in units of the largest absolute value."""
    bits = scheme.activation_bits
    return CLIPS if bits < CLIPPED_BITS else tuple(clip * scheme.headroom for clip in CLIPS if clip >= 1.0)


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Lowest and highest value of each input channel, `(in,)`."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Ranges":
        """Take those of rows `(n, in)`."""
        return cls(low=x.amin(0), high=x.amax(0))

    @property
    def largest(self) -> Tensor:
        """Largest absolute value of each channel, `(in,)`."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def joined(self, other: "Ranges") -> "Ranges":
        """Return the ranges that hold both."""
        return Ranges(low=torch.minimum(self.low, other.low), high=torch.maximum(self.high, other.high))

    def grid(self, gain: Tensor, clip: float, bits: int, *, shifted: bool) -> tuple[Tensor, Tensor]:
        """Return scale and shift, both `()`, of the grid for the input times the gain.

        Args:
            clip: largest absolute value that the grid reaches, in units of that of the range; a shifted grid ends
                before that on the side where the range does, with the same headroom.
            shifted: move the range to both halves of the grid; without, the shift is 0.
        """
        quant_min, quant_max = affine.activation_range(bits)
        low, high = (self.low * gain).amin().clamp(max=0.0), (self.high * gain).amax().clamp(min=0.0)
        reach = torch.maximum(-low, high) * clip
        if not shifted:
            return affine.scale_for(reach, quant_max), torch.zeros_like(reach)
        low, high = torch.maximum(low * max(clip, 1.0), -reach), torch.minimum(high * max(clip, 1.0), reach)
        scale = affine.scale_for(high - low, quant_max - quant_min)
        return scale, affine.shift_for(low, scale, quant_min)


@torch.no_grad()
def choose_input(
    linear: QuantLinear,
    rows: Rows,
    *,
    strengths: Sequence[float] = (0.0,),
    shifted: bool = False,
    bounds: Ranges | None = None,
) -> ScaleChoice:
    """Give a linear the gain, shift and input scale with the least error of its output.

    Args:
        strengths: of the gains to try; more than 0 only where nothing before the linear can take the factor.
        shifted: let the range use both halves of the grid; likewise.
        bounds: of the input on more images than the rows are of.
    """
    chosen = min(candidates(linear, rows, strengths, shifted=shifted), key=lambda choice: choice.error)
    ranges = Ranges.of(rows.actual)
    ranges = ranges if bounds is None else ranges.joined(bounds)
    gain = gain_of(ranges.largest, chosen.strength)
    if chosen.strength > 0:
        linear.set_gain(gain)
    linear.input_scale, shift = ranges.grid(gain, chosen.clip, linear.scheme.activation_bits, shifted=shifted)
    if shift != 0:
        linear.set_shift(shift.expand(len(gain)))
    return chosen


@torch.no_grad()
def candidates(
    linear: QuantLinear, rows: Rows, strengths: Sequence[float], *, shifted: bool = False
) -> list[ScaleChoice]:
    """Return all choices with their errors, each half of the images judged under the ranges of the other."""
    generator = torch.Generator().manual_seed(0)
    # On the CPU, so that every device judges the same rows.
    drawn = torch.multinomial(rows.weights.double().cpu(), JUDGED_ROWS, replacement=True, generator=generator)
    drawn = drawn.to(rows.weights.device)
    bits, tried = linear.scheme.activation_bits, clips(linear.scheme)
    spread = rows.weights.double() @ rows.actual.double().square() / rows.weights.double().sum()
    found = []
    for strength in strengths:
        errors = torch.zeros(len(tried), dtype=torch.float64)
        for ranged, judged in zip(rows.halves(), reversed(rows.halves()), strict=True):
            ranges = Ranges.of(rows.actual[ranged])
            gain = gain_of(ranges.largest, strength)
            of_half = drawn[judged[drawn]]
            x, weight = rows.actual[of_half] * (STRESS * gain), linear.weight.detach() / gain
            for index, clip in enumerate(tried):
                scale, shift = ranges.grid(gain, clip, bits, shifted=shifted)
                error = fake_quantize(x + shift, scale, *affine.activation_range(bits)) - (x + shift)
                errors[index] += float(((error @ weight.T).square() @ rows.channels).sum())
        errors /= len(drawn) * len(rows.channels)
        added = _rounding_error(linear, rows, gain_of(rows.actual.abs().amax(0), strength), spread)
        found += [
            ScaleChoice(strength=strength, clip=clip, error=float(error) + added)
            for clip, error in zip(tried, errors, strict=True)
        ]
    return found


def _rounding_error(linear: QuantLinear, rows: Rows, gain: Tensor, spread: Tensor) -> float:
    """Expected squared error of the output by rounded weights: a gain that helps the input may widen a row's steps."""
    _, quant_max = affine.weight_range(linear.scheme.weight_bits)
    step = affine.amax_of(linear.weight.detach() / gain, affine.PerAxis(0)) / quant_max
    of_weights = (step.square() * rows.channels).double().mean() / 12.0
    return float(ROUNDING_GAIN * of_weights * (spread * gain.double().square()).sum())


def activation_readers(model: nn.Module, sample: Tensor) -> list[str]:
    """Return the paths of the quantizable linears that read an activation function, found by watching one pass.

    An activation function is a module without parameters, of the shape of its input, that computes something: GELU,
    QuickGELU, SiLU and the like. No linear before it can take a channel's factor, so the reader may have a gain.
    """
    outputs: dict[int, Tensor] = {}  # the tensors are kept, so that their memory is not given to others
    found: list[str] = []

    def after(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        first = inputs[0] if inputs else None
        if not (isinstance(first, Tensor) and isinstance(output, Tensor) and first.shape == output.shape):
            return
        memory = memory_of(output)
        if memory != memory_of(first):
            outputs[memory] = output

    def before(path: str, inputs: tuple[Tensor, ...]) -> None:
        if memory_of(inputs[0]) in outputs:
            found.append(path)

    handles = []
    for path, module in model.named_modules():
        if isinstance(module, QuantLinear):
            handles.append(module.register_forward_pre_hook(lambda m, args, path=path: before(path, args)))
        elif not [*module.children()] and not [*module.parameters()] and not isinstance(module, nn.Softmax):
            handles.append(module.register_forward_hook(after))
    try:
        with running_in(model, Phase.FLOAT):
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(found))
