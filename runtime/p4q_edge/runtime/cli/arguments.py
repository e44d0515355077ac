"""The parser of every subcommand's arguments, and what it takes for a path and for a number."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
from pathlib import Path, PurePath
from typing import Any, NoReturn

from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import not_fetched

MAX_WHOLE_NUMBER = (1 << 31) - 1
"""Of 32 bits with a sign, which native libraries take."""
_SHOWN = 60
_SHORT = 5
"""Letters of an option, with its dashes, that longer words begin with by chance."""
_OF_HEADS = {"--head": "--name", "--name": "--head"}
"""The option for a head, where a command makes or changes one and where it runs one."""
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
            asked.error(f"unrecognized arguments: {shlex.join(unknown)}{asked.nearest(unknown[0])}")
        return found

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. Run: {self.prog} --help")

    def nearest(self, word: str) -> str:
        """Return what a word that is not known may mean: another option, or the value of one; else an empty text."""
        if len(word) > LONGEST_NAME:
            return ""
        return self._nearest_option(word.partition("=")[0]) if word.startswith("-") else self._nearest_value(word)

    def _nearest_option(self, word: str) -> str:
        if word.removeprefix("--") in (action.dest for action in self._places()):
            return f" (named without an option: {self.prog} {self._typed_places()})"
        options = {option: action for option, action in self._option_string_actions.items() if option[:2] == "--"}
        # Imported here: most commands are typed right.
        import difflib

        bare = word.lower().replace("_", "").replace("-", "")
        near = difflib.get_close_matches(word, options, n=1, cutoff=0.8)
        near += [option for option in options if len(option) > _SHORT and bare.startswith(option.replace("-", ""))]
        other = _OF_HEADS.get(word)
        near += [other] if other in options and "head" in (options[other].help or "") else []
        return f" (did you mean {near[0]}?)" if near else ""

    def _nearest_value(self, word: str) -> str:
        alone = f"takes {self._typed_places()} alone" if self._places() else "takes options alone"
        places = {f"--{action.dest}" for action in self._places()}
        options = [action.option_strings[-1] for action in self._actions if _takes(action, word)]
        option = next((option for option in options if option not in places), None)
        return f" ({alone}; did you mean {option} {shlex.quote(word)}?)" if option else f" ({alone})"

    def _places(self) -> list[argparse.Action]:
        """Return what stands without an option."""
        return [action for action in self._actions if not action.option_strings]

    def _typed_places(self) -> str:
        shown = ((str(action.metavar or action.dest).upper(), action.nargs == "?") for action in self._places())
        return " ".join(f"[{name}]" if may_be_left_out else name for name, may_be_left_out in shown)


def _takes(action: argparse.Action, word: str) -> bool:
    """Return whether an option may be the one that a value without its option is of."""
    if not action.option_strings or action.nargs == 0 or action.choices is not None:
        return False
    if re.fullmatch("[0-9.,]+", word):
        # Several numbers are a text, such as 1,8,32.
        return action.type in (int, float) or str(action.default).isdigit()
    if os.sep in word or "." in word or os.path.lexists(word):
        return takes_path(action.type)
    return action.type in (None, str, name_or_path) and not action.default


def takes_path(kind: Any) -> bool:
    """Return whether a value of this type, as `add_argument` is given one, can be a path."""
    return kind is name_or_path or (isinstance(kind, type) and issubclass(kind, PurePath))


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
