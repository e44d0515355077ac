"""Bars on a terminal, lines elsewhere, nothing for what ends in a moment, no log line within a bar."""

from __future__ import annotations

import io
import logging
import multiprocessing
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from p4q_edge.runtime.cli import main as cli
from p4q_edge.runtime.cli import progress_bar
from p4q_edge.runtime.cli.progress_bar import CLEAR, ProgressBar
from p4q_edge.runtime.progress import listening, task, tracked


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def work(stream: io.StringIO, *, items: int, seconds: float) -> str:
    clock = Clock()
    with listening(ProgressBar(stream, clock=clock)):
        for _ in tracked(range(items), "learn"):
            clock.now += seconds
    return stream.getvalue()


def test_a_terminal_gets_a_bar_and_at_the_end_the_time() -> None:
    written = work(Terminal(), items=4, seconds=2.0)
    assert written.split(CLEAR)[1:] == [
        "learn [######..................]  25 % 2 s, about 6 s left",
        "learn [############............]  50 % 4 s, about 4 s left",
        "learn [##################......]  75 % 6 s, about 2 s left",
        "learn [########################] 100 % 8 s, about 0 s left",
        "learn: 8 s\n",
    ]


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_what_ends_in_a_moment_is_not_shown(stream: io.StringIO) -> None:
    assert work(stream, items=3, seconds=0.3) == ""


def test_the_speed_stands_before_the_time_that_is_left() -> None:
    stream, clock = io.StringIO(), Clock()
    bar = ProgressBar(stream, clock=clock)
    for share in (0.0, 0.25, 0.5):
        bar.update("features", share, f"{round(400 * share)} images/s" if share else "")
        clock.now += 12
    assert stream.getvalue().splitlines() == [
        "features: 25 %, 12 s, 100 images/s, about 36 s left",
        "features: 50 %, 24 s, 200 images/s, about 24 s left",
    ]


def test_elsewhere_there_is_a_line_now_and_then() -> None:
    written = work(io.StringIO(), items=50, seconds=1.0)
    assert written.splitlines() == [
        "learn: 2 %, 1 s",
        "learn: 22 %, 11 s, about 39 s left",
        "learn: 42 %, 21 s, about 29 s left",
        "learn: 62 %, 31 s, about 19 s left",
        "learn: 82 %, 41 s, about 9 s left",
        "learn: 50 s",
    ]
    assert "\033" not in written
    assert "\r" not in written


def test_a_log_line_stands_alone() -> None:
    stream, clock = Terminal(), Clock()
    bar = ProgressBar(stream, clock=clock)
    with listening(bar):
        for item in tracked(range(3), "learn"):
            clock.now += 2.0
            if item == 1:
                with bar.aside():
                    stream.write("a message\n")
    before, _, after = stream.getvalue().partition("a message\n")
    assert before.endswith(CLEAR)
    assert after.startswith(CLEAR + "learn [")


def test_the_log_of_a_command_goes_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = Terminal(), Clock()
    monkeypatch.setattr("sys.stderr", stream)
    bar = ProgressBar(stream, clock=clock)
    cli._configure_logging(quiet=False, verbose=0, bar=bar)
    with listening(bar):
        for _ in tracked(range(2), "learn"):
            clock.now += 2.0
            logging.getLogger("p4q_edge.test").info("said")
    lines = [line.rpartition(CLEAR)[2] for line in stream.getvalue().split("\n")]
    assert lines == ["said", "said", "learn: 4 s", ""]


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_work_that_says_nothing_is_shown_by_its_time(stream: io.StringIO) -> None:
    clock = Clock()
    bar = ProgressBar(stream, clock=clock)
    with listening(bar), task("load the toolkit", total=1):
        bar.pulse()
        clock.now += 3.0
        bar.pulse()
        clock.now += 10.0
        bar.pulse()
    written = stream.getvalue().replace(CLEAR, "\n").splitlines()
    assert [line for line in written if line] == [
        "load the toolkit ... 3 s",
        "load the toolkit ... 13 s",
        "load the toolkit: 13 s",
    ]
    bar.pulse()
    assert stream.getvalue().endswith("load the toolkit: 13 s\n")


