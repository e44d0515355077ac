"""Progress of a build: one fraction from nested phases, shown as a bar or as lines, and the way to stop."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.builders.tensorrt.progress import PhaseTree, Progress, ProgressLine, make_monitor

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.sampled_from("abcd"), st.sampled_from([None, *"abcd"]), st.integers(-1, 9)),
        st.tuples(st.just("step"), st.sampled_from("abcd"), st.none(), st.integers(-1, 12)),
        st.tuples(st.just("finish"), st.sampled_from("abcd"), st.none(), st.just(0)),
    )
)


def test_a_child_is_a_share_of_one_step_of_its_parent() -> None:
    tree = PhaseTree()
    tree.start("Building engine", None, 4)
    tree.step("Building engine", 0)
    assert tree.fraction == 0.25
    tree.start("Optimizing graph", "Building engine", 10)
    tree.step("Optimizing graph", 4)
    assert tree.phase == "Optimizing graph"
    assert tree.fraction == pytest.approx(0.25 + 0.25 * 0.5)
    tree.finish("Optimizing graph")
    assert tree.fraction == pytest.approx(0.375)  # it does not fall back
    tree.step("Building engine", 3)
    assert tree.fraction == 1


@given(EVENTS)
def test_the_fraction_stays_in_range_and_never_falls(events: list[tuple[str, str, str | None, int]]) -> None:
    tree = PhaseTree()
    before = 0.0
    for kind, name, parent, number in events:
        if kind == "start":
            # A phase is never inside itself; TensorRT nests strictly.
            tree.start(name, parent if parent is not None and parent < name else None, number)
        elif kind == "step":
            tree.step(name, number)
        else:
            tree.finish(name)
        assert before <= tree.fraction <= 1
        before = tree.fraction


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_a_log_a_line_now_and_then() -> None:
    now = [0.0]
    terminal, log = _Terminal(), io.StringIO()
    lines = [ProgressLine(terminal, clock=lambda: now[0]), ProgressLine(log, clock=lambda: now[0])]
    for seconds, fraction in ((0.0, 0.0), (0.1, 0.1), (1.0, 0.5), (9.9, 0.6), (10.0, 0.7)):
        now[0] = seconds
        for line in lines:
            line(Progress(task="INT8 plan", phase="Timing tactics", fraction=fraction))
    for line in lines:
        line.close()
    assert log.getvalue() == "INT8 plan: 0% Timing tactics\nINT8 plan: 70% Timing tactics\n"
    shown = terminal.getvalue().split("\r")
    assert [text[:42].rstrip() for text in shown[1:]] == [
        "INT8 plan [........................]   0%",
        "INT8 plan [############............]  50%",
        "INT8 plan [##############..........]  60%",
    ]
    assert terminal.getvalue().endswith("\n")


def test_a_new_task_begins_a_line_of_its_own_at_once() -> None:
    terminal = _Terminal()
    line = ProgressLine(terminal, clock=lambda: 0.0)
    line(Progress(task="INT8 plan", phase="", fraction=1.0))
    line(Progress(task="FP16 plan", phase="", fraction=0.0))
    assert terminal.getvalue().count("\n") == 1
    assert "FP16 plan" in terminal.getvalue()


def test_the_monitor_stops_the_build_and_then_reports_no_more() -> None:
    class Base:
        def __init__(self) -> None:
            self.initialized = True

    stop = [False]
    seen: list[float] = []
    monitor = make_monitor(
        SimpleNamespace(IProgressMonitor=Base),
        report=lambda tree: seen.append(tree.fraction),
        cancelled=lambda: stop[0],
    )
    assert monitor.initialized
    monitor.phase_start("Building engine", None, 2)
    assert monitor.step_complete("Building engine", 0) is True
    stop[0] = True
    assert monitor.step_complete("Building engine", 1) is False
    monitor.phase_finish("Building engine")
    assert seen == [0.5]
