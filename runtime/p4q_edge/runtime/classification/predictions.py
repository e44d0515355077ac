"""What a classifier answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from p4q_edge.runtime.artifacts import Calibration
from p4q_edge.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The classes of one image, best first.

    Attributes:
        label: the best class.
        score: its calibrated probability, 0 to 1.
        index: its position in the head's class names.
        known: whether its score reaches the threshold; if not, the image may show none of the classes.
        topk: (label, score) of the best classes, `label` first.
        accepted: those of `topk` that reach their own threshold; the answer of a multi-label (sigmoid) head.
        source: path of the image, if it was given as one.
    """

    label: str
    score: float
    index: int
    known: bool
    topk: tuple[tuple[str, float], ...]
    accepted: tuple[str, ...] = ()
    source: str | None = None

    def to_dict(self) -> list[dict[str, str | float]]:
        """Return `[{"label": ..., "score": ...}, ...]`, the shape of other image-classification pipelines."""
        return [{"label": label, "score": score} for label, score in self.topk]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An image that could not be used, in place of its prediction.

    Attributes:
        error: what is wrong with it; the message names it and says what to do.
        source: path of the image, if it was given as one.
    """

    error: InputError
    source: str | None = None


def probabilities(logits: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Return calibrated probabilities (n, classes) float64 of logits (n, classes)."""
    scaled = logits.astype(np.float64) / calibration.temperature
    if calibration.activation == "sigmoid":
        # Written with the negative absolute value, so that exp cannot overflow.
        small = np.exp(-np.abs(scaled))
        return np.asarray(np.where(scaled >= 0, 1.0 / (1.0 + small), small / (1.0 + small)))
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How probabilities become predictions.

    Attributes:
        class_names: name of each column.
        calibration: holds the thresholds.
        threshold: replaces all fitted thresholds if it is not None.
        top_k: number of classes in an answer.
    """

    class_names: tuple[str, ...]
    calibration: Calibration
    threshold: float | None
    top_k: int

    def predict(self, scores: np.ndarray, *, source: str | None) -> Prediction:
        """Return the prediction of one image from its probabilities (classes,)."""
        best = np.argsort(-scores, kind="stable")[: self.top_k]
        topk = tuple((self.class_names[index], float(scores[index])) for index in best)
        accepted = tuple(label for label, score in topk if score >= self.threshold_of(label))
        label, score = topk[0]
        return Prediction(
            label=label,
            score=score,
            index=int(best[0]),
            known=label in accepted,
            topk=topk,
            accepted=accepted,
            source=source,
        )

    def threshold_of(self, label: str) -> float:
        """Return the least score with which a class is accepted."""
        if self.threshold is not None:
            return self.threshold
        return self.calibration.class_thresholds.get(label, self.calibration.threshold)
