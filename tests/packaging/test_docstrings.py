"""One dialect of docstrings: a function's begins with a verb, and code stands in single backticks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

NOUN = re.compile(r"(The|A|An|What|Whether|Which|How|All|Each|Every|One|Features|Logits|Names|Paths|Indices)\b")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def faults(source: str) -> Iterator[str]:
    """Yield what is wrong with the docstrings of a module; properties and context managers are named as things."""
    for node in ast.walk(ast.parse(source)):
        text = ast.get_docstring(node) if isinstance(node, Documented) else None
        if text is None:
            continue
        name = getattr(node, "name", "the module")
        if "``" in text.replace("```", ""):
            yield f"{name}: double backticks"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and NOUN.match(text):
            decorators = " ".join(map(ast.unparse, node.decorator_list))
            if (
                "property" not in decorators
                and "contextmanager" not in decorators
                and ast.unparse(node.returns or ast.Constant(None)) != "None"
            ):
                yield f"{name}: begins with no verb"


def test_docstrings_have_one_dialect(repository: Path) -> None:
    paths = [path for root in ("p4q_edge", "runtime/p4q_edge") for path in sorted((repository / root).rglob("*.py"))]
    assert len(paths) > 300
    found = {path.relative_to(repository).as_posix(): [*faults(path.read_text(encoding="utf-8"))] for path in paths}
    assert {path: said for path, said in found.items() if said} == {}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('def f() -> int:\n    """The number."""', "f: begins with no verb"),
        ('def f() -> int:\n    """Return ``n``."""', "f: double backticks"),
        ('"""About ``n``."""', "the module: double backticks"),
    ],
)
def test_another_dialect_is_found(source: str, said: str) -> None:
    assert [*faults(source)] == [said]


@pytest.mark.parametrize(
    "source",
    [
        'def f() -> int:\n    """Return `n`."""',
        'class C:\n    """The thing."""\n    @property\n    def f(self) -> int:\n        """The number."""',
        'def f() -> None:\n    """Stage `learn`."""',
    ],
)
def test_the_one_dialect_is_let_through(source: str) -> None:
    assert [*faults(source)] == []
