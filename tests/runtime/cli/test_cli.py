"""The command line: what it loads, its exit codes, and what it writes where."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from raising import raising

from p4q_edge.runtime.cli import main as cli
from p4q_edge.runtime.cli.registry import RUNTIME_HELP
from p4q_edge.runtime.errors import ArtifactError, EnvironmentNotAbleError, InputError, P4QEdgeError, QualityGateError

HEAVY = ("numpy", "PIL", "safetensors", "msgspec", "onnxruntime", "onnx", "torch", "torchvision", "open_clip", "timm")
REPORT_HEAVY = f"""
import sys
loaded = sorted(set(sys.modules) & set({HEAVY!r}))
sys.stderr.write("loaded: " + " ".join(loaded))
"""


def loaded_by(*arguments: str, first: str = "") -> str:
    """Run the command line in a fresh interpreter and return which heavy libraries it has imported."""
    code = f"{first}\nfrom p4q_edge.runtime.cli.main import main\ntry:\n    main({list(arguments)!r})\n"
    code += "except SystemExit:\n    pass\n" + REPORT_HEAVY
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return child.stderr.rpartition("loaded: ")[2]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--version",), ("no-such",), ("doctor", "--help")])
def test_starts_without_any_heavy_library(arguments: tuple[str, ...]) -> None:
    assert loaded_by(*arguments) == ""


def test_the_import_guard_can_fail() -> None:
    assert "numpy" in loaded_by("--help", first="import numpy").split()


def test_importing_the_runtime_loads_no_heavy_library() -> None:
    code = "import p4q_edge.runtime" + REPORT_HEAVY
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stderr == "loaded: "


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (P4QEdgeError("it failed"), 1),
        (InputError("no such image"), 2),
        (EnvironmentNotAbleError("no device"), 3),
        (ArtifactError("not this card"), 4),
        (QualityGateError("below the gate"), 5),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(
    subcommand: Callable[..., None], capsys: pytest.CaptureFixture[str], error: P4QEdgeError, code: int
) -> None:
    subcommand(raising(error))
    assert cli.main(["trial"]) == code
    assert capsys.readouterr() == ("", f"error: {error}\n")


def test_an_error_with_json_is_one_document(
    subcommand: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    subcommand(raising(InputError("no such\nimage")))
    assert cli.main(["trial", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "schema_version": 1,
        "error": {"type": "InputError", "message": "no such image", "exit_code": 2},
    }
    assert err == "error: no such image\n"


def test_interrupted(subcommand: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    subcommand(raising(KeyboardInterrupt()))
    assert cli.main(["trial", "--json"]) == 130
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] == {"type": "Interrupted", "message": "interrupted", "exit_code": 130}
    assert err == "error: interrupted\n"


def test_an_unforeseen_error_is_one_line_too(
    subcommand: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    subcommand(raising(ZeroDivisionError("by zero")))
    assert cli.main(["trial"]) == 1
    expected = "error: ZeroDivisionError: by zero (add -vv for the traceback)\n"
    assert capsys.readouterr() == ("", expected)


@pytest.mark.parametrize(
    ("number", "name", "line"),
    [
        (errno.EACCES, "photos", "photos: Permission denied. Check the path and its permissions."),
        (errno.ENAMETOOLONG, "n" * 9999, f"{'n' * 300}: File name too long. Check the path and its permissions."),
        (errno.ENOTDIR, b"a/b", "a/b: Not a directory. Check the path and its permissions."),
    ],
)
def test_what_the_system_says_of_a_path_is_an_input(
    subcommand: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    number: int,
    name: str | bytes,
    line: str,
) -> None:
    subcommand(raising(OSError(number, os.strerror(number), name)))
    assert cli.main(["trial"]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    subcommand(raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)))
    assert cli.main(["trial"]) == 1
    assert "error: OSError: " in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["-vv"], ["-v", "-v"], ["-v", "--verbose"]])
def test_the_traceback_is_shown_on_request(
    subcommand: Callable[..., None], capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    subcommand(raising(ZeroDivisionError("by zero")))
    assert cli.main(["trial", *flags]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("error: ZeroDivisionError: by zero\n")


def test_a_closed_pipe_is_no_traceback(subcommand: Callable[..., None]) -> None:
    code = "import sys; from p4q_edge.runtime.cli.main import main; sys.exit(main(['--help']))"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    errors = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 1
    assert errors == b""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tryal"], "error: there is no subcommand 'tryal' (nearest: trial). Run: p4q-edge --help\n"),
        (
            ["predict"],
            "error: there is no subcommand 'predict'; p4q-edge classify names what images show. Run: p4q-edge --help\n",
        ),
        (["doctr"], "error: there is no subcommand 'doctr' (nearest: doctor). Run: p4q-edge --help\n"),
        (["--json"], "error: a subcommand must come first, not --json. Run: p4q-edge --help\n"),
        (["trial", "--no"], "error: unrecognized arguments: --no. Run: p4q-edge trial --help\n"),
        (["trial", "--js"], "error: unrecognized arguments: --js (did you mean --json?). Run: p4q-edge trial --help\n"),
        (
            ["trial", "--quiet=5"],
            "error: argument -q/--quiet: ignored explicit argument '5'. Run: p4q-edge trial --help\n",
        ),
    ],
)
def test_wrong_usage(
    subcommand: Callable[..., None], capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    subcommand(lambda path, output: 0)
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "arguments", [["inspect", ""], ["embed", "x.onnx", "photos", "-o", ""], ["head", "add", "", "night.safetensors"]]
)
def test_an_empty_word_is_not_this_folder(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(arguments) == 2
    assert ": expected a path, got an empty argument. Run: p4q-edge" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["99999999999999999999", "-2147483648", "9" * 4000])
def test_whole_numbers_are_such_as_libraries_take(capsys: pytest.CaptureFixture[str], number: str) -> None:
    assert cli.main(["validate", "x.onnx", f"--seed={number}"]) == 2
    error = capsys.readouterr().err
    assert f"between -2147483647 and 2147483647, got one of {len(number)} digits. Run: p4q-edge validate" in error
    assert cli.main(["validate", "x.onnx", "--seed=1.5"]) == 2
    assert "argument --seed: expected a whole number, got '1.5'. Run: p4q-edge validate" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", "x.onnx", ""],
        ["embed", "x.onnx", "photos", "", "-o", "x.npz"],
        ["validate", "x.onnx", "--data", ""],
        ["build", "--class-names", "a,b", "--calibration-images", "", "--engine", "x.onnx"],
    ],
)
def test_an_empty_word_names_no_images(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(arguments) == 2
    assert ": expected a name or a path, got an empty argument. Run: p4q-edge" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "n" * 10_000],
        ["build", "--recipe", "n" * 300, "--engine", "x.onnx"],
        ["validate", "x.onnx", "--ood", "a/" * 3000 + "b"],
        ["validate", "x.onnx", "--report", "é" * 130 + ".md"],
    ],
)
def test_a_name_that_no_file_can_have(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert ": expected a path, got " in err
    assert "; the longest are 4095 and 255. Run: p4q-edge" in err
    assert len(err) < 300


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--corruption", "--corruption (did you mean --corruptions?). Run: p4q-edge validate --help"),
        ("--treads=3", "--treads=3 (did you mean --threads?). Run: p4q-edge validate --help"),
        ("--zzzz", "--zzzz. Run: p4q-edge validate --help"),
        ("--" + "n" * 5000, "nnn. Run: p4q-edge validate --help"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str], option: str, said: str
) -> None:
    assert cli.main(["validate", "x.onnx", option]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
def test_numbers_are_finite(capsys: pytest.CaptureFixture[str], number: str) -> None:
    assert cli.main(["validate", "x.onnx", f"--max-top1-drop={number}"]) == 2
    assert f": expected a number that is finite, got {number}. Run: p4q-edge validate" in capsys.readouterr().err
    assert cli.main(["validate", "x.onnx", "--max-top1-drop=half"]) == 2
    assert "argument --max-top1-drop: expected a number, got 'half'. Run: p4q-edge validate" in capsys.readouterr().err


def test_a_recipe_is_no_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", "p4q.toml", "--engine", "out.onnx"]) == 2
    told = capsys.readouterr().err
    assert "expected a bundle (.p4q), got the recipe p4q.toml" in told
    assert "Run: p4q-edge build --recipe p4q.toml --engine out.onnx" in told
    assert cli.main(["build", "my cups.toml", "--engine", "my out.onnx"]) == 2
    assert "Run: p4q-edge build --recipe 'my cups.toml' --engine 'my out.onnx'" in capsys.readouterr().err


def test_without_arguments_the_help_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: p4q-edge SUBCOMMAND")


def test_help_names_every_subcommand_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in [*RUNTIME_HELP, *cli.TOOLKIT_HELP]:
        assert f"\n  {name} " in out
    for code in (0, 1, 2, 3, 4, 5, 130):
        assert f"{code} " in out


@pytest.mark.parametrize("name", RUNTIME_HELP)
def test_a_subcommand_of_the_runtime_is_what_help_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: p4q-edge {name} " in out
    about = RUNTIME_HELP[name]
    assert f"\n{about[0].upper()}{about[1:]}.\n" in out


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def version(name: str) -> str:
        if name == "p4q-edge":
            raise metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "p4q-edge-runtime 1.2.3\np4q-edge not installed\n"