def test_the_pulse_goes_on_while_the_program_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "SHOWN_AFTER_S", 0.0)
    monkeypatch.setattr(progress_bar, "BAR_EVERY_S", 0.0)
    monkeypatch.setattr(progress_bar, "PULSE_S", 0.01)
    stream = Terminal()
    shown = threading.Event()

    class Seen(ProgressBar):
        def pulse(self) -> None:
            super().pulse()
            if stream.getvalue().count("export ...") > 2:
                shown.set()

    with Seen(stream).shown(), task("export", total=1):
        assert shown.wait(120)
    assert "p4q-edge-progress" not in {thread.name for thread in threading.enumerate()}
    assert stream.getvalue().split("\n")[-1] == ""


def test_work_goes_on_where_nobody_reads_the_stream_any_more() -> None:
    class Gone(Terminal):
        tries = 0

        def write(self, text: str) -> int:
            self.tries += 1
            raise BrokenPipeError

    stream, clock = Gone(), Clock()
    bar = ProgressBar(stream, clock=clock)
    with bar.shown():
        for _ in tracked(range(4), "learn"):
            clock.now += 2.0
            bar.pulse()
            with bar.aside():
                pass
    assert stream.tries == 1


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_after_a_signal_nothing_counts_on(stream: io.StringIO) -> None:
    """A library may take a while to end; neither does a task that is left then look as if it were done."""
    clock = Clock()
    bar = ProgressBar(stream, clock=clock)
    with bar.shown():
        with task("learn", total=10) as advance:
            clock.now += 20.0
            advance(1)
            before = stream.getvalue()
            assert "10 %" in before
            bar.stop()
            for _ in range(3):
                clock.now += 20.0
                bar.pulse()
                advance(1)
            assert stream.getvalue() == before
        with bar.aside():
            print("error: interrupted", file=stream)
    cleared = CLEAR if stream.isatty() else ""
    assert stream.getvalue().removeprefix(before) == f"{cleared}error: interrupted\n"


def test_an_error_ends_the_bar(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch, photo: Path) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress_bar, "SHOWN_AFTER_S", 0.0)
    (photo.parent / "labelled" / "circle").mkdir(parents=True)
    assert cli.main(["validate", str(tiny_engine), "--data", str(photo.parent / "labelled")]) == 2
    assert stream.getvalue().split("\n")[-2].rpartition(CLEAR)[2].startswith("error: class folder ")


def test_quiet_shows_none(
    tiny_engine: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_bar, "SHOWN_AFTER_S", 0.0)
    _, _, loud = run("validate", tiny_engine)
    assert "validate, golden samples: " in loud
    _, _, quiet = run("validate", tiny_engine, "-q")
    assert quiet == ""
    _, _, of_document = run("validate", tiny_engine, "--json")
    assert "validate, golden samples: " not in of_document


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (135, "2 min 15 s")])
def test_times_are_read_at_a_glance(seconds: float, words: str) -> None:
    assert progress_bar._seconds(seconds) == words


def _log_aside(bar: ProgressBar) -> None:
    with bar.aside():
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked there")
def test_a_process_that_is_forked_while_the_bar_is_drawn_can_log() -> None:
    bar = ProgressBar(io.StringIO())
    drawing, drawn = threading.Event(), threading.Event()

    def draw() -> None:
        with bar.aside():
            drawing.set()
            drawn.wait(240)

    pulse = threading.Thread(target=draw)
    pulse.start()
    assert drawing.wait(120)
    child = multiprocessing.get_context("fork").Process(target=_log_aside, args=(bar,))
    child.start()
    child.join(120)
    ended = child.exitcode
    child.kill()
    drawn.set()
    pulse.join()
    assert ended == 0
