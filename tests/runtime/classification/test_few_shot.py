"""The arithmetic of learning class rows from a few embeddings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4q_edge.runtime.classification import few_shot
from p4q_edge.runtime.classification.few_shot import (
    LearningProblem,
    Regularization,
    calibrated_loss,
    fit_rows,
    learn_rows,
    minimize,
    start_rows,
)
from p4q_edge.runtime.statistics import metrics

CHOICE = Regularization(mixing=1.0, pull=0.01)


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def problem(seed: int, *, classes: int = 4, shots: int = 4, dim: int = 12, noise: float = 0.3) -> LearningProblem:
    """Embeddings in a cone around one direction, as CLIP's are, and text embeddings that know a little."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(classes, dim))
    cone = 2 * generator.normal(size=dim)
    images = np.repeat(centers, shots, axis=0) + cone + noise * generator.normal(size=(classes * shots, dim))
    text = centers + 2 * generator.normal(size=(classes, dim))
    return LearningProblem(
        embedding=unit(images),
        labels=np.repeat(np.arange(classes), shots),
        text=unit(text),
        known=np.ones(classes, bool),
        scale=20.0,
    )


def loss(given: LearningProblem, rows: np.ndarray, start: np.ndarray, pull: float) -> float:
    """What `fit_rows` minimizes, written out, for rows that were moved by the shortest way."""
    chances = metrics.log_softmax(given.scale * given.embedding @ rows.T)
    cross_entropy = -chances[np.arange(len(given.labels)), given.labels].sum()
    # The shortest r with (start + r) / |start + r| = rows.
    moved = (start * rows).sum(axis=1, keepdims=True) * rows - start
    return float(cross_entropy + pull / 2 * (given.scale * moved**2 * given.scale).sum())


@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([3e-4, 0.01, 0.3]))
@settings(max_examples=25, deadline=None)
def test_learning_lowers_the_loss_and_keeps_rows_at_length_1(seed: int, mixing: float, pull: float) -> None:
    asked, choice = problem(seed), Regularization(mixing=mixing, pull=pull)
    start, rows = start_rows(asked, mixing), fit_rows(asked, choice)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-9)
    assert loss(asked, rows, start, pull) <= loss(asked, start, start, pull) + 1e-9


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_gradient_is_that_of_the_loss(seed: int) -> None:
    asked, generator = problem(seed), np.random.default_rng(seed)
    value = few_shot._objective(asked, start_rows(asked, 1.0), pull=2.0)
    point, direction = generator.normal(size=(2, asked.text.size)) * 0.3
    step = 1e-6
    numeric = (value(point + step * direction)[0] - value(point - step * direction)[0]) / (2 * step)
    assert numeric == pytest.approx(float(value(point)[1] @ direction), rel=1e-4, abs=1e-6)


@given(st.integers(0, 10_000), st.permutations(range(4)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_classes_and_photographs_decides_nothing(seed: int, order: list[int]) -> None:
    asked, shuffle = problem(seed), np.random.default_rng(seed).permutation(16)
    place = np.argsort(order)
    other = replace(
        asked, embedding=asked.embedding[shuffle], labels=place[asked.labels[shuffle]], text=asked.text[order]
    )
    np.testing.assert_allclose(fit_rows(other, CHOICE), fit_rows(asked, CHOICE)[order], atol=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_frozen_rows_are_the_same_bits_and_only_others_are_learned(seed: int, frozen: int) -> None:
    asked = replace(problem(seed), frozen=frozen)
    learned = learn_rows(asked)
    np.testing.assert_array_equal(learned.rows[:frozen], asked.text[:frozen])
    assert (learned.rows[frozen:] != asked.text[frozen:]).any()


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_a_strong_pull_keeps_the_start_and_a_weak_one_follows_the_photographs(seed: int) -> None:
    asked = problem(seed, noise=0.05)
    start = start_rows(asked, 1.0)
    np.testing.assert_allclose(fit_rows(asked, Regularization(mixing=1.0, pull=1e9)), start, atol=1e-4)
    weak = fit_rows(asked, Regularization(mixing=1.0, pull=1e-6))
    assert (asked.embedding @ weak.T).argmax(axis=1).tolist() == asked.labels.tolist()


def test_what_is_common_to_all_images_does_not_move_the_start() -> None:
    asked = problem(1)
    moved = replace(asked, embedding=asked.embedding + np.full(12, 0.7))
    np.testing.assert_allclose(start_rows(moved, 1.0), start_rows(asked, 1.0), atol=1e-9)


def test_a_class_without_a_text_embedding_starts_at_its_photographs() -> None:
    asked = replace(problem(2), known=np.array([True, True, True, False]))
    rows = start_rows(asked, 1.0)
    changed = replace(asked, text=np.concatenate([asked.text[:3], -asked.text[3:]]))
    np.testing.assert_array_equal(start_rows(changed, 1.0), rows)
    assert (asked.embedding[asked.labels == 3] @ rows.T).argmax(axis=1).tolist() == [3] * 4


def test_held_out_answers_do_not_know_their_own_photograph() -> None:
    asked = problem(3, shots=2)
    first = learn_rows(asked)
    assert first.folds == 2
    assert sorted(first.held_out.tolist()) == list(range(8))
    # By hand: learned from the other photograph of each class alone.
    half = asked.part(np.arange(8) % 2 == 1)
    expected = asked.scale * asked.embedding[[0]] @ fit_rows(half, first.choice).T
    np.testing.assert_allclose(first.logits[first.held_out.tolist().index(0)], expected[0])


def test_single_photographs_are_learned_from_and_never_held_out() -> None:
    learned = learn_rows(problem(4, shots=1))
    assert (learned.folds, len(learned.held_out), learned.choice.mixing) == (0, 0, few_shot.LEAST_MIXING)
    asked = problem(4, shots=3)
    taken = np.array([True, False, False, *[True] * 9])
    assert 0 not in learn_rows(asked.part(taken)).held_out


def test_the_choice_follows_what_is_held_out() -> None:
    generator = np.random.default_rng(0)
    # Text embeddings that are right against photographs that tell nothing, and the other way round.
    classes = unit(generator.normal(size=(5, 16)))
    noise = LearningProblem(
        embedding=unit(np.repeat(classes, 6, axis=0) + 1.2 * generator.normal(size=(30, 16))),
        labels=np.repeat(np.arange(5), 6),
        text=classes,
        known=np.ones(5, bool),
        scale=20.0,
    )
    clear = replace(problem(5, classes=5, shots=6, dim=16, noise=0.1), text=unit(generator.normal(size=(5, 16))))
    assert learn_rows(noise).choice.pull > learn_rows(clear).choice.pull
    assert calibrated_loss(learn_rows(clear).logits, clear.labels[learn_rows(clear).held_out]) < 0.1


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_a_quadratic_is_minimized(seed: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    root, target = generator.normal(size=(size, size)), generator.normal(size=size)
    curvature = root @ root.T + np.eye(size)
    found = minimize(
        lambda x: (float((x - target) @ curvature @ (x - target)) / 2, curvature @ (x - target)),
        np.zeros(size),
        steps=100,
    )
    np.testing.assert_allclose(found, target, atol=1e-2)
