"""What the READMEs say can be typed: links, make targets, subcommands and their options exist, Python compiles."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from site_pages import MADE

from p4q_edge.runtime.cli import main as cli
from p4q_edge.runtime.cli.command import Command
from p4q_edge.runtime.machine import advice

ROOT = Path(__file__).parents[2]
DOCUMENTS = tuple(
    sorted(
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.md", "runtime/README.md", "calibration/README.md", "docs/*.md", "examples/**/README.md")
        for path in ROOT.glob(pattern)
        if path.name != "CHANGELOG.md"  # what could be typed once
    )
)
MAX_LINES = 150


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language; a fence without a language both opens and closes."""
    parts = re.split(r"(?m)^```(.*)\n", text)
    # text, language, code, "" (the closing fence), text, ...
    return [code for named, code in zip(parts[1::4], parts[2::4], strict=True) if named == language]


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in a code block without language, and of each `p4q-edge ...` in prose."""
    lines = [line for block in blocks(text, "") for line in block.replace("\\\n", " ").splitlines()]
    lines += [span.replace("\n", " ") for span in re.findall(r"(?<!`)`(p4q-edge [^`]+)`(?!`)", text)]
    for line in lines:
        if re.match(r"(p4q-edge|make|pip|python3) ", line):
            yield shlex.split(line, comments=True)


def parser_of(words: list[str]) -> argparse.ArgumentParser:
    """Return the parser of a command line, also of `p4q-edge head ACTION`."""
    parser: argparse.ArgumentParser = cli.build_parser(words[1])
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and len(words) > 2:
            return action.choices[words[2]]
    return parser


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(repository: Path, document: str) -> None:
    path = repository / document
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target and target not in MADE:
            assert (path.parent / target).exists(), f"{document} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_can_be_typed(repository: Path, document: str) -> None:
    makefile = (repository / "Makefile").read_text()
    for words in commands((repository / document).read_text()):
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert all(re.search(rf"(?m)^{target}:", makefile) for target in targets), words
        elif words[0] == "p4q-edge":
            options = {option for action in parser_of(words)._actions for option in action.option_strings}
            assert {word.partition("=")[0] for word in words[2:] if word.startswith("-") and word != "-"} <= options, (
                words
            )


def test_the_guides_have_commands() -> None:
    guides = ("README.md", "runtime/README.md", "docs/quick-start.md", "docs/own-photos.md", "docs/serving.md")
    assert all(len(list(commands((ROOT / name).read_text()))) > 3 for name in guides)


def test_the_check_of_commands_can_fail() -> None:
    assert blocks("```python\na\n```\nb\n```\nc\n```\n", "") == ["c\n"]
    found = list(commands("```\nmake nothing  # a comment\np4q-edge doctor --no\n```\nand `p4q-edge head`"))
    assert found == [["make", "nothing"], ["p4q-edge", "doctor", "--no"], ["p4q-edge", "head"]]


@pytest.mark.parametrize("document", ["README.md", "runtime/README.md", "docs/quick-start.md"])
def test_python_examples_use_what_exists(repository: Path, document: str) -> None:
    from p4q_edge import runtime

    examples = blocks((repository / document).read_text(), "python")
    assert examples
    for example in examples:
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom):
                assert node.module == "p4q_edge.runtime"
                assert all(hasattr(runtime, alias.name) for alias in node.names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "classifier":
                assert hasattr(runtime.ZeroShotClassifier, node.attr), node.attr


def test_the_recipe_of_the_readme_is_one(repository: Path) -> None:
    from p4q_edge.recipe.toml import parse_recipe

    (example,) = blocks((repository / "README.md").read_text(), "toml")
    assert parse_recipe(tomllib.loads(example), source="README.md").data.shots == 16


def test_the_two_commands_come_first(repository: Path) -> None:
    text = (repository / "README.md").read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert [line.split("#")[0].split() for line in blocks(text, "")[0].splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]


def test_the_guide_advises_what_the_program_advises(repository: Path) -> None:
    guide = (repository / "runtime/README.md").read_text()
    assert advice.COMPATIBILITY in guide
    assert advice.CONTAINER in guide
    packages = {advice.install_tensorrt(jetpack=None, cuda=cuda).split()[-1] for cuda in ("12.6", "13.0")}
    assert packages == {"tensorrt-cu12", "tensorrt-cu13"}
    for phrase in (*packages, "python3 -m venv --system-site-packages"):
        assert phrase in guide
        assert phrase in advice.HOW_TO_INSTALL


@pytest.fixture
def accuracy_table(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("accuracy_table", repository / "tools/bench/accuracy_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_accuracies_are_those_of_the_results(accuracy_table: ModuleType) -> None:
    assert accuracy_table.main(["--check"]) == 0, "python tools/bench/accuracy_table.py writes the tables again"


@pytest.mark.parametrize("data", ["digits", "caltech101"])
def test_the_check_of_the_accuracies_can_fail(
    accuracy_table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    shutil.copytree(accuracy_table.RESULTS, tmp_path / "results")
    monkeypatch.setattr(accuracy_table, "RESULTS", tmp_path / "results")
    assert accuracy_table.main(["--check"]) == 0
    result = sorted((tmp_path / "results").glob(f"accuracy-{data}-*.json"))[-1]
    document = json.loads(result.read_text())
    measured = next(row for row in document["rows"] if row["method"] == "PTQ" and row["width"] == "W8A8")
    measured["top1"]["mean"] += 0.01
    result.write_text(json.dumps(document))
    assert accuracy_table.main(["--check"]) == 1


@pytest.mark.parametrize("name", cli.TOOLKIT_HELP)
def test_a_subcommand_of_the_toolkit_is_what_help_says(name: str) -> None:
    assert isinstance(cli.load_command(name), Command)
    assert cli.TOOLKIT_HELP[name].lower() in cli.build_parser(name).format_help().lower().replace("\n", " ")
