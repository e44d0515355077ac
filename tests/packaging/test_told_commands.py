"""Commands that messages tell to run: a path in one is one word of a shell, whatever it is called."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from p4q_edge.runtime.artifacts import read_card
from p4q_edge.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("p4q_edge", "runtime/p4q_edge") for path in sorted((ROOT / folder).rglob("*.py"))]
PATHS = {"engine", "path", "_path", "folder", "bundle", "artifact", "own", "_name", "with_suffix"}
COMMAND = re.compile(r"p4q-edge [a-z-]+(?:(?!\. |; |`|, or|\(p4q-edge).)*$", re.DOTALL)
QUOTED = re.compile(r"^\s*(\w+)(?:, \w+)* = (?:shlex\.quote|quoted)\(", re.MULTILINE)


def bare_paths(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and expression of each path that stands in a command of an f-string without `quoted`."""
    quoted_before = set(QUOTED.findall(source))
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        text = ""
        for part in node.values:
            if isinstance(part, ast.Constant):
                text += str(part.value)
                continue
            assert isinstance(part, ast.FormattedValue)
            expression = part.value.func if isinstance(part.value, ast.Call) else part.value
            name = getattr(expression, "attr", getattr(expression, "id", ""))
            if COMMAND.search(text) and name in PATHS - quoted_before:
                yield part.value.lineno, ast.unparse(part.value)
            text += "X"


def test_paths_in_told_commands_are_quoted() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {{{what}}}"
        for path in SOURCES
        for line, what in bare_paths(path.read_text())
    ]
    assert not found, "write {quoted(...)} (p4q_edge.runtime.storage):\n" + "\n".join(found)


def test_a_bare_path_is_found() -> None:
    source = 'f"{engine} is old. Build again: p4q-edge build model.p4q --engine {engine} --force"'
    assert list(bare_paths(source)) == [(1, "engine")]
    assert not list(bare_paths(source.replace("{engine} --", "{quoted(engine)} --")))
    assert not list(bare_paths('f"`p4q-edge build` makes {path}; run p4q-edge doctor. See {folder}"'))


def test_what_is_told_can_be_copied(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--engine '[^']*/my engine\.onnx', or from a recipe: .* --engine '[^']*'$"):
        read_card(tmp_path / "my engine.onnx")
