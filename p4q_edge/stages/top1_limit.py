"""Accuracy on demand: the fewest multiply-accumulates back in float until enough answers are as right as in float.

Nobody's test images are looked at: the labelled images are cross-validated. For each fold a head is learned on the
features of the others, by the encoder with all of it quantized, and is asked about the fold's images with the features
of the float encoder, of that one, and of each with more in float. The encoder was calibrated on all of them, so
that a small part of the loss on images that it never saw may be missed.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.calibration import CalibratedEncoder, fewest, in_float, quantized_layers, rank_by_sensitivity
from p4q_edge.data import folds
from p4q_edge.learning import Student
from p4q_edge.models import Batches, encode_batches
from p4q_edge.quant import Phase, running_in
from p4q_edge.runtime.errors import QualityGateError
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)

JUDGED_IMAGES = 512
"""Largest number of labelled images, evenly drawn, that the limit is judged on."""

LearnOn = Callable[[Tensor], Student]
"""Learns a head on the labelled images of some indices `(n,)` int64."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Asks heads about images that they were not learned from.

    Attributes:
        batches: the images.
        labels: `(images,)` int64.
        head: of each image, its index in `heads`, `(images,)`.
        heads: each with its class embeddings `(classes, dim)` normalized.
    """

    batches: Batches
    labels: Tensor
    head: Tensor
    heads: tuple[tuple[Student, Tensor], ...]

    @classmethod
    def of(cls, batches: Batches, labels: Tensor, learn_on: LearnOn, *, seed: int) -> "Judge":
        """Learn a head for each fold of the labelled images; at most `JUDGED_IMAGES` of them are asked about."""
        everything = torch.arange(len(labels))
        head = torch.zeros_like(labels)
        heads = []
        for index, held_out in enumerate(folds(labels, seed=seed)):
            head[held_out] = index
            student = learn_on(everything[~torch.isin(everything, held_out)])
            with torch.no_grad():
                heads.append((student, F.normalize(student.text_embedding(), dim=-1)))
        some = slice(None, None, -(-len(labels) // JUDGED_IMAGES))
        images = replace(batches, images=batches.images[some])
        return cls(batches=images, labels=labels[some], head=head[some], heads=tuple(heads))

    @torch.no_grad()
    def right(self, encoder: nn.Module) -> int:
        """Return how many answers on an encoder's features are right."""
        features = encode_batches(encoder, self.batches).to(self.heads[0][1].device)
        right = 0
        for index, (student, text) in enumerate(self.heads):
            own = self.head == index
            answers = (student.image_embedding(features[own]) @ text.T).argmax(-1).cpu()
            right += int((answers == self.labels[own]).sum())
        return right


def limit_top1(calibrated: CalibratedEncoder, reference: nn.Module, judge: Judge, limit: float) -> CalibratedEncoder:
    """Put layers into float until the cross-validated top-1 is at most `limit` points below that of the float encoder.

    Args:
        calibrated: its encoder is changed in place.
        reference: the float image tower.
        limit: in points of 100; 0 allows no loss, and gains of some images make up for losses of others.

    Returns:
        The same with the paths of the layers that are now in float.

    Raises:
        QualityGateError: the limit is not kept with all layers in float.
    """
    encoder, layers = calibrated.encoder, quantized_layers(calibrated.encoder)
    count, in_full = len(judge.labels), judge.right(reference)

    def drop(paths: Sequence[str]) -> float:
        with in_float([layers[path] for path in paths]), running_in(encoder, Phase.QUANTIZED):
            return 100.0 * (in_full - judge.right(encoder)) / count

    before = drop(())
    said = f"max_top1_drop: {100 * in_full / count:.2f} % in float by cross-validation (n = {count})"
    if before <= limit:
        logger.info("%s, %.2f points less quantized: nothing stays in float", said, before)
        return calibrated
    kept = fewest(rank_by_sensitivity(encoder, reference, judge.batches), lambda paths: drop(paths) <= limit)
    if kept is None:
        raise QualityGateError(
            f"quantization.max_top1_drop = {limit:g} cannot be kept: expected top-1 at most that many points below "
            f"float, got {drop([*layers]):.2f} with every layer in float (n = {count} labelled images, "
            "cross-validated). Set it higher."
        )
    logger.info(
        "%s, %.2f points less quantized, %.2f with %d of %s in float: %s",
        *(said, before, drop(kept), len(kept), number_of(len(layers), "layer"), ", ".join(kept)),
    )
    for path in kept:
        layers[path].keep_float()
    return replace(calibrated, in_float=(*calibrated.in_float, *kept), kept_float=(*calibrated.kept_float, *kept))
