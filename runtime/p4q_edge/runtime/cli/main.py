"""The command `p4q-edge`: finds a subcommand, runs it, and turns errors into one line and an exit code.

Only the invoked subcommand's module is imported; `--help` and `--version` import the standard library alone.
The result goes to stdout, every message to stderr.

Exit codes: 0 done, 1 failure, 2 wrong usage or input, 3 the environment lacks something, 4 an artifact that must
not be used here, 5 a quality gate failed, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from p4q_edge.runtime.choices import TORCHRUN_VARIABLES
from p4q_edge.runtime.cli.arguments import Parser
from p4q_edge.runtime.cli.command import (
    ENTRY_POINT_GROUP,
    FULL,
    Command,
    CommandGroup,
    Output,
    as_json,
    flush_stdout,
    loaded,
    toolkit_function,
    write_line,
)
from p4q_edge.runtime.cli.interruption import Interruption
from p4q_edge.runtime.cli.progress_bar import ProgressBar
from p4q_edge.runtime.cli.registry import ACTIONS_HELP, ALL_HELP, RUNTIME_HELP, TOOLKIT_HELP
from p4q_edge.runtime.errors import EnvironmentNotAbleError, P4QEdgeError, ProcessLostError, UsageError
from p4q_edge.runtime.storage import printable

INSTALL_TOOLKIT = "pip install ./runtime ."
INTERRUPTED = 130
_OF_PATHS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""What the system says of a path that was named, rather than of this program."""
_SHOWN = 300
COMMANDS = "p4q_edge.runtime.cli.commands"

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `p4q-edge` with `argv` (the process's own arguments by default) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = _peek_flags(arguments)
    interruption = Interruption()
    if argv is None:
        _open_streams()
    bar = ProgressBar(sys.stderr)
    if argv is None:
        interruption.watch(bar.stop)
    _configure_logging(quiet=flags.quiet, verbose=flags.verbose, bar=bar)
    try:
        several = _started_by_torchrun()
        with nullcontext() if flags.quiet or flags.json or (several and os.environ["RANK"] != "0") else bar.shown():
            code = _among_others(arguments) if several else _dispatch(arguments)
        flush_stdout()
        return code
    except BrokenPipeError:  # the reader of stdout (`| head`) is gone
        return 1
    except BaseException as error:  # noqa: BLE001  # a signal may end in any of them
        if interruption.signal is not None and not isinstance(error, ProcessLostError):
            # Whatever it broke while it passed through a library.
            return _report(KeyboardInterrupt(), message="interrupted", exit_code=interruption.exit_code, flags=flags)
        return _report_any(error, flags=flags)


def _open_streams() -> None:
    """Give streams that were closed by the caller a place, so that no file gets their numbers."""
    nowhere = Path(os.devnull)
    if sys.stderr is None:
        sys.stderr = nowhere.open("w")
    if sys.stdout is None:
        full = Path(FULL)
        sys.stdout = (full if full.exists() else nowhere).open("w")


def _report_any(error: BaseException, *, flags: _Flags) -> int:
    """Report an error as one line and return its exit code; what ends the process otherwise is raised again."""
    try:
        raise error
    except P4QEdgeError as error:
        return _report(error, message=str(error), exit_code=error.exit_code, flags=flags)
    except KeyboardInterrupt as error:
        return _report(error, message="interrupted", exit_code=INTERRUPTED, flags=flags)
    except OSError as error:
        if error.errno not in _OF_PATHS or not isinstance(error.filename, (str, bytes)):
            return _report_unforeseen(error, flags=flags)
        message = f"{os.fsdecode(error.filename)[:_SHOWN]}: {error.strerror}. Check the path and its permissions."
        return _report(error, message=message, exit_code=UsageError.exit_code, flags=flags)
    except Exception as error:  # noqa: BLE001  # the boundary to the user: an unforeseen error is one line as well
        return _report_unforeseen(error, flags=flags)


def _report_unforeseen(error: Exception, *, flags: _Flags) -> int:
    hint = "" if flags.verbose > 1 else " (add -vv for the traceback)"
    return _report(error, message=f"{type(error).__name__}: {error}{hint}", exit_code=1, flags=flags)


def load_command(name: str) -> Command[Any] | CommandGroup:
    """Import and return the subcommand `name` of the runtime, or of the toolkit through its entry point.

    Raises:
        EnvironmentNotAbleError: the toolkit, or a library that it needs, is not installed.
        UsageError: there is no such subcommand.
    """
    if name in RUNTIME_HELP:
        command = importlib.import_module(f"{COMMANDS}.{name.replace('-', '_')}").COMMAND
    elif name in TOOLKIT_HELP:
        command = _load_entry_point(name)
    else:
        raise UsageError(f"there is no subcommand {name!r}{_nearest(name)}. Run: p4q-edge --help")
    if not isinstance(command, (Command, CommandGroup)):
        raise TypeError(f"the subcommand {name} must be a Command, not {type(command).__name__}")
    return command


def build_parser(name: str) -> Parser:
    """Return the argument parser of one subcommand, with the flags that all of them share."""
    command = load_command(name)
    about = ALL_HELP[name]
    parser = Parser(
        prog=f"p4q-edge {name}",
        description=about[:1].upper() + about[1:] + ".",
        parents=[_common_flags()],
        allow_abbrev=False,
    )
    if isinstance(command, Command):
        command.add_arguments(parser)
        parser.set_defaults(command=command)
        return parser
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for action, one in command.commands.items():
        about = ACTIONS_HELP[name][action]
        sub = actions.add_parser(
            action,
            help=about,
            description=about[:1].upper() + about[1:] + ".",
            # What stands before the action must not be overwritten by a default of its parser.
            parents=[_common_flags(suppressed=True)],
            allow_abbrev=False,
        )
        one.add_arguments(sub)
        sub.set_defaults(command=one, parser=sub)
    return parser


def parse(arguments: Sequence[str]) -> tuple[Command[Any], Any, Output]:
    """Return the subcommand that arguments name, the request that they make, and how it is to be answered.

    Raises:
        UsageError: an argument is wrong.
        EnvironmentNotAbleError: the toolkit, or a library that it needs, is not installed.
    """
    name, *rest = arguments
    args = build_parser(name).parse_args(rest)
    command: Command[Any] = args.command
    output = Output(json=args.json, force=args.force, quiet=args.quiet, verbose=bool(args.verbose))
    return command, command.request(args), output


def _started_by_torchrun() -> bool:
    """Return whether this is one of several processes; `WORLD_SIZE` alone may be of something else."""
    return all(os.environ.get(name) for name in TORCHRUN_VARIABLES) and os.environ["WORLD_SIZE"] != "1"


def _refuse_half_a_team() -> None:
    """Raise where this is one of several processes that cannot find each other: each would do all of the work."""
    size, missing = os.environ.get("WORLD_SIZE"), [name for name in TORCHRUN_VARIABLES if not os.environ.get(name)]
    if os.environ.get("RANK") and size and size != "1" and missing:
        raise UsageError(
            f"expected all variables of torchrun or none: RANK and WORLD_SIZE make this one of {size[:40]} processes, "
            f"each of which, without {' '.join(missing)}, would write the same files. Start the processes with "
            "torchrun, or alone: unset RANK WORLD_SIZE"
        )


def _among_others(arguments: list[str]) -> int:
    # Read when torch is imported: where a process is gone, its own lines are a page of addresses in its libraries, in
    # each process, beside the one that says what happened.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    run_in_team = toolkit_function(
        "run_in_team",
        missing="several processes of torchrun need the toolkit (Python 3.11 or newer, torch), which is not installed "
        f"here. Start one process without torchrun, or run, in a checkout of P4Q Edge: {INSTALL_TOOLKIT}",
    )
    code: int = run_in_team(arguments, lambda: _dispatch(arguments))
    return code


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        sys.stderr.write(_help_text())
        return UsageError.exit_code
    first = arguments[0]
    if first in ("-h", "--help"):
        flush_stdout(_help_text())
        return 0
    if first == "--version":
        flush_stdout(_version_text())
        return 0
    if first.startswith("-"):
        raise UsageError(f"a subcommand must come first, not {first}. Run: p4q-edge --help")
    _refuse_half_a_team()
    command, request, output = parse(arguments)
    return command.run(request, output)


