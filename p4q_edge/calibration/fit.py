"""Fit a calibrated encoder to the float model's outputs on the calibration images, as the scheme asks."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.models import encode_batches
from p4q_edge.quant import (
    Moments,
    QuantLinear,
    QuantScheme,
    choose_rounding,
    correct_affine,
    correct_bias,
    learn_scales,
    paired_pass,
)

PAIRED_IMAGES = 512
"""At most so many images, evenly drawn, run through the encoder at once to fit roundings and offsets."""


def refine(encoder: nn.Module, reference: nn.Module, batches: Iterable[Tensor], scheme: QuantScheme) -> None:
    """Choose roundings, factors and offsets linear by linear, then learn the scales of all; in place.

    Args:
        encoder: with weight and input scales.
        reference: the float encoder.
        batches: images ``(N, 3, H, W)`` float32.
    """
    fits_linears = scheme.weight_rounding != "nearest" or scheme.affine_correction
    if not (fits_linears or scheme.scale_epochs):
        return
    images = torch.cat([*batches])
    if fits_linears:

        def visit(linear: QuantLinear, moments: Moments) -> None:
            choose_rounding(linear, moments, scheme.weight_rounding)
            correct = correct_affine if scheme.affine_correction else correct_bias
            correct(linear, moments)

        paired_pass(encoder, images[:: -(-len(images) // PAIRED_IMAGES)], visit)
    if scheme.scale_epochs:
        teacher = F.normalize(encode_batches(reference, batches), dim=-1)
        learn_scales(encoder, images, teacher, epochs=scheme.scale_epochs)
