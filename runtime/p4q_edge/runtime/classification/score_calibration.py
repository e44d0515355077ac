"""Fit, on labelled images run through the built engine, what turns its logits into probabilities and rejections.

Quantization shifts the temperature, so it is fitted after it. Source of the temperature: Guo et al., On calibration of
modern neural networks, arXiv:1706.04599, section 4.2; for independent classes the same with the binary cross-entropy.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from p4q_edge.runtime.artifacts import BUILT_IN, Calibration, Card, Head, find_head, read_card, stored_heads, write_card
from p4q_edge.runtime.classification.predictions import probabilities
from p4q_edge.runtime.engines import Engine, load_engine
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images import batched, expand, load_image, preprocess, read_class_folders
from p4q_edge.runtime.statistics import metrics
from p4q_edge.runtime.storage import atomic_write

logger = logging.getLogger(__name__)

MIN_CLASS_SAMPLES = 20
"""A class with fewer answers keeps the global threshold."""
MIN_SAMPLES = 10
_BATCH = 8
_SEED = 0  # of the folds; fixed so that a fit says the same twice
_LOW, _HIGH = 1e-3, 1e3


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How thresholds are chosen.

    Attributes:
        accuracy: least accuracy of accepted answers; without images of unknown classes it decides the threshold.
        per_class: fit a threshold for each class with enough answers.
    """

    accuracy: float = 0.95
    per_class: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.accuracy <= 1:
            raise UsageError(f"the accuracy of accepted answers must be between 0 and 1, got {self.accuracy}.")


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted calibration and what it does.

    Attributes:
        calibration: what was fitted, on all images.
        samples: number of labelled images.
        ece_before: expected calibration error at temperature 1.
        ece_after: the same where each half of the images is judged with the temperature of the other half.
        accepted: share of the labelled images whose answer reaches its threshold.
        accepted_accuracy: share of right answers among these.
        unknown_samples: number of images of unknown classes.
        unknown_rejected: share of these that are rejected; None without any.
    """

    calibration: Calibration
    samples: int
    ece_before: float
    ece_after: float
    accepted: float
    accepted_accuracy: float
    unknown_samples: int = 0
    unknown_rejected: float | None = None


def fit(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    head: Head | Card,
    unknown: np.ndarray | None = None,
    options: FitOptions = FitOptions(),
) -> Fit:
    """Fit temperature and thresholds.

    Args:
        logits: (n, classes) of labelled images.
        labels: (n,) class indices.
        head: gives class names and activation.
        unknown: (m, classes) logits of images that show none of the classes, or None.
        options: how thresholds are chosen. With `unknown`, a threshold separates best: it has the largest mean of the
            share of accepted known and of rejected unknown images.

    Raises:
        InputError: too few images.
    """
    if len(labels) < MIN_SAMPLES or len(set(labels.tolist())) < 2:
        raise InputError(
            f"expected at least {MIN_SAMPLES} images of two or more classes to calibrate with, got {len(labels)}. "
            "Add images."
        )
    activation = head.calibration.activation
    temperature = fit_temperature(logits, labels, activation=activation)
    base = Calibration(activation=activation, temperature=temperature)
    scores, best = _answers(logits, base)
    unknown_scores, unknown_best = _answers(np.empty((0, logits.shape[1])) if unknown is None else unknown, base)
    correct = best == labels
    threshold = _threshold(scores, correct, unknown_scores, options)
    by_class: dict[str, float] = {}
    if options.per_class:
        for index, name in enumerate(head.class_names):
            own = best == index
            if own.sum() >= MIN_CLASS_SAMPLES:
                by_class[name] = _threshold(scores[own], correct[own], unknown_scores[unknown_best == index], options)
    limits = np.array([by_class.get(name, threshold) for name in head.class_names])
    accepted = scores >= limits[best]
    before, after = _errors(logits, labels, activation=activation)
    return Fit(
        calibration=msgspec.structs.replace(base, threshold=threshold, class_thresholds=by_class),
        samples=len(labels),
        ece_before=before,
        ece_after=after,
        accepted=float(accepted.mean()),
        accepted_accuracy=float(correct[accepted].mean()) if accepted.any() else 0.0,
        unknown_samples=len(unknown_scores),
        unknown_rejected=None if unknown is None else float((unknown_scores < limits[unknown_best]).mean()),
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray, *, activation: str) -> float:
    """Return the temperature, in [0.001, 1000], that minimizes the cross-entropy of logits (n, classes)."""
    if activation == "softmax":
        return metrics.fit_temperature(logits, labels, low=_LOW, high=_HIGH)
    values = logits.astype(np.float64)
    wanted = np.eye(values.shape[1])[labels]

    def slope(inverse: float) -> float:
        chance = probabilities(values * inverse, Calibration(activation="sigmoid"))
        return float(((chance - wanted) * values).mean())

    left, right = math.log(1 / _HIGH), math.log(1 / _LOW)
    if slope(math.exp(right)) <= 0:
        return _LOW
    if slope(math.exp(left)) >= 0:
        return _HIGH
    for _ in range(80):
        middle = (left + right) / 2
        left, right = (middle, right) if slope(math.exp(middle)) < 0 else (left, middle)
    return math.exp(-(left + right) / 2)


def _answers(logits: np.ndarray, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """Return score (n,) and index (n,) of the best class of each row."""
    if not len(logits):
        return np.empty(0), np.empty(0, np.int64)
    chances = probabilities(logits, calibration)
    best = chances.argmax(axis=1)
    return chances[np.arange(len(best)), best], best


def _threshold(scores: np.ndarray, correct: np.ndarray, unknown: np.ndarray, options: FitOptions) -> float:
    """Return the score from which answers are accepted; accepting all is preferred among equals."""
    candidates = np.concatenate([[0.0], np.unique(np.concatenate([scores, unknown]))])
    if len(unknown):
        known_share = (scores[None, :] >= candidates[:, None]).mean(axis=1)
        unknown_share = (unknown[None, :] < candidates[:, None]).mean(axis=1)
        return float(candidates[int(np.argmax(known_share + unknown_share))])
    for candidate in candidates:
        if correct[scores >= candidate].mean() >= options.accuracy:
            return float(candidate)
    logger.warning("no threshold reaches an accuracy of %.3f; every answer is rejected", options.accuracy)
    return 1.0


def _errors(logits: np.ndarray, labels: np.ndarray, *, activation: str) -> tuple[float, float]:
    """Return the expected calibration error at temperature 1, and cross-fitted over two halves."""
    order = np.random.default_rng(_SEED).permutation(len(labels))
    halves = order[::2], order[1::2]
    after = np.empty(len(labels))
    for fitted, judged in (halves, halves[::-1]):
        temperature = fit_temperature(logits[fitted], labels[fitted], activation=activation)
        calibration = Calibration(activation=activation, temperature=temperature)  # type: ignore[arg-type]
        after[judged] = _answers(logits[judged], calibration)[0]
    before, best = _answers(logits, Calibration(activation=activation))  # type: ignore[arg-type]
    correct = best == labels

    def error(confidence: np.ndarray) -> float:
        return float(metrics.expected_calibration_error(metrics.reliability_bins(confidence, correct)))

    return error(before), error(after)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to calibrate with which images.

    Attributes:
        engine: the engine, with its card.
        data: folder of labelled images, one folder a class.
        head: name of the head; the built-in one is that of the card.
        unknown: folder of images that show none of the classes, or None.
        learned: SHA-256 of images that the model was learned from; they are left out.
        other_names: other names of the head's classes in the same order, such as the folders learned from.
    """

    engine: Path
    data: Path
    head: str = BUILT_IN
    unknown: Path | None = None
    learned: frozenset[str] = frozenset()
    other_names: tuple[str, ...] = ()


