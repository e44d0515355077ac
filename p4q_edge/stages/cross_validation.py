"""Accuracy without a test set: each part of the labelled photographs, named by a head learned from the other parts.

The heads are learned on features that are there already, so that it costs some times the learning and nothing else.
The image tower was calibrated on all photographs; that uses no label, and moves ranges by little.
"""

import logging

import torch
from torch import Tensor, nn

from p4q_edge.data import FOLDS, folds
from p4q_edge.learning import Student
from p4q_edge.quant import Phase, running_in
from p4q_edge.runtime.artifacts import CrossValidated
from p4q_edge.runtime.progress import tracked
from p4q_edge.stages.features import image_features
from p4q_edge.stages.pipeline import Prepared
from p4q_edge.stages.students import learn_student

logger = logging.getLogger(__name__)


@torch.no_grad()
def right_answers(student: Student, features: Tensor, labels: Tensor, *, phase: Phase) -> int:
    """Return how many of the features `(N, dim)` a learned head names rightly, its adapter in a phase."""
    text = student.text_embedding()
    features, labels = features.to(text.device), labels.to(text.device)
    with running_in(student.adapter or nn.Identity(), phase):
        scores = student.image_embedding(features) @ text.T
    return int((scores.argmax(-1) == labels).sum())


def cross_validate(prepared: Prepared) -> CrossValidated:
    """Learn and judge a head for each fold of the labelled photographs."""
    source, features = prepared.source, prepared.features
    labels, plain = features.labels, features.student[0]
    images = source.stream(source.split.train)
    exact = image_features(source.model.clip.visual, images, source.model.preprocess, source.model.compute)  # type: ignore[arg-type]
    right = {Phase.FLOAT: 0, Phase.QUANTIZED: 0}
    zero_shot, everything = 0, torch.arange(len(labels))
    for held_out in tracked(folds(labels, seed=source.recipe.seed), "cross-validate"):
        if not len(held_out):
            continue
        student = learn_student(source, features.of_images(everything[~torch.isin(everything, held_out)]))
        for phase, rows in ((Phase.FLOAT, exact), (Phase.QUANTIZED, plain)):
            right[phase] += right_answers(student, rows[held_out], labels[held_out], phase=phase)
        answers = (features.teacher[0, held_out] @ student.hand_written.cpu().T).argmax(-1)
        zero_shot += int((answers == labels[held_out]).sum())
    found = CrossValidated(
        n=len(labels),
        folds=FOLDS,
        zero_shot=zero_shot,
        learned_float=right[Phase.FLOAT],
        learned_quantized=right[Phase.QUANTIZED],
    )
    logger.debug("cross-validated: %s", found)
    return found
