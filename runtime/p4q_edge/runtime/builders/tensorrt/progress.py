"""Progress of a TensorRT build: nested phases become one fraction, which a line or a bar shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

BAR_WIDTH = 24
LINE_EVERY_S = 10.0
"""Without a terminal a line is written this often, so that a log stays readable."""
BAR_EVERY_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a build is."""

    task: str
    """What is being built, as `INT8 plan`."""
    phase: str
    """TensorRT's name of the innermost running phase."""
    fraction: float
    """0 to 1; never falls within one task."""


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


@dataclass
class PhaseTree:
    """Turns TensorRT's phase events into one fraction.

    A phase is a share of one step of its parent. Phases of one name may run at the same time; the last start counts.
    """

    _phases: dict[str, _Phase] = field(default_factory=dict)
    _fraction: float = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Note that a phase of `steps` steps began."""
        self._phases[name] = _Phase(parent=parent, steps=max(steps, 1))

    def step(self, name: str, index: int) -> None:
        """Note that step `index` of a phase is done."""
        if name in self._phases:
            phase = self._phases[name]
            phase.done = min(max(phase.done, index + 1), phase.steps)

    def finish(self, name: str) -> None:
        """Note that a phase ended, also where it ended early."""
        self._phases.pop(name, None)

    @property
    def fraction(self) -> float:
        """Share of the whole, 0 to 1; it never falls."""
        roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        present = max((self._share(name) for name in roots), default=0.0)
        self._fraction = max(self._fraction, min(present, 1.0))
        return self._fraction

    @property
    def phase(self) -> str:
        """Name of the phase that began last and still runs."""
        return next(reversed(self._phases), "")

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        running = max(
            (self._share(child) for child, inner in self._phases.items() if inner.parent == name), default=0.0
        )
        return min(phase.done + running, phase.steps) / phase.steps


def make_monitor(trt: Any, *, report: Callable[[PhaseTree], None], cancelled: Callable[[], bool]) -> Any:
    """Return TensorRT's progress monitor, which reports every step and stops the build once `cancelled()`."""

    # The base class exists only once TensorRT is imported, which needs a GPU.
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tree = PhaseTree()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.tree.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.tree.step(phase_name, step)
            # False is TensorRT's only way to stop a build from outside. Nothing is reported then: who asked to
            # stop may no longer listen.
            if cancelled():
                return False
            report(self.tree)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.tree.finish(phase_name)

    return Monitor()


class ProgressLine:
    """Shows progress on a text stream: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to `stream`, which decides by `isatty` how."""
        self._stream = stream
        self._terminal = stream.isatty()
        self._clock = clock
        self._last: float | None = None
        self._task = ""

    def __call__(self, progress: Progress) -> None:
        """Show `progress`, unless the last showing was a moment ago."""
        now = self._clock()
        new_task = progress.task != self._task
        every = BAR_EVERY_S if self._terminal else LINE_EVERY_S
        if not new_task and self._last is not None and now - self._last < every:
            return
        if new_task and self._task:
            self.close()
        self._last, self._task = now, progress.task
        if self._terminal:
            full = round(progress.fraction * BAR_WIDTH)
            bar = "#" * full + "." * (BAR_WIDTH - full)
            self._stream.write(f"\r{progress.task} [{bar}] {progress.fraction:4.0%} {progress.phase[:40]:40}")
        else:
            self._stream.write(f"{progress.task}: {progress.fraction:.0%} {progress.phase}\n")
        self._stream.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the bar's line."""
        if self._terminal and self._task:
            self._stream.write("\n")
            self._stream.flush()
        self._task = ""
