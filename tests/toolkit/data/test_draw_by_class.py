"""Images drawn for calibration: as evenly of each class as there are, the same every time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.data.few_shot import draw_by_class


@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    limit=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
)
def test_classes_have_even_shares(labels: list[int], limit: int, seed: int) -> None:
    found = draw_by_class(np.array(labels), limit, seed=seed)
    assert len(found) == min(limit, len(labels))
    assert np.array_equal(found, np.unique(found))
    assert np.array_equal(found, draw_by_class(np.array(labels), limit, seed=seed))
    counts, most = np.bincount(np.array(labels)[found], minlength=7), np.bincount(labels, minlength=7)
    for label in range(7):
        # A class that gave all it has may have fewer than the others; else they differ by one at most.
        assert counts[label] == most[label] or counts[label] >= counts.max() - 1


def test_few_images_are_all_taken_in_their_order() -> None:
    labels = np.array([2, 0, 1, 0])
    for limit in (0, 4, 1000):
        assert draw_by_class(labels, limit, seed=3).tolist() == [0, 1, 2, 3]


def test_the_seed_decides() -> None:
    labels = np.repeat(np.arange(4), 50)
    assert draw_by_class(labels, 20, seed=0).tolist() != draw_by_class(labels, 20, seed=1).tolist()
