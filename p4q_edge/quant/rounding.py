"""Rounding of weights by the error of the linear's output, in place of each weight's own.

Both ways minimize `Moments.error` plus a ridge that pulls towards the float weight. An output channel whose error is
not lower than with nearest rounding keeps that. What is chosen is stored as integers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from p4q_edge.quant import affine
from p4q_edge.quant.conv import QuantConv2d
from p4q_edge.quant.least_squares import Moments
from p4q_edge.quant.linear import QuantLinear
from p4q_edge.quant.scheme import RoundingName

RIDGE = 0.1
SCARCITY_RIDGE = 0.5
"""Weight of the pull to the float weight, as a share of the inputs' mean variance: in any case, and for each input
channel that there is a row; where few rows count, such as class tokens in the last blocks, roundings that are fitted
to them alone fail on others."""

SWEEPS = 6
"""Rounds of coordinate descent; few weights still move in the last."""

BLOCK = 64
CHANNELS = 256
"""Columns between two updates of all slopes, and output channels at once: as many as stay in a core's cache."""

STEPS = 400
LEARNING_RATE = 2e-2
STRETCH = 0.1
"""The rectified sigmoid runs from -STRETCH to 1 + STRETCH before it is clipped."""
REGULARIZER = 1.0
WARM_UP = 0.2
"""Share of the steps without the regularizer."""
SHARPEST, SOFTEST = 2.0, 20.0
"""Exponent beta of the regularizer at the end and at the beginning."""


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A weight as rows, one for each output channel, that are rounded to integers.

    Attributes:
        weight: `(out, in)` float32.
        nearest: its nearest integers, likewise, float64.
        step: what the integers are multiplied with, `(out, in)` float64.
        bits: of the integers.
    """

    weight: Tensor
    nearest: Tensor
    step: Tensor
    bits: int

    @classmethod
    def of(cls, layer: QuantLinear | QuantConv2d) -> "Rounded":
        """Return the weight of a layer, of a convolution with the kernel's positions as inputs of their own."""
        weight = layer.weight.detach().flatten(1)
        return cls(
            weight=weight,
            nearest=layer.integer_weight().double().flatten(1),
            step=affine.column_scale(layer.weight_scale.double(), weight.shape[1]).expand_as(weight),
            bits=layer.scheme.weight_bits,
        )


@torch.no_grad()
def choose_rounding(layer: QuantLinear | QuantConv2d, moments: Moments, how: RoundingName) -> None:
    """Set the integers of a linear or a convolution; its scales stay.

    With `adaround` each is the weight rounded up or down; with `descent` any integer of the range.
    """
    if how == "nearest":
        return
    rows = Rounded.of(layer)
    step = rows.step
    problem = _with_ridge(moments, rows.weight.double())
    search = {"adaround": _adaptive, "descent": _descend}[how]
    chosen = search(problem, rows)
    better = moments.error(chosen * step) < moments.error(rows.nearest * step)
    integers = torch.where(better[:, None], chosen, rows.nearest).to(torch.int8)
    layer.set_integers(integers.view(layer.weight.shape), layer.weight_scale)


def _with_ridge(moments: Moments, weight: Tensor) -> Moments:
    share = RIDGE + SCARCITY_RIDGE * weight.shape[1] / moments.effective_rows
    square = moments.input_square
    ridge = share * square.diagonal().mean()
    return Moments(
        input_square=square + ridge * torch.eye(weight.shape[1], dtype=torch.float64, device=square.device),
        cross=moments.cross + ridge * weight,
        target_square=moments.target_square + ridge * weight.square().sum(1),
        input_mean=moments.input_mean,
        target_mean=moments.target_mean,
        effective_rows=moments.effective_rows,
    )


def _descend(problem: Moments, rows: Rounded) -> Tensor:
    """Cyclic coordinate descent: each column in turn takes its best integers, all others held.

    The columns go through in blocks: within one the slope is kept up to date column by column, behind it by one product
    for all others. The integers are those of the plain loop.

    Source: QuantEase, Behdin et al., arXiv:2309.01885, algorithm 1, with the float model's output as target.
    """
    limits = affine.weight_range(rows.bits)
    of_all = (rows.nearest, problem.cross, rows.step)
    parts = zip(*(torch.split(each, CHANNELS) for each in of_all), strict=True)
    return torch.cat([_descend_channels(q, problem.input_square, cross, step, limits) for q, cross, step in parts])


def _descend_channels(start: Tensor, square: Tensor, cross: Tensor, step: Tensor, limits: tuple[int, int]) -> Tensor:
    # (in, out): a column of the weight lies in one piece
    q, step = start.T.contiguous(), step.T.contiguous()
    slope = square @ (q * step) - cross.T  # half the gradient
    for _ in range(SWEEPS):
        moved = False
        for first in range(0, len(q), BLOCK):
            block = slice(first, first + BLOCK)
            change = _descend_block(q[block], slope[block].clone(), square[block, block], step[block], limits)
            if bool(change.any()):
                slope += square[:, block] @ (change * step[block])
                moved = True
        if not moved:
            break
    return q.T.contiguous()


def _descend_block(q: Tensor, slope: Tensor, square: Tensor, step: Tensor, limits: tuple[int, int]) -> Tensor:
    """Update the integers `(block, out)` in place; return by how much they changed."""
    before = q.clone()
    for j in range(len(q)):
        best = affine.quantize(q[j] * step[j] - slope[j] / square[j, j], step[j], *limits)
        change = best - q[j]
        slope[j + 1 :] += square[j + 1 :, j, None] * (change * step[j])
        q[j] = best
    return q - before


@torch.enable_grad()
def _adaptive(problem: Moments, rows: Rounded) -> Tensor:
    """Up or down for each weight, learned through a rectified sigmoid.

    Source: AdaRound, Nagel et al., arXiv:2004.10568, eq. (21) to (25), on the moments in place of sampled rows.
    """
    limits = affine.weight_range(rows.bits)
    step = rows.step.float()
    low, up = affine.floor_and_rest(rows.weight, step)
    square, cross = problem.input_square.float(), problem.cross.float()
    unit = problem.error(rows.nearest * step.double()).mean().float().clamp(min=torch.finfo(torch.float32).tiny)
    v = torch.logit(((up + STRETCH) / (1 + 2 * STRETCH)).clamp(1e-3, 1 - 1e-3)).requires_grad_(True)
    optimizer = torch.optim.Adam([v], LEARNING_RATE)
    for at in range(STEPS):
        h = (torch.sigmoid(v) * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)
        weight = (low + h).clamp(*limits) * step
        error = ((weight @ square) * weight).sum() - 2 * (weight * cross).sum()
        loss = error / (unit * len(weight))
        done = at / STEPS
        if done > WARM_UP:
            beta = SHARPEST + (SOFTEST - SHARPEST) * (1 - (done - WARM_UP) / (1 - WARM_UP))
            loss = loss + REGULARIZER * (1 - (2 * h - 1).abs().pow(beta)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return (low + (v.detach() > 0)).clamp(*limits).double()
