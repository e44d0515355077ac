"""The parser of every subcommand's arguments, and what it takes for a path and for a number."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NoReturn

from p4q_edge.runtime.errors import UsageError

MAX_WHOLE_NUMBER = (1 << 31) - 1
"""Of 32 bits with a sign, which native libraries take."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a wrong argument as any other error: one line, no usage text."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.register("type", Path, _path)
        self.register("type", float, _number)
        self.register("type", int, _whole_number)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. Run: {self.prog} --help")


def _path(text: str) -> Path:
    """Return a path that was named.

    Raises:
        ArgumentTypeError: of an empty word, as a variable of the shell that is not set gives; it would be this folder.
    """
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty argument")
    return Path(text)


def _number(text: str) -> float:
    """Return a number that was named.

    Raises:
        ArgumentTypeError: of `nan` and `inf`, with which limits hold never or always.
        ValueError: it is none.
    """
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number that is finite, got {text}")
    return number


def _whole_number(text: str) -> int:
    """Return a whole number that was named.

    Raises:
        ArgumentTypeError: of one that no library takes; what takes less says so itself.
        ValueError: it is none.
    """
    number = int(text)
    if abs(number) > MAX_WHOLE_NUMBER:
        raise argparse.ArgumentTypeError(
            f"expected a whole number between -{MAX_WHOLE_NUMBER} and {MAX_WHOLE_NUMBER}, got one of {len(text)} digits"
        )
    return number
