"""Scores that tell two kinds apart, and places of the right entries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from p4q_edge.runtime.statistics import auroc, first_ranks, ranking
from p4q_edge.runtime.statistics.metrics import proportion

SCORES = arrays.arrays(np.float64, st.integers(1, 30), elements=st.integers(-5, 5).map(float))


@given(SCORES, SCORES)
def test_the_area_is_the_share_of_pairs_in_order(positive: np.ndarray, negative: np.ndarray) -> None:
    pairs = np.sign(positive[:, None] - negative[None, :])
    found = auroc(positive, negative)
    assert found.value == pytest.approx(((pairs + 1) / 2).mean())
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.n == positive.size + negative.size
    assert auroc(negative, positive).value == pytest.approx(1 - found.value)


def test_order_alone_counts() -> None:
    generator = np.random.default_rng(0)
    positive, negative = generator.normal(1, 1, 50), generator.normal(0, 1, 70)
    assert auroc(np.exp(positive), np.exp(negative)) == auroc(positive, negative)
    assert auroc(positive + 100, negative).value == 1.0


def test_the_interval_holds_the_true_area_about_as_often_as_it_says() -> None:
    truth = 0.7602  # of two normal distributions one deviation apart: Phi(1 / sqrt(2))
    generator = np.random.default_rng(1)
    found = [auroc(generator.normal(1, 1, 80), generator.normal(0, 1, 60)) for _ in range(400)]
    assert 0.91 < np.mean([one.low <= truth <= one.high for one in found]) < 0.98


@pytest.mark.parametrize(("positive", "negative"), [(30, 8), (8, 30), (1, 9), (9, 1), (1, 1)])
def test_few_entries_in_one_order_leave_room_for_others(positive: int, negative: int) -> None:
    found = auroc(np.linspace(2, 3, positive), np.linspace(0, 1, negative))
    fewest = min(positive, negative)
    assert (found.value, found.high, found.method) == (1.0, 1.0, "wilson")
    assert found.low == pytest.approx(proportion(np.ones(fewest, np.bool_)).low)
    assert auroc(np.ones(4), np.ones(6)).method == "wilson"  # all alike: nothing is told apart


def test_a_kind_of_one_entry_has_a_wide_interval() -> None:
    found = auroc(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.25]))
    assert found.value == 0.5
    assert found.low < 0.1
    assert found.high > 0.9


def test_scores_that_vary_have_delongs() -> None:
    assert auroc(np.array([0.0, 2.0, 3.0]), np.array([1.0, -1.0])).method == "delong"


@pytest.mark.parametrize(("positive", "negative"), [([], [1.0]), ([1.0], []), ([[1.0]], [1.0])])
def test_nothing_to_compare(positive: list[float], negative: list[float]) -> None:
    with pytest.raises(ValueError, match="expected scores"):
        auroc(np.array(positive), np.array(negative))


@given(st.integers(0, 1000))
def test_places_are_those_of_a_sorted_list(seed: int) -> None:
    generator = np.random.default_rng(seed)
    queries, gallery = generator.normal(size=(5, 4)), generator.normal(size=(9, 4))
    right = generator.random((5, 9)) < 0.3
    right[:, 0] = True
    for place, query, entries in zip(first_ranks(queries, gallery, right), queries, right, strict=True):
        order = np.argsort(-(gallery @ query))
        assert place == np.flatnonzero(entries[order])[0]


def test_a_tie_with_a_wrong_entry_counts_against_the_query() -> None:
    gallery = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    right = np.array([[True, False, False]])
    assert first_ranks(np.array([[1.0, 0.0]]), gallery, right).tolist() == [1]
    assert first_ranks(np.array([[1.0, 0.0]]), gallery, np.array([[True, True, False]])).tolist() == [0]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    queries, gallery, right = generator.normal(size=(7, 3)), generator.normal(size=(4, 3)), np.eye(7, 4, dtype=bool)
    right[4:, 1] = True
    whole = first_ranks(queries, gallery, right)
    monkeypatch.setattr(ranking, "MAX_PRODUCTS", 8)
    assert (first_ranks(queries, gallery, right) == whole).all()


def test_a_query_without_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a right entry for each query"):
        first_ranks(np.ones((1, 2)), np.ones((3, 2)), np.zeros((1, 3), bool))
