"""Every word that can be typed after `p4q-edge`, read from the commands' own parsers."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from p4q_edge.runtime.cli.arguments import takes_path
from p4q_edge.runtime.cli.main import build_parser
from p4q_edge.runtime.cli.registry import ALL_HELP
from p4q_edge.runtime.errors import EnvironmentNotAbleError

NUMBERS = (int, float)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option.

    Attributes:
        names: as they are typed, long ones last.
        help: a line.
        takes: what stands behind it: `nothing`, `choice`, `number`, `path`, which may be a name too, or `text`, which
            is no path.
        choices: of `choice`.
    """

    names: tuple[str, ...]
    help: str
    takes: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CommandWords:
    """What can stand behind a command, or behind one of its actions.

    Attributes:
        path: the command, and the action where it has some.
        help: a line.
        options: in the order of its help.
        choices: of its arguments that are not options; empty where these are paths.
        actions: names and lines of its actions.
    """

    path: tuple[str, ...]
    help: str
    options: tuple[Option, ...]
    choices: tuple[str, ...] = ()
    actions: tuple[tuple[str, str], ...] = ()


def known_commands() -> tuple[CommandWords, ...]:
    """Return the words of every command that can be run here, those of the toolkit only where it is installed."""
    found: list[CommandWords] = []
    for name, about in ALL_HELP.items():
        try:
            found += words_of(name, build_parser(name), about)
        except EnvironmentNotAbleError:
            continue
    return tuple(found)


def words_of(name: str, parser: argparse.ArgumentParser, about: str) -> Iterator[CommandWords]:
    """Yield the words of a command, then those of each of its actions."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    helps = {one.dest: one.help or "" for group in actions for one in group._choices_actions}
    yield _words((name,), parser, about, actions=tuple(helps.items()))
    for group in actions:
        for action, sub in group.choices.items():
            yield _words((name, action), sub, helps.get(action, ""))


def _words(
    path: tuple[str, ...], parser: argparse.ArgumentParser, about: str, actions: tuple[tuple[str, str], ...] = ()
) -> CommandWords:
    positional = [action for action in parser._actions if not action.option_strings]
    typed = [action for action in positional if not isinstance(action, argparse._SubParsersAction)]
    return CommandWords(
        path=path,
        help=_line(about),
        options=tuple(_option(action) for action in parser._actions if _is_shown(action)),
        choices=tuple(choice for action in typed for choice in _choices(action.choices)),
        actions=tuple((name, _line(text)) for name, text in actions),
    )


def _is_shown(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.help != argparse.SUPPRESS


def _option(action: argparse.Action) -> Option:
    choices = _choices(action.choices)
    takes = "nothing" if action.nargs == 0 else "choice" if choices else _kind(action.type)
    # argparse fills in %(default)s and the like.
    text = (action.help or "") % {**vars(action), "prog": "p4q-edge"} if "%" in (action.help or "") else action.help
    names = tuple(sorted(action.option_strings, key=lambda name: (len(name), name)))
    return Option(names=names, help=_line(text or ""), takes=takes, choices=choices)


def _kind(kind: Any) -> str:
    if kind in NUMBERS:
        return "number"
    return "path" if takes_path(kind) else "text"


def _choices(choices: Iterable[Any] | None) -> tuple[str, ...]:
    return () if choices is None else tuple(str(choice) for choice in choices)


def _line(text: str) -> str:
    """Return a help text as one line that every shell can show."""
    line = " ".join(text.split())
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in line)
