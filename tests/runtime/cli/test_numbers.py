"""Numbers of the command line that nobody expects there: each works, or is refused with what was expected and came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from p4q_edge.runtime.cli.artifact_words import value_words

Run = Callable[..., tuple[int, str, str]]

NUMBERS = ("0", "-1", "1e308", "nan", "inf", "1e-320", "9223372036854775808", "true", "1.5", "x", "", "1")
TAKEN = {
    "--top-k": {"1"},
    "--threshold": {"0", "1e-320", "1"},
    "--threads": {"1"},
    "--warm-up": {"0", "1"},
    "--energy-seconds": {"0", "1e-320", "1.5", "1"},
    "--seconds": {"0", "1e-320", "1.5", "1"},
    "--batch": {"1"},
    "--limit": {"0", "1"},
    "--seed": {"0", "1"},
    "--accuracy": {"1e-320", "1"},
    "--max-unknown": {"0", "1e-320", "1"},
    "--max-fps": {"1.5", "1", "1e308", "9223372036854775808"},
    "--port": {"0", "1"},
    "--requests": {"1"},
    "--max-image-mb": {"1"},
}
"""Of each option; what is taken is not run here where that takes seconds."""
OPTIONS = [
    (command, option)
    for command, options in {
        "classify": ("--top-k", "--threshold", "--threads", "--max-fps"),
        "bench": ("--seconds", "--warm-up", "--energy-seconds", "--batch", "--threads"),
        "validate": ("--limit", "--batch", "--seed"),
        "calibrate": ("--accuracy", "--max-unknown"),
        "teach": ("--threads",),
        "selftest": ("--threads",),
        "serve": ("--port", "--requests", "--max-image-mb"),
        "build": ("--threads", "--batch"),
    }.items()
    for option in options
]


@pytest.fixture
def arguments(tiny_engine: Path, tiny_bundle: Path, photo: Path, tmp_path: Path) -> dict[str, list[str | Path]]:
    photos = tmp_path / "photos"
    for name in ("circle", "square"):
        (photos / name).mkdir(parents=True)
        (photos / name / "a.png").write_bytes(photo.read_bytes())
    return {
        "classify": ["classify", tiny_engine, photo],
        "bench": ["bench", tiny_engine],
        "validate": ["validate", tiny_engine],
        "calibrate": ["head", "calibrate", tiny_engine, photos],
        "teach": ["teach", tiny_engine, photos, "--name", "x"],
        "selftest": ["selftest", tiny_engine],
        "serve": ["serve", tiny_engine],
        "build": ["build", tiny_bundle, "--engine", tmp_path / "new.onnx"],
    }


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_a_strange_number_is_refused_in_one_line(
    arguments: dict[str, list[str | Path]], run: Run, command: str, option: str
) -> None:
    if command == "serve":
        pytest.importorskip("starlette")
        pytest.importorskip("uvicorn")
    # As an option, as a key of Python, or in the words that explain it.
    names = {"--accuracy": "accuracy", "--max-image-mb": "a request"}
    for number in NUMBERS:
        if number in TAKEN[option]:
            continue
        code, out, err = run(*arguments[command], f"{option}={number}")
        assert (code, out) == (2, ""), number
        assert err.count("\n") == 1
        assert option in err or names.get(option, option[2:].replace("-", "_")) in err
        assert "expected" in err or "must" in err or "at most" in err
        assert "got" in err or number in err


@pytest.mark.parametrize("option", ["--limit", "--max-top1-drop"])
def test_what_is_no_number_is_told_with_what_was_expected(run: Run, option: str) -> None:
    code, _, err = run("validate", "x.onnx", f"{option}={'z' * 5000}")
    assert code == 2
    assert "number, got 'zzz" in err
    assert len(err) < 300


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (("exact", "fast"), "exact, fast"),
        ([], "none"),
        (None, "none"),
        (True, "yes"),
        (False, "no"),
        ({"min": 1, "opt": None}, "min 1, opt none"),
        ({}, "none"),
        (8280, "8280"),
    ],
)
def test_values_are_told_in_words(value: object, words: str) -> None:
    assert value_words(value) == words


def test_a_dry_run_is_told_in_words(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    code, out, _ = run("build", tiny_bundle, "--engine", tmp_path / "out.onnx", "--dry-run")
    assert code == 0
    assert "exists  no\n" in out
    assert not set("()[]{}'") & set(out.replace(str(tmp_path), ""))
    assert "None" not in out
    assert "False" not in out
