"""Completion of commands and options: by real shells, on what the commands' own parsers know."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from p4q_edge.runtime.cli.completion_scripts import SCRIPTS, bash_script
from p4q_edge.runtime.cli.known_words import CommandWords, Option, known_commands
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.cli.registry import ACTIONS_HELP, RUNTIME_HELP

WAIT_S = 30.0
"""A busy machine; what is waited for comes in milliseconds."""

ASKED = [
    ("bui", "build"),
    ("doct", "doctor"),
    ("build --cpu-p", "--cpu-profile"),
    ("build --cpu-profile fast-", "fast-convolutions"),
    ("head calib", "calibrate"),
    ("head calibrate --app", "--apply"),
    ("completion fi", "fish"),
]


@pytest.fixture
def no_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])


@pytest.fixture
def script(tmp_path: Path, no_toolkit: None, capsys: pytest.CaptureFixture[str]) -> dict[str, Path]:
    """The script of each shell, in a file."""
    files = {}
    for shell in SCRIPTS:
        assert main(["completion", shell]) == 0
        files[shell] = tmp_path / f"script.{shell}"
        files[shell].write_text(capsys.readouterr().out)
    return files


def shell_of(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def offered(script: Path, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _p4q_edge; printf "%s\\n" "${COMPREPLY[@]}"'
    run = [shell_of("bash"), "--norc", "-c", code, "x", str(script), "p4q-edge", *words]
    found = subprocess.run(run, capture_output=True, text=True, check=True)
    assert found.stderr == ""
    return found.stdout.split()


class Terminal:
    """A shell that somebody types into."""

    def __init__(self, *command: str, folder: Path) -> None:
        self.process, self._file = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            quiet = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "PS1": "ready> "}
            os.execve(command[0], [*command], quiet)
        self.seen = ""

    def type(self, text: str, *, until: str) -> str:
        """Type a text and return what is shown then, which must come to hold another one."""
        os.write(self._file, text.encode())
        shown, end = "", time.monotonic() + WAIT_S
        while until not in shown and time.monotonic() < end:
            if select.select([self._file], [], [], 0.1)[0]:
                shown += os.read(self._file, 4096).decode(errors="replace")
        assert until in shown, shown
        return shown

    def close(self) -> None:
        os.kill(self.process, 9)
        os.waitpid(self.process, 0)
        os.close(self._file)


def test_bash_completes_at_the_key(script: dict[str, Path], tmp_path: Path) -> None:
    terminal = Terminal(shell_of("bash"), "--norc", "--noprofile", "-i", folder=tmp_path)
    try:
        terminal.type(f"source {script['bash']}; echo do''ne\n", until="\ndone")
        terminal.type("p4q-edge sel\t", until="p4q-edge selftest ")
        terminal.type("\x15p4q-edge build --cpu-p\t", until="--cpu-profile ")
        (tmp_path / "engine-of-mine.onnx").touch()
        terminal.type("\x15p4q-edge selftest engine-of\t", until="engine-of-mine.onnx ")  # a file, by bash itself
        terminal.type("\x15p4q-edge build --engine engine-of\t", until="engine-of-mine.onnx ")
        terminal.type("\x15p4q-edge validate e.onnx --data engine-of\t", until="engine-of-mine.onnx ")
        # A name, and a number, are no files.
        terminal.type("\x15p4q-edge teach e.onnx --name engine-of\tZ", until="engine-of\x07Z")  # the bell
        terminal.type("\x15p4q-edge build --threads engine-of\tZ", until="engine-of\x07Z")  # the bell
    finally:
        terminal.close()


@pytest.mark.parametrize(("typed", "expected"), ASKED)
def test_bash_offers_one_word(script: dict[str, Path], typed: str, expected: str) -> None:
    assert offered(script["bash"], *typed.split()) == [expected]


@pytest.mark.parametrize(("typed", "expected"), ASKED)
def test_fish_offers_one_word(script: dict[str, Path], typed: str, expected: str) -> None:
    run = [shell_of("fish"), "--no-config", "-c", f'source {script["fish"]}; complete -C "p4q-edge {typed}"']
    found = subprocess.run(run, capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in found.stdout.splitlines()] == [expected]


@pytest.mark.parametrize("placed", [False, True])
def test_zsh_completes_at_the_key(script: dict[str, Path], tmp_path: Path, placed: bool) -> None:
    terminal = Terminal(shell_of("zsh"), "-f", "-i", folder=tmp_path)
    try:
        start = f"autoload -U compinit; compinit -u -D; source {script['zsh']}"
        if placed:  # into a folder where zsh looks for completions
            (tmp_path / "found").mkdir()
            shutil.copy(script["zsh"], tmp_path / "found" / "_p4q-edge")
            start = f"fpath=({tmp_path}/found $fpath); autoload -U compinit; compinit -u -D"
        terminal.type(f"{start}; echo do''ne\n", until="\ndone")
        for typed, expected in ASKED:
            terminal.type(f"\x15p4q-edge {typed}\t", until=expected)
    finally:
        terminal.close()


def test_all_commands_options_and_actions_are_known(script: dict[str, Path], no_toolkit: None) -> None:
    assert set(offered(script["bash"], "")) == {*RUNTIME_HELP, "--help", "--version"}
    assert set(offered(script["bash"], "head", "")) == set(ACTIONS_HELP["head"])
    known = {one.path: one for one in known_commands()}
    assert {path[0] for path in known} == set(RUNTIME_HELP)
    options = {name for option in known["validate",].options for name in option.names}
    assert {"--ood", "--json", "-h", "--device"} <= options
    assert set(offered(script["bash"], "validate", "-")) == options
    profiles = next(option for option in known["build",].options if "--cpu-profile" in option.names)
    assert profiles.choices == ("exact", "fast", "float", "convolutions", "fast-convolutions", "auto")
    assert "elsewhere exact)" in profiles.help
    takes = {name: option.takes for one in known.values() for option in one.options for name in option.names}
    assert {takes[name] for name in ("--name", "--device", "--host", "--add", "--search") if name in takes} == {"text"}
    assert {takes[name] for name in ("--data", "--head", "--base", "--class-names", "--pretrained")} == {"path"}


def test_commands_of_the_toolkit_are_known_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main(["completion", "bash", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["shell"] == "bash"
    assert "--ablate" in document["script"]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_no_help_text_breaks_a_script(shell: str, tmp_path: Path) -> None:
    nasty = 'it\'s \\ $(touch x) `touch x` "quoted" : [a] %s; rm'
    option = Option(names=("--name:odd",), help=nasty, takes="choice", choices=("a b'c", "$(touch x)"))
    one = CommandWords(path=("build",), help=nasty, options=(option,), choices=("it's",))
    actions = CommandWords(path=("head",), help=nasty, options=(), actions=(("list", nasty),))
    file = tmp_path / "script"
    file.write_text(SCRIPTS[shell]([one, actions], "1"))
    checks = {"bash": ["-n"], "zsh": ["-n"], "fish": ["-n"]}
    subprocess.run([shell_of(shell), *checks[shell], str(file)], check=True)
    subprocess.run([shell_of(shell), "-c", f"source {file}"], check=True, cwd=tmp_path, env={"HOME": str(tmp_path)})
    assert [path.name for path in tmp_path.iterdir() if path.name == "x"] == []


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "invalid choice: 'tcsh' (choose from" in capsys.readouterr().err.replace('"', "'")


def test_a_command_without_options_is_a_script() -> None:
    assert "p4q-edge" in bash_script([CommandWords(path=("x",), help="", options=())], "1")
