"""Figures of merit for classifiers, in NumPy, each with its n and an interval where one exists.

Logits are (n, classes) float, already multiplied by the logit scale; labels are (n,) integers; `correct`
arrays are (n,) bool. All arithmetic is float64. Proportions carry Wilson intervals, other means bootstrap ones.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.statistics.binomial import lower_tail

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
BOOTSTRAP_ROUNDS = 2000
# Numbers that a bootstrap holds at once, 64 MB of them.
MAX_DRAWN = 8_000_000
# Largest number of logits that are worked on at once: those of many images and classes together would need gigabytes.
MAX_LOGITS = 1 << 22
# 15 equal-width bins are the common choice for ECE (Guo et al. 2017), so that figures compare with papers.
RELIABILITY_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over n samples and its interval.

    Attributes:
        value: the mean; a proportion lies in [0, 1], a difference in [-1, 1].
        n: number of samples.
        low, high: bounds of the interval with `confidence`.
        method: how the interval was made, `wilson`, `bootstrap` or `delong`.
    """

    value: float
    n: int
    low: float
    high: float
    method: str
    confidence: float = CONFIDENCE


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Exact paired test of two classifiers on the same images.

    Attributes:
        only_first, only_second: images that only the first or only the second classifier got right.
        p_value: two-sided; the chance of a split at least so uneven if both were equally good.
    """

    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True, kw_only=True)
class CosineSummary:
    """Cosine similarity of n pairs of rows: smallest, mean, median and first percentile, with bootstrap intervals."""

    min: float
    mean: Estimate
    median: Estimate
    p1: Estimate
    n: int


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """One confidence bin (low, high]: how many images, their mean confidence and their accuracy."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def top_k(logits: Floats, k: int) -> npt.NDArray[np.int64]:
    """Return the (n, min(k, classes)) class indices, largest logit first; ties go to the lower index.

    Raises:
        ValueError: logits are not (n, classes), or k < 1.
    """
    if logits.ndim != 2 or k < 1:
        raise ValueError(f"expected logits (n, classes) and k >= 1, got shape {logits.shape} and k = {k}")
    found = np.empty((logits.shape[0], min(k, logits.shape[1])), np.int64)
    for rows in _blocks(logits):
        found[rows] = np.argsort(-logits[rows].astype(np.float64), axis=1, kind="stable")[:, :k]
    return found


def top_k_correct(logits: Floats, labels: Integers, k: int = 1) -> Bools:
    """Return (n,) bool: whether the label is among the k largest logits."""
    _same_length(logits, labels)
    hits: Bools = (top_k(logits, k) == np.asarray(labels)[:, None]).any(axis=1)
    return hits


