"""What each class won or lost by learning: hand-written prompts against the engine, on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from p4q_edge.runtime.statistics import Estimate, metrics


@dataclass(frozen=True, kw_only=True)
class ClassGain:
    """One class on the images for which the bundle has the answers of hand-written prompts.

    Attributes:
        name: of the class.
        zero_shot: share of right answers of the full-precision model with hand-written prompts.
        learned: the same of the engine.
    """

    name: str
    zero_shot: Estimate
    learned: Estimate


def class_gains(
    zero_shot: Mapping[int, int], learned: Sequence[int], labels: Sequence[int], class_names: Sequence[str]
) -> tuple[ClassGain, ...]:
    """Return a row for each class that has such images, what learning cost most first.

    Args:
        zero_shot: answers of hand-written prompts by the index of the image.
        learned: answers of the engine to all images.
        labels: of all images.
        class_names: in label order.
    """
    rows = np.array(sorted(zero_shot), np.int64)
    of = np.asarray(labels)[rows]
    before, after = np.array([zero_shot[row] for row in rows]) == of, np.asarray(learned)[rows] == of
    found = [
        ClassGain(
            name=class_names[label],
            zero_shot=metrics.proportion(before[of == label]),
            learned=metrics.proportion(after[of == label]),
        )
        for label in np.unique(of)
    ]
    return tuple(sorted(found, key=lambda row: row.learned.value - row.zero_shot.value))
