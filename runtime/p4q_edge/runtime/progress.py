"""How far long work is, told to whoever listens. Without a listener it costs next to nothing.

Work is named where it is done: `for batch in tracked(batches, "features")`, or `with task("export", total=3)
as advance`. A task within a task moves the outer one on by parts of a step, so that one bar stands for both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from operator import length_hint
from typing import Protocol, TypeVar

T = TypeVar("T")


class Listener(Protocol):
    """What is told how far work is."""

    def update(self, name: str, fraction: float, detail: str = "") -> None:
        """Hear that the task is done to this share, 0 to 1, with what more there is to say, such as its speed."""

    def finish(self, name: str) -> None:
        """Hear that the task has ended, whether it was completed or not."""


@dataclass(eq=False)
class _Task:
    name: str
    total: float
    unit: str = ""
    done: float = 0.0
    started: float = field(default_factory=lambda: time.monotonic())

    def fraction(self, within: float) -> float:
        """Return the share that is done, where the current step is done to the share `within`."""
        return min(1.0, (self.done + within) / self.total) if self.total > 0 else 1.0

    def speed(self) -> str:
        """Return how fast it goes, in words; nothing without a unit or before its first step."""
        passed = time.monotonic() - self.started
        if not self.unit or not self.done or passed <= 0:
            return ""
        rate = self.done / passed
        return f"{rate:.{0 if rate >= 10 else 1}f} {self.unit}/s"


@dataclass(eq=False)
class _Scope:
    listener: Listener
    tasks: list[_Task] = field(default_factory=list)

    def tell(self) -> None:
        within = 0.0
        for one in reversed(self.tasks):
            within = one.fraction(within)
        speeds = (one.speed() for one in reversed(self.tasks))
        self.listener.update(self.tasks[0].name, within, next((speed for speed in speeds if speed), ""))


_SCOPE: ContextVar[_Scope | None] = ContextVar("progress", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell a listener how far the work within is."""
    token = _SCOPE.set(_Scope(listener))
    try:
        yield
    finally:
        _SCOPE.reset(token)


@contextmanager
def task(name: str, *, total: float, unit: str = "") -> Iterator[Callable[[float], None]]:
    """Name a piece of work; the function that comes back is called with the steps that were done since the last call.

    Args:
        name: in words; that of an outer task is shown in its place.
        total: number of steps.
        unit: of a step, such as `images`: the speed is told too.
    """
    scope = _SCOPE.get()
    if scope is None:
        yield lambda steps: None
        return
    own = _Task(name=name, total=total, unit=unit)
    scope.tasks.append(own)

    def advance(steps: float) -> None:
        own.done += steps
        scope.tell()

    scope.tell()
    try:
        yield advance
    finally:
        # Not the last: a generator that was left may end after tasks that began later.
        scope.tasks.remove(own)
        if not scope.tasks:
            scope.listener.finish(name)


def tracked(items: Iterable[T], name: str, *, total: int | None = None, unit: str = "") -> Iterator[T]:
    """Yield items, and tell how many of `total` were worked on; without it, and of unknown length, nothing is told."""
    count = length_hint(items) if total is None else total
    if not count:
        yield from items
        return
    with task(name, total=count, unit=unit) as advance:
        for item in items:
            yield item
            advance(1)
