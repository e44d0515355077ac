"""Learn the class rows of a head from a few embeddings, in NumPy: a softmax that is held near where it starts.

A class that the base head knows by name starts at its text embedding, moved towards the mean of its photographs; one
that it does not know starts at that mean alone. From there the rows are learned, and a pull keeps them near their
start. How far the start is moved and how strong the pull is, held-out photographs decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from p4q_edge.runtime.statistics import metrics

MIXINGS = (1.0, 0.5, 2.0, 4.0)
"""How far the start is moved towards the photographs, in spreads of the text embeddings; the first unless chosen."""
PULLS = (0.01, 0.3, 0.1, 0.03, 0.003, 0.001, 0.0003)
"""Strengths of the pull to the start, in squared logits against the summed cross-entropy; the first unless chosen."""
LEAST_MIXING = 0.5
"""With one photograph of a class: nothing is held out then, and a single one says little."""
MAX_FOLDS = 4
STEPS = 25
TOLERANCE = 1e-7
"""Of the loss: a step that promises less is not taken."""
_MEMORY = 8
_SMALL = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class LearningProblem:
    """What rows are learned from; n photographs, c classes.

    Attributes:
        embedding: (n, dim) float64, rows of length 1.
        labels: (n,) int64, indices into the classes.
        text: (c, dim) float64, rows of length 1; what stands in rows that are not known is not read.
        known: (c,) bool, whether a class has a text embedding.
        frozen: the number of classes that come first and stay as they are; all of them are known.
        scale: factor between cosines and logits.
    """

    embedding: np.ndarray
    labels: np.ndarray
    text: np.ndarray
    known: np.ndarray
    frozen: int = 0
    scale: float

    def part(self, taken: np.ndarray) -> LearningProblem:
        """Return the problem with some of the photographs, (n,) bool."""
        return replace(self, embedding=self.embedding[taken], labels=self.labels[taken])


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """How far the start is moved towards the photographs, and how strongly rows are pulled to it."""

    mixing: float
    pull: float


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedRows:
    """Rows of all classes, and what was found on the way.

    Attributes:
        rows: (c, dim) float64 of length 1; the frozen ones unchanged.
        choice: how they were learned.
        folds: parts of the photographs that were held out in turn; 0: nothing could be held out.
        held_out: (m,) indices of the photographs that were held out.
        logits: (m, c) of these, by rows that were learned without them.
    """

    rows: np.ndarray
    choice: Regularization
    folds: int
    held_out: np.ndarray
    logits: np.ndarray


def learn_rows(problem: LearningProblem) -> LearnedRows:
    """Return the rows of all classes, with mixing and pull chosen on photographs that were held out."""
    folds = _folds(problem)
    held_out = np.concatenate([np.flatnonzero(fold) for fold in folds]) if folds else np.empty(0, np.int64)
    if not folds:
        choice = Regularization(mixing=LEAST_MIXING, pull=PULLS[0])
        nothing = np.empty((0, len(problem.text)))
        return LearnedRows(rows=fit_rows(problem, choice), choice=choice, folds=0, held_out=held_out, logits=nothing)
    tried: dict[Regularization, np.ndarray] = {}

    def loss(choice: Regularization) -> float:
        if choice not in tried:
            tried[choice] = np.concatenate([_answers(problem, fold, choice) for fold in folds])
        return calibrated_loss(tried[choice], problem.labels[held_out])

    pull = min(PULLS, key=lambda value: loss(Regularization(mixing=MIXINGS[0], pull=value)))
    mixing = min(MIXINGS, key=lambda value: loss(Regularization(mixing=value, pull=pull)))
    choice = Regularization(mixing=mixing, pull=pull)
    return LearnedRows(
        rows=fit_rows(problem, choice), choice=choice, folds=len(folds), held_out=held_out, logits=tried[choice]
    )


def calibrated_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy of logits (n, classes) under the temperature that suits them best."""
    temperature = metrics.fit_temperature(logits, labels, low=1e-2, high=1e2)
    chances = metrics.log_softmax(logits / temperature)
    return float(-chances[np.arange(len(labels)), labels].mean())


def start_rows(problem: LearningProblem, mixing: float) -> np.ndarray:
    """Return the rows (c, dim) that learning starts from; the frozen ones unchanged.

    The direction of a class is the mean of its embeddings, less the mean of all classes: what it has in common with
    the others tells nothing, and in CLIP that is most of it (the gap between images and texts). It is as long as text
    embeddings are far from their mean.
    """
    present = np.unique(problem.labels)
    means = np.stack([problem.embedding[problem.labels == label].mean(axis=0) for label in present])
    directions = means - means.mean(axis=0)
    texts = problem.text[problem.known]
    middle = texts.mean(axis=0) if len(texts) else np.zeros(problem.text.shape[1])
    spread = _root_mean_square(texts - middle) if len(texts) > 1 else 1.0
    directions *= spread / max(_root_mean_square(directions), _SMALL)
    rows = np.where(problem.known[:, None], problem.text, middle)
    for label, direction in zip(present, directions, strict=True):
        if label >= problem.frozen:
            rows[label] += (mixing if problem.known[label] else 1.0 + mixing) * direction
    return np.concatenate([problem.text[: problem.frozen], _unit(rows[problem.frozen :])])


