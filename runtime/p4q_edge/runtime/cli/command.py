"""What a subcommand of `p4q-edge` is, and what all subcommands share.

A subcommand is a module with one object `COMMAND`; its name and its line in `--help` stand in `registry`. It parses
its arguments into one frozen request record, which is what it passes on. Nothing here imports more than the standard
library, so that `p4q-edge --help` stays fast.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from p4q_edge.runtime.choices import CPU_BACKENDS
from p4q_edge.runtime.errors import EnvironmentNotAbleError, P4QEdgeError
from p4q_edge.runtime.progress import task
from p4q_edge.runtime.storage import printable
from p4q_edge.runtime.wording import number_of, one_or_many

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import msgspec

ENTRY_POINT_GROUP = "p4q_edge.commands"
"""The group of entry points that the toolkit adds its subcommands to."""
FUNCTION_GROUP = "p4q_edge.toolkit"
"""The group of the functions that the toolkit lends to the runtime's subcommands."""
LOADING = "load the toolkit"
"""What takes so long at the start: the libraries that the toolkit needs, above all torch."""
SCHEMA_VERSION = 1
"""Schema number of every document that `--json` writes to stdout."""

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Output:
    """How a subcommand answers: the flags that the command line adds to every one.

    Attributes:
        json: write the result as one JSON document.
        force: replace files that exist.
        quiet: show no progress.
        verbose: show details.
    """

    json: bool = False
    force: bool = False
    quiet: bool = False
    verbose: bool = False

    def write(self, *, document: msgspec.Struct, text: str) -> None:
        """Write the result of a subcommand to stdout: `document` as JSON if `--json` was given, else `text`.

        The document gets the key `schema_version` if it has none.
        """
        write_line(as_json(document) if self.json else text.rstrip("\n"))


def failure_level(*, skipped: bool) -> int:
    """Return at which level images are told of that could not be used: no error where they may be skipped."""
    return logging.WARNING if skipped else logging.ERROR


def log_failures(logger: logging.Logger, failed: int, images: int, *, skipped: bool) -> None:
    """Say how many images could not be used, and what to do unless they may be skipped."""
    advice = "" if skipped else f". Repair or remove {one_or_many(failed, 'it', 'them')}, or add --skip-errors"
    level = failure_level(skipped=skipped)
    logger.log(level, "%d of %s could not be used%s", failed, number_of(images, "image"), advice)


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Add the options for where an engine runs: the device, and the threads of one for CPUs."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of a CPU engine (default: one a core)")


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add the option that runs an `.onnx` engine in another library than the one that it was built for."""
    parser.add_argument(
        "--backend",
        choices=CPU_BACKENDS,
        help="run an .onnx engine in this library (default: the one that it was built for)",
    )


@dataclass(frozen=True, kw_only=True)
class Command(Generic[R]):
    """One subcommand: its options, the request that they make, and what it does.

    `add_arguments` gets the subcommand's own parser, to which the command line adds the flags of `Output`. `request`
    turns parsed arguments into the request record, and is the last to see them. `run` returns the exit code, or raises
    a `P4QEdgeError`, whose `exit_code` the command line returns.
    """

    add_arguments: Callable[[argparse.ArgumentParser], None]
    request: Callable[[argparse.Namespace], R]
    run: Callable[[R, Output], int]


@dataclass(frozen=True, kw_only=True)
class CommandGroup:
    """A subcommand that only has subcommands of its own."""

    commands: Mapping[str, Command[Any]]


def as_json(document: msgspec.Struct) -> str:
    """Return a document as one line of JSON that the encoding of stdout can hold, without loss.

    File names need not be text; what cannot be encoded is written as JSON's own escapes.
    """
    # Imported here: `--help` needs none of it.
    import msgspec

    whole = {"schema_version": SCHEMA_VERSION, **msgspec.to_builtins(document, enc_hook=_path)}
    text = json.dumps(whole, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(whole, allow_nan=False)
    return text


def _path(value: object) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be part of a document")


FULL = "/dev/full"
"""What stands for a stdout that the caller closed."""


def write_line(text: str) -> None:
    """Write a line to stdout; control characters, and those that its encoding lacks, become escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    shown = printable(text, keep="\n\t")
    flush_stdout(shown.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def flush_stdout(text: str = "") -> None:
    """Write a text to stdout, and bring there what was written before.

    Raises:
        BrokenPipeError: its reader is gone.
        P4QEdgeError: it cannot be written, e.g. as the disk is full.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # The interpreter must not write to it again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        why = "it is closed" if sys.stdout.name == FULL else error.strerror
        raise P4QEdgeError(f"cannot write to stdout: {why}. Direct it elsewhere.") from error


def toolkit_function(name: str, *, missing: str, group: str = FUNCTION_GROUP) -> Callable[..., Any]:
    """Return a function that the toolkit lends to the runtime's subcommands.

    Args:
        name: its name in the group.
        missing: the message where the toolkit is not installed.
        group: of entry points.

    Raises:
        EnvironmentNotAbleError: the toolkit is not installed.
    """
    # Imported here: it takes longer than the rest of the start-up.
    from importlib.metadata import entry_points

    found = list(entry_points(group=group, name=name))
    if not found:
        raise EnvironmentNotAbleError(missing)
    function = loaded(found[0])
    if not callable(function):
        raise TypeError(f"the entry point {name} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


def loaded(entry_point: EntryPoint) -> Any:
    """Return what an entry point of the toolkit names, and show that it takes a while."""
    with task(LOADING, total=1):
        return entry_point.load()


def has_toolkit() -> bool:
    """Return whether the toolkit is installed."""
    from importlib.metadata import entry_points

    return bool(list(entry_points(group=FUNCTION_GROUP)))