def calibrate(request: Request, options: FitOptions) -> Fit:
    """Run labelled images through an engine, fit, and write the result into the card or the head's file.

    Raises:
        InputError: the images do not fit the classes, or are too few.
        ArtifactError: engine, card and head do not fit each other.
    """
    card = read_card(request.engine)
    head = card if request.head == BUILT_IN else find_head(request.engine, request.head)
    images = read_class_folders(
        request.data,
        class_names=head.class_names,
        spec=card.preprocess,
        learned=request.learned,
        other_names=request.other_names,
    )
    engine = load_engine(request.engine, card)
    try:
        rows = [
            _logits(engine, images.pixels[slice(start, start + _BATCH)], head)
            for start in range(0, len(images.labels), _BATCH)
        ]
        unknown = None if request.unknown is None else _unknown_logits(engine, request.unknown, card, head)
    finally:
        engine.close()
    fitted = fit(np.concatenate(rows), images.labels, head=head, unknown=unknown, options=options)
    _write(request, head, fitted.calibration)
    return fitted


def _logits(engine: Engine, batch: np.ndarray, head: Head | Card) -> np.ndarray:
    if isinstance(head, Head):
        return head.apply(engine.run(batch, ("features",))["features"])[0]
    return engine.run(batch, ("logits",))["logits"]


def _unknown_logits(engine: Engine, folder: Path, card: Card, head: Head | Card) -> np.ndarray:
    prepared = (preprocess(load_image(image), card.preprocess) for image in expand(folder))
    return np.concatenate([_logits(engine, np.stack(batch), head) for batch in batched(prepared, _BATCH)])


def _write(request: Request, head: Head | Card, calibration: Calibration) -> None:
    if isinstance(head, Card):
        write_card(request.engine, msgspec.structs.replace(head, calibration=calibration), force=True)
        return
    changed = Head(**{**vars(head), "calibration": calibration})
    atomic_write(stored_heads(request.engine)[request.head], changed.to_bytes(), force=True)
