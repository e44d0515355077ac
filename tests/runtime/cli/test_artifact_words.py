"""`inspect` in words: within 100 columns, no mapping as Python writes it, every value with `-v`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from p4q_edge.runtime.artifacts.bundle import HEAD, read_bundle
from p4q_edge.runtime.cli.artifact_words import every_value, in_words
from p4q_edge.runtime.cli.commands.inspect import describe

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def artifacts(tiny_engine: Path, tiny_bundle: Path, tmp_path: Path) -> dict[str, Path]:
    head = tmp_path / "head.safetensors"
    head.write_bytes(read_bundle(tiny_bundle).read(HEAD))
    return {"engine": tiny_engine, "bundle": tiny_bundle, "head": head}


@pytest.mark.parametrize("kind", ["engine", "bundle", "head"])
def test_words_fit_the_screen(artifacts: dict[str, Path], kind: str, run: Run) -> None:
    code, out, _ = run("inspect", artifacts[kind])
    title, *lines = out.rstrip().splitlines()
    assert code == 0
    assert title.startswith(f"{kind} ")
    assert all(len(line) <= 100 for line in lines if "/" not in line)  # a path cannot be broken
    assert not set("{}[]") & set("".join(lines))
    assert any(line.startswith("classes         3: circle, square, triangle") for line in lines)


def test_an_engine_says_what_runs_it_and_how_well(artifacts: dict[str, Path], run: Run) -> None:
    _, out, _ = run("inspect", artifacts["engine"])
    assert "runs in         ONNX Runtime; built by p4q-edge-runtime" in out
    assert "precision       W8A8 executed, fp32 remainder, 2 linears quantized" in out
    assert "scores          softmax, temperature 1, no answer is unknown" in out
    assert "kernels         2 of 5 matrix products in INT8; " in out
    assert "self-test       least cosine " in out


def test_a_bundle_says_what_it_was_made_of(artifacts: dict[str, Path], run: Run) -> None:
    _, out, _ = run("inspect", artifacts["bundle"])
    assert "made by " in out
    assert "graphs " in out
    assert "for TensorRT" in out
    assert f"next            p4q-edge build {artifacts['bundle']} --engine" in out


def test_the_next_command_is_one_line_that_can_be_copied(artifacts: dict[str, Path]) -> None:
    path = Path("/", *["a-long-folder"] * 9, "model.p4q")
    document = {**msgspec.to_builtins(describe(artifacts["bundle"])), "path": str(path)}
    lines = in_words(document).splitlines()
    assert f"next            p4q-edge build {path} --engine {path.with_suffix('.onnx')}" in lines


@pytest.mark.parametrize("kind", ["engine", "bundle", "head"])
def test_v_shows_every_value(artifacts: dict[str, Path], kind: str, run: Run) -> None:
    _, out, _ = run("inspect", artifacts[kind], "-v")
    document = msgspec.to_builtins(describe(artifacts[kind]))
    for key, value in document.items():
        if value not in ("", {}, [], None):
            assert any(line.startswith(key) for line in out.splitlines()), key
    assert "{'" not in out


def test_records_in_lists_become_lines() -> None:
    lines = every_value(
        {"parts": [{"name": "a", "size": 1}, {"name": "b", "size": 2}], "empty": {}, "names": ["x", "y"]}
    )
    assert lines == ["parts (2)", "  name a, size 1", "  name b, size 2", "names  x, y"]


def test_names_of_strangers_steer_no_terminal(artifacts: dict[str, Path]) -> None:
    document = {**msgspec.to_builtins(describe(artifacts["head"])), "class_names": ["a\x1b[2J", "b"]}
    assert "a\\x1b[2J" in in_words(document)
    assert "\x1b" not in in_words(document)
