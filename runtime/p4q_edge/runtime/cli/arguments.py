"""The parser of every subcommand's arguments, and what it takes for a path and for a number."""

from __future__ import annotations

import argparse
import math
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import not_fetched

MAX_WHOLE_NUMBER = (1 << 31) - 1
"""Of 32 bits with a sign, which native libraries take."""
_SHOWN = 60
LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes of one name and of a whole path, beyond which Linux's file systems have none."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a wrong argument as any other error: one line, no usage text."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.register("type", Path, _path)
        self.register("type", float, _number)
        self.register("type", int, _whole_number)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return what arguments say; of words that an action does not know its own parser tells.

        Raises:
            UsageError: one is wrong, missing or unknown.
        """
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            asked: Parser = getattr(found, "parser", self)
            asked.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}{self._nearest(message)}. Run: {self.prog} --help")

    def _nearest(self, message: str) -> str:
        """Return which option an unknown one may mean."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]{1,60})(?![\w-])", message)
        if unknown is None:
            return ""
        named = [action.dest for action in self._actions if not action.option_strings]
        if unknown[1].removeprefix("--") in named:
            return f" (named without an option: {self.prog} {' '.join(map(str.upper, named))})"
        # Imported here: most commands are typed right.
        import difflib

        near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1, cutoff=0.8)
        return f" (did you mean {near[0]}?)" if near else ""


def name_or_path(text: str) -> str:
    """Return a word that names something: a file, a folder, or what is known by a name; shells offer files for it.

    Raises:
        ArgumentTypeError: of an empty word, as a variable of the shell that is not set gives.
    """
    if not text:
        raise argparse.ArgumentTypeError("expected a name or a path, got an empty argument")
    return text


def _path(text: str) -> Path:
    """Return a path that was named.

    Raises:
        ArgumentTypeError: of an empty word, as a variable of the shell that is not set gives; it would be this folder.
            Of a name that is too long for any file, and of an address such as `https://...`.
    """
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty argument")
    if address := not_fetched(text):
        raise argparse.ArgumentTypeError(address)
    name = max(map(os.fsencode, Path(text).parts), key=len, default=b"")
    if len(name) > LONGEST_NAME or len(os.fsencode(text)) > LONGEST_PATH:
        raise argparse.ArgumentTypeError(
            f"expected a path, got {len(os.fsencode(text))} bytes with a name of {len(name)}; the longest are "
            f"{LONGEST_PATH} and {LONGEST_NAME}"
        )
    return Path(text)


def _number(text: str) -> float:
    """Return a number that was named.

    Raises:
        ArgumentTypeError: it is none, or `nan` or `inf`, with which limits hold never or always.
    """
    try:
        number = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number, got {text[:_SHOWN]!r}") from error
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number that is finite, got {text}")
    return number


def _whole_number(text: str) -> int:
    """Return a whole number that was named.

    Raises:
        ArgumentTypeError: it is none, or one that no library takes; what takes less says so itself.
    """
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text[:_SHOWN]!r}") from error
    if abs(number) > MAX_WHOLE_NUMBER:
        raise argparse.ArgumentTypeError(
            f"expected a whole number between -{MAX_WHOLE_NUMBER} and {MAX_WHOLE_NUMBER}, got one of {len(text)} digits"
        )
    return number
