"""How far work is: fractions of nested tasks, nothing without a listener, and an end whatever happens."""

from __future__ import annotations

import itertools

import pytest
from heard import Heard
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime import progress
from p4q_edge.runtime.progress import listening, task, tracked


def test_nobody_need_listen() -> None:
    assert list(tracked("abc", "letters")) == ["a", "b", "c"]
    with task("work", total=2) as advance:
        advance(1)


def test_each_item_moves_the_fraction() -> None:
    heard = Heard()
    with listening(heard):
        assert list(tracked([1, 2, 3, 4], "numbers")) == [1, 2, 3, 4]
    assert heard.updates == [("numbers", share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert heard.finished == ["numbers"]
    heard.updates.clear()
    list(tracked([1, 2], "numbers"))
    assert heard.updates == []


def test_what_has_no_length_needs_a_total() -> None:
    heard = Heard()
    with listening(heard):
        assert list(tracked((n for n in range(3)), "untold")) == [0, 1, 2]
        assert heard.updates == []
        list(tracked((n for n in range(2)), "told", total=2))
        assert list(tracked([], "empty")) == []
    assert heard.updates == [("told", 0.0), ("told", 0.5), ("told", 1.0)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_inner_tasks_move_the_outer_one_by_parts(counts: list[int]) -> None:
    heard = Heard()
    with listening(heard):
        for inner in tracked(counts, "outer"):
            for _ in tracked(range(inner), "inner"):
                pass
    shares = [share for name, share in heard.updates if name == "outer"]
    assert len(shares) == len(heard.updates)
    assert all(before <= after + 1e-12 for before, after in itertools.pairwise(shares))
    assert shares[-1] == 1.0
    assert heard.finished == ["outer"]


def test_a_task_that_fails_ends() -> None:
    heard = Heard()

    def fail() -> None:
        with task("work", total=3) as advance:
            advance(1)
            raise ValueError("broken")

    with listening(heard):
        with pytest.raises(ValueError, match="broken"):
            fail()
        list(tracked([1], "next"))
    assert heard.finished == ["work", "next"]


def test_a_generator_that_is_left_takes_no_other_task_away() -> None:
    heard = Heard()
    with listening(heard):
        left = tracked([1, 2, 3], "left")
        next(left)
        with task("inner", total=1) as advance:
            left.close()
            advance(1)
    assert heard.finished == ["inner"]
    assert heard.updates[-1] == ("inner", 1.0)


def test_the_speed_is_told_where_steps_have_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    heard = Heard()
    with listening(heard), task("build", total=2), task("features", total=256, unit="images") as advance:
        now[0] += 4
        advance(128)
        for _ in tracked([1], "encode"):
            now[0] += 28
        advance(128)
    assert heard.details == ["", "", "32 images/s", "32 images/s", "4.0 images/s", "8.0 images/s"]
    assert {name for name, _ in heard.updates} == {"build"}