def wilson_interval(successes: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.

    Raises:
        ValueError: n < 1, or successes outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the bound is exact in real arithmetic; rounding must not move it past the estimate.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def proportion(hits: Bools) -> Estimate:
    """Return the share of true values with its Wilson interval."""
    return _share(int(np.count_nonzero(hits)), int(hits.size))


def _share(successes: int, n: int) -> Estimate:
    low, high = wilson_interval(successes, n)
    return Estimate(value=successes / n, n=n, low=low, high=high, method="wilson")


def agreement(first: Integers, second: Integers) -> Estimate:
    """Return the share of images that two (n,) arrays of predictions name alike."""
    _same_length(first, second)
    return proportion(np.asarray(first) == np.asarray(second))


def per_class_accuracy(correct: Bools, labels: Integers, num_classes: int) -> npt.NDArray[np.float64]:
    """Return (num_classes,) accuracy of each class; NaN for a class without images."""
    _same_length(correct, labels)
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    hits = np.bincount(labels, weights=correct.astype(np.float64), minlength=num_classes)
    accuracy: npt.NDArray[np.float64] = np.divide(hits, counts, out=np.full(num_classes, np.nan), where=counts > 0)
    return accuracy


def class_estimates(correct: Bools, labels: Integers, num_classes: int) -> tuple[Estimate | None, ...]:
    """Return the accuracy of each class with its Wilson interval; None for a class without images."""
    _same_length(correct, labels)
    counts = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(np.asarray(labels)[correct], minlength=num_classes)
    return tuple(_share(int(hit), int(n)) if n else None for hit, n in zip(hits, counts, strict=True))


def mean_per_class(correct: Bools, labels: Integers, num_classes: int, *, generator: np.random.Generator) -> Estimate:
    """Return the mean of the per-class accuracies; the interval resamples images within each class."""
    accuracy = per_class_accuracy(correct, labels, num_classes)
    present = np.flatnonzero(~np.isnan(accuracy))
    counts = np.bincount(labels, minlength=num_classes)[present]
    draws = generator.binomial(counts, accuracy[present], size=(BOOTSTRAP_ROUNDS, present.size)) / counts
    low, high = _percentiles(draws.mean(axis=1))
    value = float(accuracy[present].mean())
    return Estimate(value=value, n=int(labels.size), low=min(low, value), high=max(high, value), method="bootstrap")


def confusion_matrix(labels: Integers, predictions: Integers, num_classes: int) -> npt.NDArray[np.int64]:
    """Return (num_classes, num_classes) counts, rows the labels, columns the predictions."""
    _same_length(labels, predictions)
    flat = np.asarray(labels, dtype=np.int64) * num_classes + np.asarray(predictions, dtype=np.int64)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def paired_difference(first: npt.ArrayLike, second: npt.ArrayLike, *, generator: np.random.Generator) -> Estimate:
    """Return the mean of second - first over the same n images, with a paired bootstrap interval."""
    delta = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    if delta.ndim != 1 or delta.size == 0:
        raise ValueError(f"expected two (n,) arrays with n >= 1, got a difference of shape {delta.shape}")
    return bootstrap_mean(delta, generator=generator)


def bootstrap_mean(values: npt.NDArray[np.float64], *, generator: np.random.Generator) -> Estimate:
    """Return the mean of (n,) values with a percentile bootstrap interval.

    Resampling n images is a multinomial draw over the distinct values, which is cheap for -1, 0, 1.
    """
    distinct, counts = np.unique(values, return_counts=True)
    n = int(values.size)
    # In blocks: all rounds of fifty thousand distinct values at once would take a gigabyte.
    block = max(1, MAX_DRAWN // distinct.size)
    sizes = [min(block, BOOTSTRAP_ROUNDS - start) for start in range(0, BOOTSTRAP_ROUNDS, block)]
    draws = [generator.multinomial(n, counts / n, size=size) @ distinct / n for size in sizes]
    low, high = _percentiles(np.concatenate(draws))
    mean = float(values.mean())
    return Estimate(value=mean, n=n, low=min(low, mean), high=max(high, mean), method="bootstrap")


def bootstrap_quantile(values: npt.NDArray[np.float64], share: float, *, generator: np.random.Generator) -> Estimate:
    """Return a quantile of (n,) values with a percentile bootstrap interval.

    Of n resampled images a binomial number lies below the quantile, so that the resampled quantile is the value of
    that rank.
    """
    n = int(values.size)
    ranks = np.minimum(generator.binomial(n, share, size=BOOTSTRAP_ROUNDS), n - 1)
    low, high = _percentiles(np.sort(values)[ranks])
    value = float(np.quantile(values, share))
    return Estimate(value=value, n=n, low=min(low, value), high=max(high, value), method="bootstrap")


def mcnemar_exact(first: Bools, second: Bools) -> McNemar:
    """Compare two (n,) `correct` arrays of the same images by the exact binomial test.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions, 1947.
    """
    _same_length(first, second)
    only_first = int(np.count_nonzero(first & ~second))
    only_second = int(np.count_nonzero(second & ~first))
    differing, fewer = only_first + only_second, min(only_first, only_second)
    return McNemar(only_first=only_first, only_second=only_second, p_value=min(1.0, 2 * lower_tail(fewer, differing)))


def cosine_rows(first: Floats, second: Floats) -> npt.NDArray[np.float64]:
    """Return (n,) cosine similarity of the rows of two (n, dim) arrays; two zero rows have 1, one has 0."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"expected two (n, dim) arrays of one shape, got {a.shape} and {b.shape}")
    norms_a, norms_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    both_zero = (norms_a == 0) & (norms_b == 0)
    unit_a = a / np.where(norms_a == 0, 1.0, norms_a)[:, None]
    unit_b = b / np.where(norms_b == 0, 1.0, norms_b)[:, None]
    cosine = np.clip((unit_a * unit_b).sum(axis=1), -1.0, 1.0)
    return np.where(both_zero, 1.0, cosine)


def cosine_summary(first: Floats, second: Floats, *, generator: np.random.Generator) -> CosineSummary:
    """Summarize the cosine similarity of the rows of two (n, dim) arrays."""
    cosine = cosine_rows(first, second)
    return CosineSummary(
        min=float(cosine.min()),
        mean=bootstrap_mean(cosine, generator=generator),
        median=bootstrap_quantile(cosine, 0.5, generator=generator),
        p1=bootstrap_quantile(cosine, 0.01, generator=generator),
        n=int(cosine.size),
    )


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Return (n, classes) log-probabilities."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def kl_divergence(*, reference: Floats, candidate: Floats) -> npt.NDArray[np.float64]:
    """Return (n,) KL(softmax(reference) || softmax(candidate)) in nats; both are (n, classes) logits."""
    if reference.shape != candidate.shape:
        raise ValueError(f"expected logits of one shape, got {reference.shape} and {candidate.shape}")
    divergence = np.empty(reference.shape[0])
    for rows in _blocks(reference):
        log_p, log_q = log_softmax(reference[rows]), log_softmax(candidate[rows])
        divergence[rows] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return np.maximum(divergence, 0.0)


def largest_difference(first: Floats, second: Floats) -> float:
    """Return the largest absolute difference of two (n, classes) logits."""
    return float(max(np.abs(first[rows] - second[rows]).max() for rows in _blocks(first)))


def confidences(logits: Floats) -> npt.NDArray[np.float64]:
    """Return (n,) the largest class probability of each row of (n, classes) logits."""
    largest = np.empty(logits.shape[0])
    for rows in _blocks(logits):
        largest[rows] = np.exp(log_softmax(logits[rows])).max(axis=1)
    return largest


def reliability_bins(confidence: Floats, correct: Bools, bins: int = RELIABILITY_BINS) -> tuple[ReliabilityBin, ...]:
    """Sort (n,) confidences in [0, 1] into equal-width bins (low, high]; 0 falls into the first.

    Raises:
        ValueError: a confidence outside [0, 1], or bins < 1.
    """
    _same_length(confidence, correct)
    values = np.asarray(confidence, dtype=np.float64)
    if bins < 1 or (values.size and (values.min() < 0 or values.max() > 1)):
        raise ValueError(f"expected bins >= 1 and confidences in [0, 1], got {bins} bins")
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = _bin_index(values, bins)
    counts = np.bincount(index, minlength=bins)
    safe = np.maximum(counts, 1)
    mean_confidence = np.bincount(index, weights=values, minlength=bins) / safe
    accuracy = np.bincount(index, weights=correct.astype(np.float64), minlength=bins) / safe
    return tuple(
        ReliabilityBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            count=int(counts[i]),
            confidence=float(mean_confidence[i]),
            accuracy=float(accuracy[i]),
        )
        for i in range(bins)
    )


def expected_calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """Return the mean of |accuracy - confidence| over bins, weighted by their counts, in [0, 1].

    Source: Guo et al., On calibration of modern neural networks, arXiv:1706.04599, eq. (3).
    """
    total = sum(b.count for b in bins)
    if total == 0:
        raise ValueError("expected at least one image in the bins")
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / total


def calibration_error(confidence: Floats, correct: Bools, *, generator: np.random.Generator) -> Estimate:
    """Return the expected calibration error of (n,) confidences with a bootstrap interval.

    Images are resampled as counts of (bin, correct) cells, with the mean confidence of each cell kept.
    """
    _same_length(confidence, correct)
    value = expected_calibration_error(reliability_bins(confidence, correct))
    index = _bin_index(np.asarray(confidence, dtype=np.float64), RELIABILITY_BINS)
    cell = 2 * index + np.asarray(correct, dtype=np.int64)
    counts = np.bincount(cell, minlength=2 * RELIABILITY_BINS)
    means = np.bincount(cell, weights=confidence, minlength=counts.size) / np.maximum(counts, 1)
    n = int(cell.size)
    draws = generator.multinomial(n, counts / n, size=BOOTSTRAP_ROUNDS)
    gap = draws * (np.tile([0.0, 1.0], RELIABILITY_BINS) - means)
    errors = np.abs(gap[:, ::2] + gap[:, 1::2]).sum(axis=1) / n
    low, high = _percentiles(errors)
    return Estimate(value=value, n=n, low=min(low, value), high=max(high, value), method="bootstrap")


def fit_temperature(logits: Floats, labels: Integers, *, low: float = 1e-3, high: float = 1e3) -> float:
    """Return the temperature T in [low, high] that minimizes the cross-entropy of softmax(logits / T).

    The loss is convex in 1/T, so its derivative has one sign change, found by bisection. A set
    that is classified without an error has no minimum and gets `low`.

    Source: Guo et al., arXiv:1706.04599, section 4.2.
    """
    _same_length(logits, labels)
    target = logits[np.arange(logits.shape[0]), labels].astype(np.float64)

    def slope(inverse: float) -> float:
        expected = np.empty(logits.shape[0])
        for rows in _blocks(logits):
            values = logits[rows].astype(np.float64)
            expected[rows] = (np.exp(log_softmax(values * inverse)) * values).sum(axis=1)
        return float((expected - target).mean())

    return least_temperature(slope, low=low, high=high)


def least_temperature(slope: Callable[[float], float], *, low: float, high: float) -> float:
    """Return the temperature T in [low, high] that minimizes a loss, convex in 1/T, from its derivative at 1/T."""
    left, right = math.log(1 / high), math.log(1 / low)
    if slope(math.exp(right)) <= 0:
        return low
    if slope(math.exp(left)) >= 0:
        return high
    for _ in range(80):
        middle = (left + right) / 2
        if middle in (left, right):  # no number lies between them
            break
        left, right = (middle, right) if slope(math.exp(middle)) < 0 else (left, middle)
    return math.exp(-(left + right) / 2)


def _blocks(logits: Floats) -> Iterator[slice]:
    """Yield rows of (n, classes) logits, few enough to be worked on at once."""
    step = max(1, MAX_LOGITS // max(1, logits.shape[1]))
    for first in range(0, logits.shape[0], step):
        yield slice(first, first + step)


def _bin_index(values: npt.NDArray[np.float64], bins: int) -> npt.NDArray[np.int64]:
    edges = np.linspace(0.0, 1.0, bins + 1)
    return np.clip(np.searchsorted(edges, values, side="left") - 1, 0, bins - 1).astype(np.int64)


def _percentiles(draws: npt.NDArray[np.float64]) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _same_length(first: npt.NDArray[np.generic], second: npt.NDArray[np.generic]) -> None:
    if first.shape[:1] != second.shape[:1] or first.shape[0] == 0:
        raise ValueError(f"expected n >= 1 rows in both arrays, got {first.shape} and {second.shape}")
