"""What a subcommand of `p4q-edge` is, and what all subcommands share.

A subcommand is a module with one object `COMMAND`. The modules of the runtime are listed in
`RUNTIME_COMMANDS`; those of the toolkit come from the entry-point group `p4q_edge.commands`. Nothing here
imports more than the standard library, so that `p4q-edge --help` stays fast.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from p4q_edge.runtime.errors import EnvironmentNotAbleError

ENTRY_POINT_GROUP = "p4q_edge.commands"
"""The group of entry points that the toolkit adds its subcommands to."""
SCHEMA_VERSION = 1
"""Schema number of every document that `--json` writes to stdout."""

RUNTIME_COMMANDS: Mapping[str, str] = {
    "build": "p4q_edge.runtime.cli.commands.build:COMMAND",
    "classify": "p4q_edge.runtime.cli.commands.classify:COMMAND",
    "inspect": "p4q_edge.runtime.cli.commands.inspect:COMMAND",
    "selftest": "p4q_edge.runtime.cli.commands.selftest:COMMAND",
    "validate": "p4q_edge.runtime.cli.commands.validate:COMMAND",
    "bench": "p4q_edge.runtime.cli.commands.bench:COMMAND",
    "doctor": "p4q_edge.runtime.cli.commands.doctor:COMMAND",
    "head": "p4q_edge.runtime.cli.commands.head:COMMAND",
}
"""Where each subcommand of the runtime lives, as `module:object`."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One subcommand: its name, its line in `--help`, its options and what it does.

    `add_arguments` gets the subcommand's own parser. The flags `--json`, `-q`, `-v` and `--force` are added by
    the CLI to every subcommand: `args.json`, `args.quiet`, `args.verbose` and `args.force` always exist.
    `run` returns the exit code, or raises a `P4QEdgeError`, whose `exit_code` the CLI returns.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def write_result(args: argparse.Namespace, *, document: Mapping[str, Any], text: str) -> None:
    """Write the result of a subcommand to stdout: `document` as JSON if `--json` was given, else `text`.

    The document gets the key `schema_version` if it has none.
    """
    write_line(as_json(document) if args.json else text.rstrip("\n"))


def as_json(document: Mapping[str, Any]) -> str:
    """Return a document as one line of JSON that the encoding of stdout can hold, without loss.

    File names need not be text; what cannot be encoded is written as JSON's own escapes.
    """
    whole = {"schema_version": SCHEMA_VERSION, **document}
    text = json.dumps(whole, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(whole, allow_nan=False)
    return text


def write_line(text: str) -> None:
    """Write a line to stdout; characters that its encoding lacks become escapes such as `\\xe9`."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def toolkit_command(entry_point: str, *, missing: str) -> Command:
    """Return a command that the toolkit registers for the runtime's commands to call.

    Args:
        entry_point: its name in the group `p4q_edge.commands`.
        missing: the message where the toolkit is not installed.

    Raises:
        EnvironmentNotAbleError: the toolkit is not installed.
    """
    # Imported here: it takes longer than the rest of the start-up.
    from importlib.metadata import entry_points

    found = list(entry_points(group=ENTRY_POINT_GROUP, name=entry_point))
    if not found:
        raise EnvironmentNotAbleError(missing)
    command = found[0].load()
    if not isinstance(command, Command):
        raise TypeError(f"the entry point {entry_point} is a {type(command).__name__}, not a Command")
    return command
