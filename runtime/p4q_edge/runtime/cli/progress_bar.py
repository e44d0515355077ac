"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere; nothing for what ends in a moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from p4q_edge.runtime.progress import listening

BAR_WIDTH = 24
SHOWN_AFTER_S = 1.0
"""A task that ends sooner is not shown: no bar flashes by, and none stands at 0 % for work that was skipped."""
BAR_EVERY_S = 0.1
LINE_EVERY_S = 10.0
"""Where stderr is no terminal a bar would fill a log; a line now and then does not."""
CLEAR = "\r\033[K"


@dataclass
class _Shown:
    name: str
    started: float
    fraction: float = 0.0
    detail: str = ""
    written: float | None = None


class ProgressBar:
    """Shows one task at a time; log lines between go through `aside`, so that none stands within a bar."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to `stream`, which decides by `isatty` how."""
        self._stream = stream
        self._terminal = stream.isatty()
        self._clock = clock
        self._task: _Shown | None = None
        self._open = False

    def update(self, name: str, fraction: float, detail: str = "") -> None:
        """Show how far a task is, unless that was done a moment ago or the task has just begun."""
        now = self._clock()
        if self._task is None or self._task.name != name:
            self._task = _Shown(name, started=now)
        task = self._task
        task.fraction, task.detail = fraction, detail
        wait = BAR_EVERY_S if self._terminal else LINE_EVERY_S
        due = task.started + SHOWN_AFTER_S if task.written is None else task.written + wait
        if now < due or (fraction >= 1 and task.written is None):
            return
        task.written = now
        self._write(task, now)

    def finish(self, name: str) -> None:
        """End a task: its bar is replaced by a line with the time that it took."""
        task, self._task = self._task, None
        if task is None or task.written is None:
            return
        text = f"{name}: {_seconds(self._clock() - task.started)}"
        if self._terminal:
            self._stream.write(f"{CLEAR}{text}\n")
        else:
            self._stream.write(f"{text}\n")
        self._open = False
        self._stream.flush()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while a line is written."""
        if self._open:
            self._stream.write(CLEAR)
            self._stream.flush()
            self._open = False
        yield
        if self._terminal and self._task is not None and self._task.written is not None:
            self._write(self._task, self._clock())

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress of the work within; nothing is left of a bar when it ends in whatever way."""
        try:
            with listening(self):
                yield
        finally:
            if self._open:
                self._stream.write(CLEAR)
                self._stream.flush()
            self._open, self._task = False, None

    def _write(self, task: _Shown, now: float) -> None:
        passed = now - task.started
        left = f", about {_seconds(passed * (1 - task.fraction) / task.fraction)} left" if task.fraction > 0.02 else ""
        left = f", {task.detail}{left}" if task.detail else left
        if self._terminal:
            full = int(task.fraction * BAR_WIDTH)
            bar = "#" * full + "." * (BAR_WIDTH - full)
            self._stream.write(f"{CLEAR}{task.name} [{bar}] {int(100 * task.fraction):3} % {_seconds(passed)}{left}")
            self._open = True
        else:
            self._stream.write(f"{task.name}: {int(100 * task.fraction)} %, {_seconds(passed)}{left}\n")
        self._stream.flush()


def _seconds(value: float) -> str:
    """`75` -> `1 min 15 s`."""
    whole = round(value)
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
