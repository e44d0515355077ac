"""What benches are asked for on their command lines, and how they say that it cannot be."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec

from p4q_edge.runtime.errors import P4QEdgeError, UsageError

P = ParamSpec("P")


def listed(text: str, known: Sequence[str], *, option: str) -> list[str]:
    """Split a list between commas; an entry that stands there twice is taken once.

    Raises:
        UsageError: an entry is not known.
    """
    words = list(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if word not in known:
            raise UsageError(f"{option} knows {', '.join(known)}; got {word!r}")
    return words


def whole_numbers(text: str, *, option: str, least: int = 0) -> list[int]:
    """Split a list of whole numbers between commas; one that stands there twice is taken once.

    Raises:
        UsageError: an entry is no such number.
    """
    words = list(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if not re.fullmatch(r"[0-9]{1,9}", word) or int(word) < least:
            raise UsageError(f"{option} takes whole numbers from {least} between commas; got {word!r}")
    return list(dict.fromkeys(map(int, words)))


def chosen_names(names: Sequence[str], text: str) -> list[str]:
    """Names that are, or else begin with, one of the words between commas; all without words.

    Raises:
        UsageError: a word begins no name.
    """
    words = list(_words(names, text))
    for word in words:
        if not _begins(names, word):
            raise UsageError(f"--rows: no row begins with {word!r}; there are {'; '.join(names)}")
    whole = set(names) & set(words)
    beginnings = tuple(word for word in words if word not in whole)
    return [name for name in names if not words or name in whole or name.startswith(beginnings)]


def _words(names: Sequence[str], text: str) -> Iterator[str]:
    """Split at commas; names have commas before spaces, so that such a one parts words only where no name has it."""
    for part in re.split(r",(?! )", text):
        if part.strip() and _begins(names, part.strip()):
            yield part.strip()
        else:
            yield from _longest(names, [piece for word in part.split(",") if (piece := word.strip())])


def _longest(names: Sequence[str], pieces: list[str]) -> Iterator[str]:
    while pieces:
        sizes = range(len(pieces), 0, -1)
        taken = next((size for size in sizes if _begins(names, ", ".join(pieces[:size]))), 1)
        yield ", ".join(pieces[:taken])
        pieces = pieces[taken:]


def _begins(names: Sequence[str], word: str) -> bool:
    return any(name.startswith(word) for name in names)


def tells_errors(main: Callable[P, int]) -> Callable[P, int]:
    """Let a command say in one line what cannot be, and return that error's exit code."""

    @functools.wraps(main)
    def told(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except P4QEdgeError as error:
            sys.stderr.write(f"error: {error}\n")
            return error.exit_code

    return told
