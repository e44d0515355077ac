"""One pass that shows each linear what it reads in the quantized model so far, and what it should give.

The batch holds each image twice: the first half runs in float, the second quantized, attention products too. A linear
is visited when the pass reaches it, so that what is changed there (rounding, scale, bias) is seen by all that follow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.quant import affine
from p4q_edge.quant.linear import Phase, QuantLinear, quant_linears, running_in

ROWS_AT_ONCE = 1024
"""Rows that are multiplied in float32 at a time; their sums are added up in float64."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What the least-squares error of a linear depends on, whatever its integers, scales and bias; all float64.

    With x the quantized input, y the float model's output and the bias at its optimum, the mean squared error of
    output channel c with weight row w is `target_square_c - 2 w . cross_c + w H w`. Means are over the rows, each
    with its weight.

    Attributes:
        input_square: H, covariance of x, `(in, in)`.
        cross: covariance of y and x, `(out, in)`.
        target_square: variance of y, `(out,)`.
        input_mean, target_mean: `(in,)` and `(out,)`.
        effective_rows: how many rows of one weight tell as much: `sum(w)**2 / sum(w**2)`.
    """

    input_square: Tensor
    cross: Tensor
    target_square: Tensor
    input_mean: Tensor
    target_mean: Tensor
    effective_rows: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, weights: Tensor | None = None) -> "Moments":
        """Of paired rows `(..., in)` and `(..., out)`, weighted by `(rows,)`, all alike without."""
        x, y = x.flatten(0, -2), y.flatten(0, -2)
        share = torch.full((len(x),), 1.0 / len(x), device=x.device) if weights is None else weights / weights.sum()
        input_mean, target_mean = share.double() @ x.double(), share.double() @ y.double()
        square = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        cross = x.new_zeros(y.shape[1], x.shape[1], dtype=torch.float64)
        target = x.new_zeros(y.shape[1], dtype=torch.float64)
        root = (share * len(x)).sqrt()[:, None]
        for some_x, some_y, factor in zip(*(torch.split(part, ROWS_AT_ONCE) for part in (x, y, root)), strict=True):
            centred_x = (some_x - input_mean.float()) * factor
            centred_y = (some_y - target_mean.float()) * factor
            square += centred_x.T @ centred_x
            cross += centred_y.T @ centred_x
            target += centred_y.square().sum(0)
        rows = len(x)
        return cls(
            input_square=square / rows,
            cross=cross / rows,
            target_square=target / rows,
            input_mean=input_mean,
            target_mean=target_mean,
            effective_rows=1.0 / float(share.double().square().sum()),
        )

    def error(self, weight: Tensor) -> Tensor:
        """Return mean squared error of each output channel, `(out,)`, for a weight `(out, in)` and its best bias."""
        weight = weight.double()
        own = ((weight @ self.input_square) * weight).sum(1)
        return self.target_square - 2 * (weight * self.cross).sum(1) + own

    def best_bias(self, weight: Tensor) -> Tensor:
        """Return the bias that leaves no mean error, `(out,)` float32."""
        return (self.target_mean - weight.double() @ self.input_mean).float()

    def best_factor(self, weight: Tensor) -> Tensor:
        """Return the factor of least error on each row of the weight, `(out,)`; 1 where the row gives a constant."""
        weight = weight.double()
        own = ((weight @ self.input_square) * weight).sum(1)
        factor = (weight * self.cross).sum(1) / own
        return torch.where((own > 0) & torch.isfinite(factor) & (factor > 0), factor, torch.ones_like(factor))


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a linear reads and should give on the same images.

    Attributes:
        exact: input in the float model, `(N, ..., in)`, before the linear's own gain.
        actual: input in the quantized model so far, likewise.
        target: output in the float model, `(N, ..., out)`.
    """

    exact: Tensor
    actual: Tensor
    target: Tensor


def fitted_target(own: Tensor, exact: Tensor, *, rows: float, inputs: int) -> Tensor:
    """Return what a layer should give: its float output, from the quantized model's input as far as rows are few.

    With many rows the layer can make up for errors of those before it; with fewer than it has inputs it would learn the
    images by heart.

    Args:
        own: float output for the input in the quantized model, `(n, out)`.
        exact: float output in the float model, `(n, out)`.
        rows: how many there are, by their weights.
        inputs: of the layer.
    """
    return torch.lerp(own, exact, rows / (rows + inputs))


Visit = Callable[[QuantLinear, Seen], None]


@torch.no_grad()
def paired_pass(model: nn.Module, images: Tensor, visit: Visit) -> None:
    """Visit the calibrated linears of a model in the order of its forward pass.

    Args:
        images: `(N, 3, H, W)` float32; activations of 2 N images are held at once.
        visit: may change the linear's integers, scales, gain and bias.
    """
    outputs: dict[QuantLinear, tuple[Tensor, Tensor]] = {}

    def before(linear: QuantLinear, inputs: tuple[Tensor, ...]) -> None:
        exact, actual = inputs[0].chunk(2)
        target = linear.forward(exact)
        visit(linear, Seen(exact=exact, actual=actual, target=target))
        quantized = linear.quantized_input(actual)
        outputs[linear] = target, F.linear(quantized, linear.quantized_weight(), linear.bias)

    def after(linear: QuantLinear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.cat(outputs.pop(linear))

    handles = []
    for linear in quant_linears(model).values():
        if linear.calibrated:
            handles.append(linear.register_forward_pre_hook(before))
            handles.append(linear.register_forward_hook(after))
    try:
        with running_in(model, Phase.PAIRED):
            model(torch.cat([images, images]))
    finally:
        for handle in handles:
            handle.remove()


def correct_affine(linear: QuantLinear, moments: Moments) -> None:
    """Fold the least-squares factor and offset of each output channel into the weight's scale and the bias.

    Both live where the quantized linear already has a scale and a bias, so that nothing is added at run time. The
    factor is rounded with the scale (`affine.representable_scale`) and left at 1 where that costs more than it gives.

    Source: QwT, arXiv:2411.13918, with the compensation matrix reduced to its diagonal.
    """
    integers = linear.integer_weight()
    plain = linear.weight_scale
    factor = moments.best_factor(affine.dequantize(integers.float(), plain[:, None]))
    scaled = affine.representable_scale(plain.double() * factor)
    errors = [moments.error(affine.dequantize(integers.float(), scale[:, None])) for scale in (plain, scaled)]
    linear.set_integers(integers, torch.where(errors[1] < errors[0], scaled, plain))
    correct_bias(linear, moments)


def correct_bias(linear: QuantLinear, moments: Moments) -> None:
    """Give the linear the bias that leaves no mean error against the float model."""
    linear.correct_bias(moments.best_bias(linear.quantized_weight()))