def fit_rows(problem: LearningProblem, choice: Regularization) -> np.ndarray:
    """Return the rows (c, dim), of length 1, that minimize cross-entropy and pull together; the frozen ones unchanged.

    Minimized over r, the rows being (start + r) / |start + r|: the sum of the cross-entropies of
    `softmax(scale * embedding @ rows.T)` plus `pull / 2 * |scale * r|**2`, both divided by n.
    """
    start = start_rows(problem, choice.mixing)
    first, base = problem.frozen, start[problem.frozen :]
    value_of = _objective(problem, start, choice.pull * problem.scale**2)
    moved = minimize(value_of, np.zeros(base.size), steps=STEPS)
    return np.concatenate([start[:first], _unit(base + moved.reshape(base.shape))])


def _objective(
    problem: LearningProblem, start: np.ndarray, pull: float
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Return a function from how far the rows that are free have moved to the loss and its gradient."""
    count, first = len(problem.labels), problem.frozen
    base, picked = start[first:], np.arange(count)
    logits = problem.scale * problem.embedding @ start.T

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        moved = flat.reshape(base.shape)
        lengths = np.maximum(np.linalg.norm(base + moved, axis=1, keepdims=True), _SMALL)
        rows = (base + moved) / lengths
        logits[:, first:] = problem.scale * problem.embedding @ rows.T
        chances = metrics.log_softmax(logits)
        loss = -chances[picked, problem.labels].sum() + pull / 2 * (moved**2).sum()
        error = np.exp(chances)
        error[picked, problem.labels] -= 1.0
        slope = problem.scale * error[:, first:].T @ problem.embedding
        slope = (slope - (slope * rows).sum(axis=1, keepdims=True) * rows) / lengths + pull * moved
        return float(loss) / count, slope.ravel() / count

    return value


def minimize(value: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, *, steps: int) -> np.ndarray:
    """Return a point (size,) of a smaller value than the start, by L-BFGS, in a limited number of steps.

    Args:
        value: from a point to its value and gradient (size,).
        start: (size,).

    Source: Nocedal and Wright, Numerical Optimization, algorithm 7.4, with a line search that halves.
    """
    point, (best, slope) = start, value(start)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(steps):
        direction = -_two_loops(slope, pairs)
        descent = float(direction @ slope)
        if descent > -TOLERANCE:
            break
        length = 1.0 if pairs else min(1.0, 0.1 / float(np.linalg.norm(slope)))
        for _ in range(20):
            found, new_slope = value(point + length * direction)
            if found <= best + 1e-4 * length * descent:
                break
            length /= 2
        else:
            break
        step, change = length * direction, new_slope - slope
        if float(step @ change) > _SMALL:
            pairs = [*pairs[1 - _MEMORY :], (step, change)]
        point, best, slope = point + step, found, new_slope
    return point


def _two_loops(slope: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the gradient times an estimate of the inverse of the second derivative."""
    result, shares = slope.copy(), []
    for step, change in reversed(pairs):
        share = float(step @ result) / float(step @ change)
        shares.append(share)
        result -= share * change
    if pairs:
        step, change = pairs[-1]
        result *= float(step @ change) / float(change @ change)
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        result += (share - float(change @ result) / float(step @ change)) * step
    return result


def _folds(problem: LearningProblem) -> list[np.ndarray]:
    """Return which photographs (n,) bool are held out together; the only one of a class never is.

    Of classes of so few photographs as there are folds, that is leave-one-out.
    """
    counts = np.bincount(problem.labels, minlength=len(problem.text))
    learned = counts[problem.frozen :]
    most = int(learned.max(initial=0))
    if most < 2:
        return []
    folds = min(MAX_FOLDS, most)
    place = np.zeros(len(problem.labels), np.int64)
    for own in _classes_of(problem.labels):
        place[own] = np.arange(len(own)) % folds
    several = counts[problem.labels] > 1
    return [fold for fold in ((place == index) & several for index in range(folds)) if fold.any()]


def _classes_of(labels: np.ndarray) -> Iterator[np.ndarray]:
    for label in np.unique(labels):
        yield np.flatnonzero(labels == label)


def _answers(problem: LearningProblem, held_out: np.ndarray, choice: Regularization) -> np.ndarray:
    """Return the logits (m, c) of the photographs of a fold, by rows that were learned without them."""
    rows = fit_rows(problem.part(~held_out), choice)
    return np.asarray(problem.scale * problem.embedding[held_out] @ rows.T)


def _root_mean_square(rows: np.ndarray) -> float:
    return float(np.sqrt((rows**2).sum(axis=1).mean()))


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _SMALL))
