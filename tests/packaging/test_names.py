"""One public name means one thing, over both distributions."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

SHARED = {
    "main": "where a process starts: the command, the workers of builds, the probe of libraries",
    "fingerprint": "what every module of an engine answers: which library and machine a compiled engine is for",
}
"""Names that several modules define, because all of them do the same there."""


def public_names(source: str) -> Iterator[str]:
    """Yield the functions, classes and named types at the top of a module."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
            names = [ast.unparse(node.target)]
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp):
            names = [name for target in node.targets if is_type(name := ast.unparse(target))]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


def is_type(name: str) -> bool:
    """Whether a name is written as those of types are."""
    return name[:1].isupper() and not name.isupper() and name.isidentifier()


def with_two_meanings(modules: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the modules of every public name that more than one defines."""
    found: dict[str, list[str]] = defaultdict(list)
    for module, source in modules.items():
        for name in public_names(source):
            found[name].append(module)
    return {name: where for name, where in found.items() if len(where) > 1}


def test_a_public_name_means_one_thing(repository: Path) -> None:
    modules = {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for root in (repository, repository / "runtime")
        for path in sorted((root / "p4q_edge").rglob("*.py"))
    }
    assert len(modules) > 300
    found = with_two_meanings(modules)
    assert {name: where for name, where in found.items() if name not in SHARED} == {}
    assert sorted(found) == sorted(SHARED), "an exception that nothing needs any more"


def test_a_second_meaning_is_found() -> None:
    planted = {
        "a": "def judge(): ...\nclass Part: ...\nRows: TypeAlias = list[int]\n_own = 1",
        "b": "async def judge(): ...\nclass Part: ...\nRows = list[int]\ndef _own(): ...",
        "c": "def other(): ...",
    }
    assert with_two_meanings(planted) == {"judge": ["a", "b"], "Part": ["a", "b"], "Rows": ["a", "b"]}
