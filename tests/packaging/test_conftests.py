"""A conftest holds fixtures and pytest's own hooks; what they are made of lies in `tests/support`."""

from __future__ import annotations

import ast
from pathlib import Path


def helpers(source: str) -> list[str]:
    """Return the functions and classes of a conftest that are neither."""
    return [
        node.name
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
        or (
            isinstance(node, ast.FunctionDef)
            and not node.name.startswith("pytest_")
            and not any("fixture" in ast.unparse(decorator) for decorator in node.decorator_list)
        )
    ]


def test_conftests_hold_fixtures_only(repository: Path) -> None:
    conftests = sorted((repository / "tests").rglob("conftest.py"))
    assert len(conftests) > 8
    found = {path.relative_to(repository).as_posix(): helpers(path.read_text(encoding="utf-8")) for path in conftests}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_helper_is_found() -> None:
    source = """
def pytest_configure(config): ...
@pytest.fixture(scope="session")
def engine(): ...
def _make(): ...
class Server: ...
"""
    assert helpers(source) == ["_make", "Server"]
