"""Images that show none of the classes: how well the score tells them from those that do, and which are rejected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.artifacts import Calibration
from p4q_edge.runtime.classification import probabilities
from p4q_edge.runtime.statistics import Estimate, auroc, metrics

Logits = npt.NDArray[np.floating]
KEPT = 0.95
"""Share of the labelled images that the common measure keeps."""


@dataclass(frozen=True, kw_only=True)
class UnknownStage:
    """How one stage tells images of the classes from others, by the calibrated probability of its best class.

    Attributes:
        auroc: chance that an image of a class scores above one of none.
        rejected: share of the images of no class that the engine's thresholds call unknown.
        wrongly_rejected: the same of the labelled images.
        accepted_at_95: share of the images of no class that score above the threshold with which 95 % of the labelled
            ones are kept.
    """

    name: str
    auroc: Estimate
    rejected: Estimate
    wrongly_rejected: Estimate
    accepted_at_95: Estimate


@dataclass(frozen=True, kw_only=True)
class UnknownReport:
    """The stages on images that show none of the classes.

    Attributes:
        source: where these came from, in words.
        n: how many they are.
        labelled: images of the classes that they are compared with.
        threshold: least score that the engine accepts; 0 accepts everything.
        class_thresholds: whether some classes have their own.
        stages: as far as they can run here, the engine last.
    """

    source: str
    n: int
    labelled: int
    threshold: float
    class_thresholds: bool
    stages: tuple[UnknownStage, ...]

    @property
    def rejects(self) -> bool:
        """Whether the engine has a threshold at all."""
        return self.threshold > 0 or self.class_thresholds


def unknown_report(
    known: Mapping[str, Logits],
    unknown: Mapping[str, Logits],
    *,
    class_names: tuple[str, ...],
    calibration: Calibration,
    source: str,
) -> UnknownReport:
    """Return the report on logits (n, classes) of labelled images and of others, of the same stages.

    Args:
        known: of each stage, of the labelled images.
        unknown: of each of these stages, of images that show none of the classes.
        class_names: of the columns.
        calibration: the engine's; its thresholds are applied to every stage.
        source: where the others came from.
    """
    limits = _limits(class_names, calibration)
    stages = []
    for name, logits in unknown.items():
        best, accepted = _best(logits, calibration, limits)
        best_known, accepted_known = _best(known[name], calibration, limits)
        keeps = np.quantile(best_known, 1 - KEPT, method="lower")
        stages.append(
            UnknownStage(
                name=name,
                auroc=auroc(best_known, best),
                rejected=metrics.proportion(~accepted),
                wrongly_rejected=metrics.proportion(~accepted_known),
                accepted_at_95=metrics.proportion(best >= keeps),
            )
        )
    last = next(iter(unknown.values()))
    return UnknownReport(
        source=source,
        n=len(last),
        labelled=len(next(iter(known.values()))),
        threshold=calibration.threshold,
        class_thresholds=bool(calibration.class_thresholds),
        stages=tuple(stages),
    )


def called_unknown(logits: Logits, *, class_names: tuple[str, ...], calibration: Calibration) -> tuple[int, ...]:
    """Return the indices of the images, of logits (n, classes), whose best class stays below its threshold."""
    _, accepted = _best(logits, calibration, _limits(class_names, calibration))
    return tuple(int(index) for index in np.flatnonzero(~accepted))


def _limits(class_names: tuple[str, ...], calibration: Calibration) -> npt.NDArray[np.float64]:
    return np.array([calibration.class_thresholds.get(name, calibration.threshold) for name in class_names])


def _best(
    logits: Logits, calibration: Calibration, limits: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return (n,) the probability of the best class, and (n,) whether it reaches that class's threshold."""
    scores = probabilities(logits, calibration)
    best = scores.argmax(axis=1)
    highest = scores[np.arange(len(scores)), best]
    return highest, highest >= limits[best]
