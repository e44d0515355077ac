"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere; nothing for what ends in a moment."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO
from weakref import WeakSet

from p4q_edge.runtime.progress import listening

BAR_WIDTH = 24
SHOWN_AFTER_S = 1.0
"""A task that ends sooner is not shown: no bar flashes by, and none stands at 0 % for work that was skipped."""
BAR_EVERY_S = 0.1
LINE_EVERY_S = 10.0
"""Where stderr is no terminal a bar would fill a log; a line now and then does not."""
PULSE_S = 0.5
"""How often a task that says nothing is looked at: its time goes on, so that nobody takes the program for dead."""
CLEAR = "\r\033[K"


@dataclass
class _Shown:
    name: str
    started: float
    fraction: float = 0.0
    detail: str = ""
    written: float | None = None


_BARS: WeakSet[ProgressBar] = WeakSet()


def _renew_locks() -> None:
    """Give a forked process locks of its own: the pulse that held one where it was forked does not run in it."""
    for bar in _BARS:
        bar._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class ProgressBar:
    """Shows one task at a time; log lines between go through `aside`, so that none stands within a bar."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to `stream`, which decides by `isatty` how."""
        self._stream = stream
        self._terminal = stream.isatty()
        self._clock = clock
        self._task: _Shown | None = None
        self._open = False
        self._unread = False
        self._stopped = False
        # The pulse is another thread; a log line may come while the bar is drawn, in the same one.
        self._lock = threading.RLock()
        _BARS.add(self)

    def update(self, name: str, fraction: float, detail: str = "") -> None:
        """Show how far a task is, unless that was done a moment ago or the task has just begun."""
        with self._lock:
            if self._task is None or self._task.name != name:
                self._task = _Shown(name, started=self._clock())
            self._task.fraction, self._task.detail = fraction, detail
            if fraction < 1 or self._task.written is not None:
                self._write_if_due(self._task)

    def pulse(self) -> None:
        """Show how long a task takes by now, where it has said nothing for a while."""
        with self._lock:
            if self._task is not None:
                self._write_if_due(self._task)

    def stop(self) -> None:
        """Draw nothing from here on, as the program was asked to end; what stands there is cleared with the next line.

        Any thread may call it: it waits for no other, which may hang on a stream that nobody reads.
        """
        self._stopped = True

    def finish(self, name: str) -> None:
        """End a task: its bar is replaced by a line with the time that it took."""
        with self._lock:
            task, self._task = self._task, None
            if task is None or task.written is None or self._stopped:
                return
            text = f"{name}: {_seconds(self._clock() - task.started)}"
            self._put(f"{CLEAR}{text}\n" if self._terminal else f"{text}\n")
            self._open = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while a line is written."""
        with self._lock:
            if self._open:
                self._put(CLEAR)
                self._open = False
            yield
            shown = self._task is not None and self._task.written is not None and not self._stopped
            if self._terminal and self._task is not None and shown:
                self._write(self._task, self._clock())

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress of the work within; nothing is left of a bar when it ends in whatever way."""
        ended = threading.Event()
        pulse = threading.Thread(target=self._pulse_until, args=(ended,), daemon=True, name="p4q-edge-progress")
        pulse.start()
        try:
            with listening(self):
                yield
        finally:
            ended.set()
            pulse.join(PULSE_S)  # it may hang on a stream that nobody reads
            if self._open:
                self._put(CLEAR)
            self._open, self._task = False, None

    def _pulse_until(self, ended: threading.Event) -> None:
        while not ended.wait(PULSE_S):
            self.pulse()

    def _write_if_due(self, task: _Shown) -> None:
        if self._stopped:
            return
        now = self._clock()
        wait = BAR_EVERY_S if self._terminal else LINE_EVERY_S
        due = task.started + SHOWN_AFTER_S if task.written is None else task.written + wait
        if now >= due:
            task.written = now
            self._write(task, now)

    def _write(self, task: _Shown, now: float) -> None:
        passed = now - task.started
        left = f", about {_seconds(passed * (1 - task.fraction) / task.fraction)} left" if task.fraction > 0.02 else ""
        left = f", {task.detail}{left}" if task.detail else left
        if task.fraction <= 0:  # no share is known, so that none is shown
            text = f"{task.name} ... {_seconds(passed)}{left}"
            self._put(f"{CLEAR}{text}" if self._terminal else f"{text}\n")
            self._open = self._terminal
        elif self._terminal:
            full = int(task.fraction * BAR_WIDTH)
            bar = "#" * full + "." * (BAR_WIDTH - full)
            self._put(f"{CLEAR}{task.name} [{bar}] {int(100 * task.fraction):3} % {_seconds(passed)}{left}")
            self._open = True
        else:
            self._put(f"{task.name}: {int(100 * task.fraction)} %, {_seconds(passed)}{left}\n")

    def _put(self, text: str) -> None:
        """Write, unless nobody reads the stream any more: what it would decorate goes on."""
        if not self._unread:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                self._unread = True


def _seconds(value: float) -> str:
    """`75` -> `1 min 15 s`."""
    whole = round(value)
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
