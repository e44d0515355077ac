"""Spread a number of bits over the weights of the linears of an encoder."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from p4q_edge.models import Batches
from p4q_edge.quant import output_weights, quant_linears, rounding_losses, spread_bits, weight_sensitivity
from p4q_edge.runtime.progress import task

logger = logging.getLogger(__name__)

WEIGHED_IMAGES = 16
WEIGHED_AT_ONCE = 2
"""Images whose gradients weigh the weights; all activations of those at once are held."""


def spread_weight_bits(encoder: nn.Module, batches: Batches, mean: float | None) -> dict[str, int]:
    """Give more bits to the weights of those linears whose rounding costs most for their size, in place.

    Args:
        encoder: with weight scales, before roundings are fitted: these are then fitted to the widths.
        batches: the calibration images.
        mean: most bits of a weight on average, over all quantized linears; convolutions have the scheme's bits. With
            None linears have them too.

    Returns:
        Bits of each linear that has more than the scheme's, by path.
    """
    if mean is None:
        return {}
    linears = {path: linear for path, linear in quant_linears(encoder).items() if linear.calibrated}
    if not linears:
        logger.warning("quantization.mean_weight_bits has no effect: no linear of this image tower is quantized")
        return {}
    step = -(-len(batches.images) // WEIGHED_IMAGES)
    some = replace(batches, images=batches.images[::step], size=WEIGHED_AT_ONCE)
    with task("calibrate, bits of weights", total=1) as advance:
        read = {path: each for path, each in output_weights(encoder, some).items() if path in linears}
        losses = {path: {linear.scheme.weight_bits: 0.0} for path, linear in linears.items()}
        for path, sensitivity in weight_sensitivity(encoder, some, read).items():
            losses[path] = rounding_losses(linears[path], sensitivity)
        advance(1)
    found = spread_bits(losses, {path: linear.weight.numel() for path, linear in linears.items()}, mean)
    wider = {path: bits for path, bits in found.items() if bits > linears[path].scheme.weight_bits}
    set_weight_bits(encoder, wider)
    for path in wider:
        linears[path].scale_weight()
    logger.info(
        "mean_weight_bits: linears by bits %s, %.2f a weight on average; expected loss of nearest roundings %.2g, "
        "with all at the fewest %.2g",
        *(dict(sorted(Counter(found.values()).items())), mean_weight_bits(encoder)),
        *(sum(losses[path][bits] for path, bits in found.items()), sum(each[min(each)] for each in losses.values())),
    )
    return wider


def set_weight_bits(encoder: nn.Module, bits: Mapping[str, int]) -> None:
    """Give the linears at these paths weights of these widths; their scales are found again by the caller."""
    linears = quant_linears(encoder)
    for path, own in bits.items():
        linears[path].scheme = replace(linears[path].scheme, weight_bits=own, mean_weight_bits=None)


def mean_weight_bits(encoder: nn.Module) -> float:
    """Return the bits of a weight on average, over the quantized linears; 0 without any."""
    layers = [linear for linear in quant_linears(encoder).values() if linear.calibrated]
    weights = sum(layer.weight.numel() for layer in layers)
    return sum(layer.scheme.weight_bits * layer.weight.numel() for layer in layers) / max(weights, 1)