@dataclass(frozen=True, kw_only=True)
class _Flags:
    json: bool
    quiet: bool
    verbose: int


def _peek_flags(arguments: list[str]) -> _Flags:
    """Read the flags that shape error messages; unlike the parsers this cannot fail."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return _Flags(
        json="--json" in options,
        quiet="-q" in options or "--quiet" in options,
        verbose=sum(
            1 if option == "--verbose" else len(option) - 1
            for option in options
            if option == "--verbose" or re.fullmatch("-v+", option)
        ),
    )


def _common_flags(*, suppressed: bool = False) -> Parser:
    """Return the flags of every subcommand; where `suppressed`, those that are not given are left out."""
    parser = Parser(prog="p4q-edge", add_help=False, allow_abbrev=False)
    absent: Any = argparse.SUPPRESS if suppressed else False
    group = parser.add_argument_group("common")
    group.add_argument(
        "--json", action="store_true", default=absent, help="write the result to stdout as one JSON document"
    )
    group.add_argument("--force", action="store_true", default=absent, help="replace files that exist")
    group.add_argument("-q", "--quiet", action="store_true", default=absent, help="show warnings and errors only")
    group.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=argparse.SUPPRESS if suppressed else 0,
        help="show details; -vv adds the traceback of an error",
    )
    return parser


def _load_entry_point(name: str) -> object:
    # Imported here: it takes longer than the rest of the start-up, and the runtime does without it.
    from importlib.metadata import entry_points

    found = list(entry_points(group=ENTRY_POINT_GROUP, name=name))
    if not found:
        raise EnvironmentNotAbleError(
            f"p4q-edge {name} needs the toolkit (Python 3.11 or newer, torch), which is not installed here. "
            f"Run, in a checkout of P4Q Edge: {INSTALL_TOOLKIT}"
        )
    try:
        return loaded(found[0])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "p4q_edge":
            raise
        raise EnvironmentNotAbleError(
            f"p4q-edge {name} needs {error.name}, which is not installed here. "
            f"Run, in a checkout of P4Q Edge: {INSTALL_TOOLKIT}"
        ) from error


_OTHER_WORDS: Mapping[str, str] = {
    "predict": "p4q-edge classify names what images show",
    "infer": "p4q-edge classify names what images show",
    "run": "p4q-edge classify names what images show",
    "train": "p4q-edge learn learns prompts and an adapter, build does that and builds the engine",
    "fit": "p4q-edge learn learns prompts and an adapter, build does that and builds the engine",
    "quantize": "p4q-edge build calibrates, learns and builds the engine, calibrate does the first of these",
    "convert": "p4q-edge build makes an engine from a bundle or a recipe",
    "compile": "p4q-edge build makes an engine from a bundle or a recipe",
    "test": "p4q-edge validate compares accuracy on labelled images, selftest checks an engine with its golden samples",
    "eval": "p4q-edge validate compares accuracy on labelled images",
    "evaluate": "p4q-edge validate compares accuracy on labelled images",
    "benchmark": "p4q-edge bench measures speed, memory and energy",
    "info": "p4q-edge inspect shows what is in a bundle or an engine",
    "show": "p4q-edge inspect shows what is in a bundle or an engine",
}
"""What people type who know other programs."""


def _nearest(name: str) -> str:
    import difflib

    meant = _OTHER_WORDS.get(name)
    if meant is not None:
        return f"; {meant}"
    matches = difflib.get_close_matches(name, [*ALL_HELP], n=1)
    return f" (nearest: {matches[0]})" if matches else ""


def _help_text() -> str:
    def rows(table: Mapping[str, str]) -> str:
        return "".join(f"  {name:<15}{line}\n" for name, line in table.items())

    return (
        "usage: p4q-edge SUBCOMMAND [options]\n\n"
        "Learn a low-bit CLIP classifier from a few images, build it and run it.\n\n"
        "On any machine, without torch:\n" + rows(RUNTIME_HELP) + "\n"
        "With the toolkit:\n" + rows(TOOLKIT_HELP) + "\n"
        "  -h, --help  show this, or with a subcommand its options\n"
        "  --version   show the versions of runtime and toolkit\n\n"
        "Exit codes: 0 done, 1 failure, 2 wrong usage or input, 3 the environment lacks something,\n"
        "4 an artifact that must not be used here, 5 a quality gate failed, 130 interrupted.\n"
    )


def _version_text() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        toolkit = version("p4q-edge")
    except PackageNotFoundError:
        toolkit = "not installed"
    return f"p4q-edge-runtime {version('p4q-edge-runtime')}\np4q-edge {toolkit}\n"


class _Formatter(logging.Formatter):
    """Messages as they are; a warning or an error is marked, in colour where that is wanted."""

    _COLOURS: Mapping[int, str] = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}

    def __init__(self, *, coloured: bool) -> None:
        super().__init__("%(message)s")
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record), keep="\n\t")
        colour = self._COLOURS.get(record.levelno)
        if colour is None:
            return text
        label = f"{record.levelname.lower()}:"
        return f"\033[{colour}m{label}\033[0m {text}" if self._coloured else f"{label} {text}"


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """The one handler of the command line, told apart from handlers that an embedding program has set."""

    def __init__(self, stream: TextIO, bar: ProgressBar) -> None:
        super().__init__(stream)
        self._bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        with self._bar.aside():
            super().emit(record)


def _configure_logging(*, quiet: bool, verbose: int, bar: ProgressBar) -> None:
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    handler = _Handler(sys.stderr, bar)
    handler.setFormatter(_Formatter(coloured=coloured))
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    # Warnings of libraries concern their authors: shown with -v.
    of_libraries = logging.WARNING if verbose else logging.CRITICAL
    logging.captureWarnings(True)
    for name, least in (
        ("p4q_edge", level),
        ("py.warnings", of_libraries),
    ):
        target = logging.getLogger(name)
        target.handlers = [kept for kept in target.handlers if not isinstance(kept, _Handler)]
        target.addHandler(handler)
        target.setLevel(least)
        target.propagate = False


def _report(error: BaseException, *, message: str, exit_code: int, flags: _Flags) -> int:
    """Write the error: one line on stderr, and one document on stdout if `--json` was given."""
    line = " ".join(message.split())
    if flags.verbose > 1:
        sys.stderr.write("".join(traceback.format_exception(error)))
    logger.error("%s", line)
    if flags.json:
        kind = "Interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        from p4q_edge.runtime.cli.error_document import ErrorDetail, ErrorDocument

        write_line(as_json(ErrorDocument(error=ErrorDetail(type=kind, message=line, exit_code=exit_code))))
    return exit_code
