"""A listener to progress that keeps what it is told."""

from __future__ import annotations


class Heard:
    """Keeps what it is told of tasks: shares, further words, and names of those that ended."""

    def __init__(self) -> None:
        """Nothing was told so far."""
        self.updates: list[tuple[str, float]] = []
        self.details: list[str] = []
        self.finished: list[str] = []

    def update(self, name: str, fraction: float, detail: str = "") -> None:
        """Keep how far a task is."""
        self.updates.append((name, fraction))
        self.details.append(detail)

    def finish(self, name: str) -> None:
        """Keep which task ended."""
        self.finished.append(name)
