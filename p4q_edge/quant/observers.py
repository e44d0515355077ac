"""Observers: from seen values to a clip range.

Activations are seen in two passes: the first finds the largest absolute value of each channel (which the folds need
too), the second fills a histogram of absolute values within that known bound. Memory does not grow with the data.
"""

import torch
from torch import Tensor, nn

from p4q_edge.quant import affine
from p4q_edge.quant.scheme import ObserverName, QuantScheme

HISTOGRAM_BINS = 4096
MSE_CANDIDATES = 100
COUNTED_AT_ONCE = 1 << 24
"""`torch.histc` counts in float32, which holds whole numbers up to here."""
SMALLEST_CLIP = 0.2
"""The MSE search never clips below this share of the maximum."""


class ChannelRange:
    """Running minimum and maximum of each channel (last dimension) of an activation."""

    def __init__(self) -> None:
        self.minimum: Tensor | None = None
        self.maximum: Tensor | None = None

    def observe(self, x: Tensor) -> None:
        """See a batch of shape `(..., channels)`."""
        flat = x.detach().reshape(-1, x.shape[-1])
        low, high = flat.amin(0), flat.amax(0)
        self.minimum = low if self.minimum is None else torch.minimum(self.minimum, low)
        self.maximum = high if self.maximum is None else torch.maximum(self.maximum, high)

    def require(self) -> tuple[Tensor, Tensor]:
        """Minimum and maximum, each `(channels,)`.

        Raises:
            RuntimeError: nothing was observed.
        """
        if self.minimum is None or self.maximum is None:
            raise RuntimeError("no batch was observed; run the calibration images through the model first")
        return self.minimum, self.maximum

    @property
    def largest(self) -> Tensor:
        """Largest absolute value of each channel, `(channels,)`."""
        low, high = self.require()
        return torch.maximum(low.abs(), high.abs())

    @property
    def amax(self) -> Tensor:
        """Largest absolute value over all channels, shape `()`."""
        return self.largest.amax()


class MagnitudeHistogram:
    """Histogram of absolute values in `[0, amax]`, and the clip range that it suggests.

    Counts lie on the CPU, so that clip ranges are searched alike whatever device observes.

    Attributes:
        device: of what is observed.
    """

    def __init__(self, amax: Tensor) -> None:
        self.amax = float(amax.clamp(min=affine.SMALLEST_SCALE))
        self.device = amax.device
        self.counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.float64)

    def observe(self, x: Tensor) -> None:
        """See a batch of shape `(..., channels)`."""
        for some in torch.split(x.detach().abs().float().flatten(), COUNTED_AT_ONCE):
            self.counts += torch.histc(some, HISTOGRAM_BINS, 0.0, self.amax).double().cpu()

    def clip(self, observer: ObserverName, *, quant_max: int, percentile: float) -> Tensor:
        """Clip range, shape `()`: the maximum, a percentile, or (also for `search`) the least mean squared error.

        Source: OMSE, Choukroun et al., arXiv:1902.06822, for the last.
        """
        if observer == "minmax":
            return torch.tensor(self.amax)
        centres = (torch.arange(HISTOGRAM_BINS, dtype=torch.float64) + 0.5) * (self.amax / HISTOGRAM_BINS)
        if observer == "percentile":
            share = self.counts.cumsum(0) / self.counts.sum()
            index = int(torch.searchsorted(share, torch.tensor(percentile / 100.0, dtype=torch.float64)))
            return centres[min(index, HISTOGRAM_BINS - 1)].float()
        return _least_error_clip(centres, self.counts, self.amax, quant_max)


def _least_error_clip(centres: Tensor, counts: Tensor, amax: float, quant_max: int) -> Tensor:
    candidates = amax * torch.linspace(SMALLEST_CLIP, 1.0, MSE_CANDIDATES, dtype=torch.float64)
    scale = (candidates / quant_max)[:, None]
    restored = affine.dequantize(affine.quantize(centres, scale, 0, quant_max), scale)
    errors = ((restored - centres).square() * counts).sum(1)
    return candidates[errors.argmin()].float()


def forget_magnitudes(model: nn.Module) -> None:
    """Drop what the second pass saw in all modules that observe, before it is run again; ranges stay."""
    for module in model.modules():
        if isinstance(getattr(module, "histogram", None), MagnitudeHistogram):
            setattr(module, "histogram", None)  # noqa: B010 (a type that several classes share)


def activation_scale(histogram: MagnitudeHistogram, scheme: QuantScheme, *, bits: int) -> Tensor:
    """Return scale of an activation, shape `()`: the scheme's clip range of what was observed, with its headroom.

    In FP8 the range is the largest value that was observed. It lies on the device of what was observed.
    """
    if scheme.in_fp8:
        return affine.e4m3_scale(torch.tensor(histogram.amax) * scheme.headroom).to(histogram.device)
    _, quant_max = affine.activation_range(bits)
    clip = histogram.clip(scheme.observer, quant_max=quant_max, percentile=scheme.percentile)
    return affine.scale_for(clip * scheme.headroom, quant_max).to(histogram.device)


def weight_scale(
    weight: Tensor,
    *,
    bits: int,
    observer: ObserverName,
    percentile: float = 99.99,
    importance: Tensor | None = None,
) -> Tensor:
    """Return scale of each output channel of a weight, or of each block of its inputs.

    Args:
        weight: `(out_features, in_features)` float32, or `(out_features, blocks, size)`.
        importance: of the squared error of each input channel, `(in_features,)` or `(blocks, size)`, for `mse` and
            `search`.

    Returns:
        `(out_features,)` or `(out_features, blocks)` float32, positive.
    """
    quant_min, quant_max = affine.weight_range(bits)
    amax = weight.abs().amax(-1)
    if observer == "minmax":
        return affine.scale_for(amax, quant_max)
    if observer == "percentile":
        clip = torch.quantile(weight.abs().float(), percentile / 100.0, dim=-1)
        return affine.scale_for(clip, quant_max)
    best_scale = affine.scale_for(amax, quant_max)
    best_error = torch.full_like(amax, torch.inf)
    for share in torch.linspace(1.0, 0.5, 41).tolist():
        scale = affine.scale_for(amax * share, quant_max)
        column = scale[..., None]
        restored = affine.dequantize(affine.quantize(weight, column, quant_min, quant_max), column)
        square = (restored - weight).square()
        error = square.sum(-1) if importance is None else _weighted(square, importance)
        better = error < best_error
        best_scale = torch.where(better, scale, best_scale)
        best_error = torch.where(better, error, best_error)
    return best_scale


def _weighted(square: Tensor, importance: Tensor) -> Tensor:
    if square.ndim == 2:
        return square @ importance
    return torch.einsum("obs,bs->ob", square, importance)
