"""Fit, on labelled images run through the built engine, what turns its logits into probabilities and rejections.

Quantization shifts the temperature, so it is fitted after it. What is fitted is judged on images that it was not fitted
on, and kept only where it is no worse than what the head has.

Source of the temperature: Guo et al., On calibration of modern neural networks, arXiv:1706.04599, section 4.2; for
independent classes the same with the binary cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from p4q_edge.runtime.artifacts import Calibration, EngineHead
from p4q_edge.runtime.classification.predictions import probabilities
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.statistics import metrics

MIN_CLASS_SAMPLES = 20
"""A class with fewer answers keeps the global threshold."""
MIN_SAMPLES = 10
FOLDS = 5
_SEED = 0  # of the folds; fixed so that a fit says the same twice
_LOW, _HIGH = 1e-3, 1e3


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How thresholds are chosen.

    Attributes:
        accuracy: least accuracy of accepted answers; without images of unknown classes it decides the threshold.
        per_class: fit a threshold for each class with enough answers.
        max_unknown: most of the labelled images whose answers thresholds may make unknown.
    """

    accuracy: float = 0.95
    per_class: bool = False
    max_unknown: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.accuracy <= 1:
            raise UsageError(f"the accuracy of accepted answers must be above 0 and at most 1, got {self.accuracy}.")
        if not 0 <= self.max_unknown <= 1:
            raise UsageError(
                f"max_unknown: the share of unknown answers must be between 0 and 1, got {self.max_unknown}."
            )


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """What a calibration does on images that it was not fitted on.

    Attributes:
        ece: expected calibration error, 0 to 1.
        unknown: share of the labelled images whose answer stays below its threshold.
        accepted_accuracy: share of right answers among the others; 0 if there are none.
        unknown_rejected: share of images of unknown classes that are rejected; None without any.
    """

    ece: float
    unknown: float
    accepted_accuracy: float
    unknown_rejected: float | None = None


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """A calibration that is no worse than that of the head, and what both do.

    Attributes:
        calibration: fitted on all images, or that of the head where nothing better was found.
        samples: number of labelled images.
        folds: parts of the images; each is judged with what was fitted on the others.
        accuracy: share of right answers, whatever their score; no temperature changes it.
        before: what the calibration of the head does.
        after: what the new one does, cross-validated.
        refused: what was fitted and not taken, and why.
        unknown_samples: number of images of unknown classes.
    """

    calibration: Calibration
    samples: int
    folds: int
    accuracy: float
    before: Scores
    after: Scores
    refused: tuple[str, ...] = ()
    unknown_samples: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Logits of labelled images (n, classes) with labels (n,), and of images of unknown classes (m, classes)."""

    logits: np.ndarray
    labels: np.ndarray
    unknown: np.ndarray

    def part(self, labelled: np.ndarray, unknown: np.ndarray) -> Samples:
        """Return those of two masks, (n,) and (m,) bool."""
        return Samples(logits=self.logits[labelled], labels=self.labels[labelled], unknown=self.unknown[unknown])


_Make = Callable[[Samples], Calibration]


def require_calibratable(labels: np.ndarray) -> None:
    """Refuse images, before an engine is run on them, from which nothing can be fitted.

    Args:
        labels: of the images, `(images,)`.

    Raises:
        InputError: too few images, or all are of one class.
    """
    classes = len(set(labels.tolist()))
    if len(labels) < MIN_SAMPLES or classes < 2:
        raise InputError(
            f"expected at least {MIN_SAMPLES} images of two or more classes to calibrate with, got {len(labels)} of "
            f"{classes}. Add images."
        )


def fit(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    head: EngineHead,
    unknown: np.ndarray | None = None,
    options: FitOptions = FitOptions(),
) -> Fit:
    """Fit temperature and thresholds, and take of these what is better than what the head has.

    The temperature is taken if it lowers the cross-validated calibration error. Thresholds are taken if, also
    cross-validated, they come nearer to the wanted accuracy of accepted answers, or accept more at the same, and make
    no more answers unknown than the options allow.

    Args:
        logits: (n, classes) of labelled images.
        labels: (n,) class indices.
        head: gives class names and the calibration until now.
        unknown: (m, classes) logits of images that show none of the classes, or None.
        options: how thresholds are chosen. With `unknown`, a threshold separates best: it has the largest mean of the
            share of accepted known and of rejected unknown images.

    Raises:
        InputError: too few images.
    """
    require_calibratable(labels)
    nothing = np.empty((0, logits.shape[1]))
    samples = Samples(logits=logits, labels=labels, unknown=nothing if unknown is None else unknown)
    before = _cross_validated(samples, lambda _: head.calibration, head.class_names)
    make, after, refused = _best(samples, head, before, options)
    return Fit(
        calibration=make(samples),
        samples=len(labels),
        folds=FOLDS,
        accuracy=float((logits.argmax(axis=1) == labels).mean()),
        before=before,
        after=after,
        refused=refused,
        unknown_samples=len(samples.unknown),
    )


def _best(
    samples: Samples, head: EngineHead, before: Scores, options: FitOptions
) -> tuple[_Make, Scores, tuple[str, ...]]:
    """Return how the best calibration is made, what it does, and what was not taken, with reasons."""
    current, names = head.calibration, head.class_names

    def unchanged(_: Samples) -> Calibration:
        return msgspec.structs.replace(current, threshold=0.0, class_thresholds={})

    def warmed(part: Samples) -> Calibration:
        temperature = fit_score_temperature(part.logits, part.labels, activation=current.activation)
        return Calibration(activation=current.activation, temperature=temperature)

    def whole(part: Samples) -> Calibration:
        return _with_thresholds(base(part), part, names, options)

    refused: list[str] = []
    base: _Make = warmed
    if not (ece := _cross_validated(samples, warmed, names).ece) < before.ece:
        taken = warmed(samples).temperature
        refused.append(f"temperature {taken:.3g}: the error would go {before.ece:.3f} -> {ece:.3f}")
        base = unchanged
    after = _cross_validated(samples, whole, names)
    better = _merit(after, options) > _merit(before, options)
    equal = _merit(after, options) == _merit(before, options) and after.ece < before.ece
    if after.unknown <= options.max_unknown and (better or equal):
        return whole, after, tuple(refused)
    if whole(samples) != base(samples):
        refused.append(_why(before, after, options))
    if base is warmed and unchanged(samples) == current:
        return base, _cross_validated(samples, base, names), tuple(refused)
    # Thresholds are probabilities: under another temperature the old ones would mean something else.
    return lambda _: current, before, tuple(refused)


def _merit(scores: Scores, options: FitOptions) -> tuple[float, float]:
    """Return what is compared, the larger the better: how near to the aim, then how many answers are accepted."""
    if scores.unknown_rejected is not None:
        return (1 - scores.unknown + scores.unknown_rejected) / 2, 0.0
    return min(scores.accepted_accuracy, options.accuracy), 1 - scores.unknown


def _why(before: Scores, after: Scores, options: FitOptions) -> str:
    if after.unknown > options.max_unknown:
        return (
            f"thresholds: {after.unknown:.1%} of the answers would become unknown, more than --max-unknown "
            f"{options.max_unknown:g}"
        )
    if after.unknown_rejected is not None and before.unknown_rejected is not None:
        return (
            f"thresholds: they would reject {before.unknown_rejected:.1%} -> {after.unknown_rejected:.1%} of the "
            f"unknown and {before.unknown:.1%} -> {after.unknown:.1%} of the known images"
        )
    return (
        f"thresholds: of the accepted answers {before.accepted_accuracy:.1%} -> {after.accepted_accuracy:.1%} would be "
        f"right, with {before.unknown:.1%} -> {after.unknown:.1%} unknown"
    )


def _with_thresholds(base: Calibration, part: Samples, names: Sequence[str], options: FitOptions) -> Calibration:
    """Return a calibration with the thresholds that fit images best."""
    scores, best = _answers(part.logits, base)
    unknown, unknown_best = _answers(part.unknown, base)
    correct = best == part.labels
    by_class: dict[str, float] = {}
    if options.per_class:
        for index, name in enumerate(names):
            own = best == index
            if own.sum() >= MIN_CLASS_SAMPLES:
                by_class[name] = _threshold(scores[own], correct[own], unknown[unknown_best == index], options)
    threshold = _threshold(scores, correct, unknown, options)
    return msgspec.structs.replace(base, threshold=threshold, class_thresholds=by_class)


def _cross_validated(samples: Samples, make: _Make, names: Sequence[str]) -> Scores:
    """Return what calibrations do that are made from the other folds of the images."""
    count, strangers = len(samples.labels), len(samples.unknown)
    scores, correct, accepted = np.empty(count), np.empty(count, bool), np.empty(count, bool)
    rejected = np.empty(strangers, bool)
    fold, unknown_fold = _folds(samples.labels), _folds(np.zeros(strangers, np.int64))
    for index in range(FOLDS):
        own, strange = fold == index, unknown_fold == index
        calibration = make(samples.part(~own, ~strange))
        limits = np.array([calibration.class_thresholds.get(name, calibration.threshold) for name in names])
        scores[own], best = _answers(samples.logits[own], calibration)
        correct[own], accepted[own] = best == samples.labels[own], scores[own] >= limits[best]
        unknown, unknown_best = _answers(samples.unknown[strange], calibration)
        rejected[strange] = unknown < limits[unknown_best]
    return Scores(
        ece=float(metrics.expected_calibration_error(metrics.reliability_bins(scores, correct))),
        unknown=float(1 - accepted.mean()),
        accepted_accuracy=float(correct[accepted].mean()) if accepted.any() else 0.0,
        unknown_rejected=float(rejected.mean()) if strangers else None,
    )


def _folds(labels: np.ndarray) -> np.ndarray:
    """Return the fold of each of (n,) images; those of a class are spread evenly."""
    order = np.random.default_rng(_SEED).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % FOLDS
    return fold


def fit_score_temperature(logits: np.ndarray, labels: np.ndarray, *, activation: str) -> float:
    """Return the temperature, in [0.001, 1000], that minimizes the cross-entropy of logits (n, classes).

    Answers without an error do not say how sure they may be, and would give the least temperature; of these the closest
    one is counted once more, as wrong.
    """
    if activation == "softmax":
        if len(labels) and logits.shape[1] > 1 and (logits.argmax(axis=1) == labels).all():
            best = np.sort(logits, axis=1)
            closest = int(np.argmin(best[:, -1] - best[:, -2]))
            logits = np.concatenate([logits, logits[closest : closest + 1]])
            labels = np.append(labels, np.argsort(logits[closest])[-2])
        return metrics.fit_temperature(logits, labels, low=_LOW, high=_HIGH)
    values = logits.astype(np.float64)
    wanted = np.eye(values.shape[1])[labels]

    def slope(inverse: float) -> float:
        chance = probabilities(values * inverse, Calibration(activation="sigmoid"))
        return float(((chance - wanted) * values).mean())

    return metrics.least_temperature(slope, low=_LOW, high=_HIGH)


def _answers(logits: np.ndarray, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """Return score (n,) and index (n,) of the best class of each row."""
    if not len(logits):
        return np.empty(0), np.empty(0, np.int64)
    chances = probabilities(logits, calibration)
    best = chances.argmax(axis=1)
    return chances[np.arange(len(best)), best], best


def _threshold(scores: np.ndarray, correct: np.ndarray, unknown: np.ndarray, options: FitOptions) -> float:
    """Return the score from which answers are accepted: the least that fits, 1 where none does."""
    candidates = np.concatenate([[0.0], np.unique(np.concatenate([scores, unknown]))])
    if len(unknown):
        known_share = (scores[None, :] >= candidates[:, None]).mean(axis=1)
        unknown_share = (unknown[None, :] < candidates[:, None]).mean(axis=1)
        return float(candidates[int(np.argmax(known_share + unknown_share))])
    for candidate in candidates:
        if correct[scores >= candidate].mean() >= options.accuracy:
            return float(candidate)
    return 1.0
