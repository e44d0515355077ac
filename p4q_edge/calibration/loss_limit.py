"""Accuracy on demand: put the fewest multiply-accumulates back into float until a limit on the loss holds."""

import logging
from collections.abc import Sequence

import torch
from torch import nn

from p4q_edge.calibration.keep_in_float import (
    drawn,
    embedding_loss,
    fewest,
    in_float,
    quantized_layers,
    rank_by_sensitivity,
    teacher_of,
)
from p4q_edge.models import Batches
from p4q_edge.runtime.errors import QualityGateError
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)

JUDGED_IMAGES = 128
"""Largest number of images, evenly drawn, that decide whether the limit holds."""


@torch.no_grad()
def limit_loss(encoder: nn.Module, reference: nn.Module, batches: Batches, limit: float) -> tuple[str, ...]:
    """Put layers into float, in the order of `rank_by_sensitivity`, until the mean cosine loss is at most `limit`.

    Args:
        encoder: calibrated; changed in place.
        reference: the float image tower.
        batches: the calibration images.

    Returns:
        Paths of the linears and convolutions that are now in float, in order of the ranking.

    Raises:
        QualityGateError: the limit does not hold with all of them in float.
    """
    some = drawn(batches, JUDGED_IMAGES)
    teacher = teacher_of(reference, some)
    layers = quantized_layers(encoder)

    def loss(paths: Sequence[str]) -> float:
        with in_float([layers[path] for path in paths]):
            return embedding_loss(encoder, teacher, some)

    if loss(()) <= limit:
        return ()
    kept = fewest(rank_by_sensitivity(encoder, reference, batches), lambda paths: loss(paths) <= limit)
    if kept is None:
        least = loss([*layers])
        raise QualityGateError(
            f"quantization.max_cosine_loss = {limit:g} cannot be kept: expected a mean loss of at most that on the "
            f"calibration images, got {least:.2g} with every layer in float. Set it to {1.1 * least:.2g} or more."
        )
    for path in kept:
        layers[path].keep_float()
    logger.info(
        "max_cosine_loss: kept in float: %d of %s: %s", len(kept), number_of(len(layers), "layer"), ", ".join(kept)
    )
    return kept
