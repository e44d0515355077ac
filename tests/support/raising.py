"""A command that raises."""

from __future__ import annotations

from collections.abc import Callable

from p4q_edge.runtime.cli.command import Output


def raising(error: BaseException) -> Callable[[str | None, Output], int]:
    def run(path: str | None, output: Output) -> int:
        raise error

    return run
