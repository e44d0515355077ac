"""Fit a calibrated encoder to the float model's outputs on the calibration images, as the scheme asks."""

import logging
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.models import Batches, encode_batches
from p4q_edge.quant import (
    STRENGTHS,
    Moments,
    OutputWeights,
    QuantLinear,
    QuantScheme,
    Ranges,
    Rows,
    Seen,
    activation_readers,
    choose_input,
    choose_rounding,
    correct_affine,
    correct_bias,
    fitted_target,
    learn_scales,
    output_weights,
    paired_pass,
    quant_linears,
    reconstruct,
)
from p4q_edge.runtime.progress import task

logger = logging.getLogger(__name__)

PAIRED_IMAGES = 512
PAIRED_ROWS = 16384
PAIRED_PIXELS = 64 * 224 * 224
"""Largest numbers of images, evenly drawn, of rows and of pixels that run through the encoder at once: before a
linear of one row an image, such as a projection behind pooling, convolutions hold far more than it does."""

WEIGHED_IMAGES = 16
WEIGHED_AT_ONCE = 2
"""Images whose gradients weigh the outputs of linears; all activations of those at once are held."""


def refine(encoder: nn.Module, reference: nn.Module, batches: Batches, scheme: QuantScheme) -> None:
    """Choose gains, ranges, roundings, factors and offsets linear by linear, then learn all together; in place.

    Args:
        encoder: with weight and input scales.
        reference: the float encoder.
        batches: the calibration images.
    """
    if scheme.fits_outputs:
        _fit_linears(encoder, batches, scheme)
    if scheme.reconstruction_epochs:
        reconstruct(encoder, torch.cat([*batches]), epochs=scheme.reconstruction_epochs)
    if scheme.scale_epochs:
        teacher = F.normalize(encode_batches(reference, batches), dim=-1).to(batches.compute.device)
        learn_scales(encoder, torch.cat([*batches]), teacher, epochs=scheme.scale_epochs)


def _fit_linears(encoder: nn.Module, batches: Batches, scheme: QuantScheme) -> None:
    if not quant_linears(encoder):  # a tower of convolutions alone, which have their own calibration
        return
    weights = output_weights(encoder, _some(batches, WEIGHED_IMAGES, at_once=WEIGHED_AT_ONCE))
    rows = max((each.positions.numel() for each in weights.values()), default=1)
    limit = max(2, min(PAIRED_IMAGES, PAIRED_ROWS // rows, PAIRED_PIXELS // math.prod(batches.images.shape[-2:])))
    (images,) = _some(batches, limit, at_once=limit)
    gained = set(activation_readers(encoder, images[:2])) if scheme.activation_gain else set()
    fitted = {
        linear: _LinearFit(scheme=scheme, weights=weights[path], gained=path in gained)
        for path, linear in quant_linears(encoder).items()
        if path in weights
    }

    with task("calibrate, linears", total=len(fitted)) as advance:

        def visit(linear: QuantLinear, seen: Seen) -> None:
            if linear in fitted:  # what no output depends on keeps its observer's scales
                fitted[linear](linear, seen)
                advance(1)

        paired_pass(encoder, images, visit)


def _some(batches: Batches, limit: int, *, at_once: int) -> Batches:
    step = -(-len(batches.images) // limit)
    return replace(batches, images=batches.images[::step], size=at_once)


class _LinearFit:
    """Fits one linear to what it should give."""

    def __init__(self, *, scheme: QuantScheme, weights: OutputWeights, gained: bool) -> None:
        self.scheme = scheme
        self.weights = weights
        self.gained = gained

    def __call__(self, linear: QuantLinear, seen: Seen) -> None:
        rows = Rows.of(seen, self.weights)
        if self.scheme.searches_inputs:
            low, high = linear.channel_range.require()
            all_read = self.weights.rows_read == self.weights.positions.numel()
            choice = choose_input(
                linear,
                rows,
                strengths=STRENGTHS if self.gained else (0.0,),
                shifted=self.gained,
                bounds=Ranges(low=low, high=high) if all_read else None,
            )
            logger.debug("gain strength %.2f, clip range %.2f", choice.strength, choice.clip)
        moments = Moments.of(linear.quantized_input(rows.actual), _target(linear, rows), rows.weights)
        if self.scheme.weight_observer == "search" or linear.input_gain is not None:
            linear.scale_weight(importance=moments.input_square.diagonal().float())
        choose_rounding(linear, moments, self.scheme.weight_rounding)
        if self.scheme.affine_correction:
            correct_affine(linear, moments)
        elif self.scheme.bias_correction or self.scheme.weight_rounding != "nearest" or linear.input_shift is not None:
            correct_bias(linear, moments)


def _target(linear: QuantLinear, rows: Rows) -> Tensor:
    """Return what the linear should give."""
    bias = linear.bias if linear.float_bias is None else linear.float_bias
    own = F.linear(linear.gained(rows.actual), linear.weight, bias)
    return fitted_target(own, rows.target, rows=rows.effective, inputs=linear.weight.shape[1])
