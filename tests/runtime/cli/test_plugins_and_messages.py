"""What the toolkit plugs in, and how messages, warnings and colours reach the terminal."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints

import msgspec
import pytest
from raising import raising

from p4q_edge.runtime.cli import main as cli
from p4q_edge.runtime.cli.command import Output
from p4q_edge.runtime.errors import InputError


class Answer(msgspec.Struct):
    answer: int


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Let the toolkit have these subcommands: name to `module:object`."""

    def install(commands: dict[str, str]) -> None:
        points = [EntryPoint(name, value, cli.ENTRY_POINT_GROUP) for name, value in commands.items()]
        monkeypatch.setattr("importlib.metadata.entry_points", lambda **wanted: EntryPoints(points).select(**wanted))

    return install


@pytest.mark.parametrize("name", cli.TOOLKIT_HELP)
def test_without_the_toolkit_its_subcommands_say_how_to_install_it(
    entry_points: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    entry_points({})
    assert cli.main([name, "--anything", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["exit_code"] == 3
    assert err == (
        f"error: p4q-edge {name} needs the toolkit (Python 3.11 or newer, torch), which is not installed here. "
        "Run, in a checkout of P4Q Edge: pip install ./runtime .\n"
    )


def test_a_toolkit_without_its_libraries_says_which(
    entry_points: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    entry_points({"learn": "torch:COMMAND"})
    assert cli.main(["learn"]) == 3
    assert capsys.readouterr().err.startswith("error: p4q-edge learn needs torch, which is not installed here.")


def test_a_missing_module_of_our_own_is_a_bug_not_an_environment(
    entry_points: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    entry_points({"learn": "p4q_edge.no_such:COMMAND"})
    assert cli.main(["learn"]) == 1
    assert capsys.readouterr().err.startswith("error: ModuleNotFoundError: No module named 'p4q_edge.no_such'")


def test_an_entry_point_must_name_a_command(
    entry_points: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    entry_points({"learn": "json:dumps"})
    assert cli.main(["learn"]) == 1
    assert "the subcommand learn must be a Command, not function" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "working\nwarning: careful\n"),
        (["-q"], "warning: careful\n"),
        (["-v"], "detail\nworking\nwarning: careful\n"),
    ],
)
def test_messages_go_to_stderr_as_far_as_they_are_wanted(
    subcommand: Callable[..., None], capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    def run(path: str | None, output: Output) -> int:
        messages = logging.getLogger("p4q_edge.trial")
        messages.debug("detail")
        messages.info("working")
        messages.warning("careful")
        output.write(document=Answer(answer=42), text="the answer is 42")
        return 0

    subcommand(run)
    assert cli.main(["trial", *flags]) == 0
    assert capsys.readouterr() == ("the answer is 42\n", expected)
    assert cli.main(["trial", "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "answer": 42}


@pytest.mark.parametrize(("flags", "shown"), [([], False), (["-v"], True)])
def test_warnings_of_libraries_are_shown_with_v(
    subcommand: Callable[..., None], capsys: pytest.CaptureFixture[str], flags: list[str], shown: bool
) -> None:
    def run(path: str | None, output: Output) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(False)
            logging.captureWarnings(True)
            warnings.warn("old spelling", FutureWarning, stacklevel=1)
        return 0

    subcommand(run)
    assert cli.main(["trial", *flags]) == 0
    assert ("old spelling" in capsys.readouterr().err) is shown


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_only_where_wanted(
    subcommand: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    coloured: bool,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    subcommand(raising(InputError("no")))
    assert cli.main(["trial"]) == 2
    assert capsys.readouterr().err == ("\033[31merror:\033[0m no\n" if coloured else "error: no\n")


def test_flags_after_a_double_dash_are_paths(
    subcommand: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(path: str | None, output: Output) -> int:
        raise InputError(path)

    subcommand(run)
    assert cli.main(["trial", "--", "--json"]) == 2
    assert capsys.readouterr() == ("", "error: --json\n")
