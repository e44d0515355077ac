"""The rooms of both distributions: who may import whom.

A room is a package right below `p4q_edge.runtime` or `p4q_edge`. It imports only from rooms below it, type-only and
lazy imports included; other rooms import only what its `__init__`, or that of a package within it, offers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

RUNTIME = (
    *("errors", "lazy", "choices", "stage", "progress", "wording"),
    *("storage", "statistics", "machine", "images", "artifacts", "engines", "verification", "builders"),
    *("classification", "bulk", "serving", "http", "benchmark", "evaluation", "hub", "cli"),
)
"""Bottom to top; the first six are modules."""
TOOLKIT = (
    *("demo", "quant", "recipe", "data", "models", "calibration", "learning", "graph", "stages", "baselines"),
    *("evaluation", "api", "cli"),
)
LEAVES = RUNTIME[:6]
"""Modules on the ground floor, imported directly."""
COMMAND_ROOM = ["p4q_edge", "runtime", "cli"]
"""Of `python -m p4q_edge`, the one module of the namespace itself."""


@dataclass(frozen=True)
class Import:
    """One name that a module imports, wherever it does: at the top, in a function or for type checkers only."""

    importer: str
    module: str
    name: str


def module_name(path: Path) -> str:
    """Return the dotted name of a source file, seen from the root of its distribution."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(repository: Path) -> dict[str, str]:
    """Return the source text of every shipped module by its dotted name."""
    found = {}
    for root in (repository, repository / "runtime"):
        for path in sorted((root / "p4q_edge").rglob("*.py")):
            found[module_name(path.relative_to(root))] = path.read_text(encoding="utf-8")
    return found


def imports(importer: str, source: str) -> Iterator[Import]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "p4q_edge":
            yield from (Import(importer, node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (Import(importer, alias.name, "") for alias in node.names if alias.name.startswith("p4q_edge."))


def floor(module: str) -> tuple[int, int] | None:
    """Return the distribution (0: runtime, 1: toolkit) and the floor of a module's room; None of the package itself."""
    parts = COMMAND_ROOM if module == "p4q_edge.__main__" else module.split(".")
    if parts[1:2] == ["runtime"]:
        return (0, RUNTIME.index(parts[2])) if len(parts) > 2 else None
    return (1, TOOLKIT.index(parts[1]))


def offered(source: str) -> set[str]:
    """Return the names in `__all__`."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def problems(modules: Mapping[str, str]) -> list[str]:
    """Return every import that the order of rooms forbids, and every pair of modules that import each other."""
    packages = {name for name in modules if any(other.startswith(f"{name}.") for other in modules)}
    found, edges = [], set()
    for importer, source in modules.items():
        here = floor(importer)
        for one in imports(importer, source):
            target = f"{one.module}.{one.name}" if f"{one.module}.{one.name}" in modules else one.module
            edges.add((importer, target))
            there = floor(target)
            if here is None or there is None or here == there:
                continue
            if there > here:
                found.append(f"{importer} imports {target}, which lies above it")
            elif target.rpartition(".")[2] in LEAVES and there[0] == 0:
                continue
            elif one.name not in offered(modules[one.module]):
                found.append(f"{importer} imports {one.name} of {one.module}, which its room does not offer")
    outside = {(a, b) for a, b in edges if a not in packages and b not in packages}
    found += [f"{a} and {b} import each other" for a, b in sorted(outside) if a < b and (b, a) in outside]
    return found


def test_every_room_is_on_a_floor(repository: Path) -> None:
    modules = sources(repository)
    rooms = {name.split(".")[2] for name in modules if name.startswith("p4q_edge.runtime.")}
    assert rooms == set(RUNTIME)
    assert {name.split(".")[1] for name in modules} - {"runtime", "__main__"} == set(TOOLKIT)


def test_every_room_of_the_toolkit_is_typed_for_its_users(repository: Path) -> None:
    """The namespace has no `py.typed` of its own: two distributions share it."""
    assert [room for room in TOOLKIT if not (repository / "p4q_edge" / room / "py.typed").is_file()] == []


def test_rooms_import_only_what_the_rooms_below_them_offer(repository: Path) -> None:
    assert problems(sources(repository)) == []


OFFER = '__all__ = ["atomic_write"]'


@pytest.mark.parametrize(
    ("importer", "source", "expected"),
    [
        ("p4q_edge.runtime.storage.files", "from p4q_edge.runtime.cli.main import main", ["lies above"]),
        ("p4q_edge.runtime.storage.files", "def f():\n    import p4q_edge.runtime.cli.main", ["lies above"]),
        (
            "p4q_edge.runtime.storage.files",
            "if TYPE_CHECKING:\n    from p4q_edge.runtime.cli.main import main",
            ["lies above"],
        ),
        ("p4q_edge.runtime.cli.main", "from p4q_edge.runtime.storage.files import f", ["does not offer"]),
        ("p4q_edge.runtime.cli.main", "from p4q_edge.runtime.storage import f", ["does not offer"]),
        ("p4q_edge.runtime.cli.main", "from p4q_edge.runtime.storage import files", ["does not offer"]),
        ("p4q_edge.runtime.cli.main", "from p4q_edge.runtime.storage import atomic_write", []),
        ("p4q_edge.runtime.cli.main", "from p4q_edge.runtime.errors import UsageError", []),
        ("p4q_edge.runtime.cli.main", "from p4q_edge.runtime.cli.command import f", ["import each other"]),
        ("p4q_edge.runtime.cli.main", "from p4q_edge.quant import affine", ["lies above"]),
    ],
)
def test_a_planted_import_is_found(importer: str, source: str, expected: list[str]) -> None:
    modules = {
        "p4q_edge.runtime.cli": "",
        "p4q_edge.runtime.cli.main": "",
        "p4q_edge.runtime.cli.command": "def f():\n    from p4q_edge.runtime.cli.main import main",
        "p4q_edge.runtime.errors": "",
        "p4q_edge.runtime.storage": OFFER,
        "p4q_edge.runtime.storage.files": "",
        "p4q_edge.quant": "",
        "p4q_edge.quant.affine": "",
    }
    assert problems(modules) == []
    found = problems({**modules, importer: source})
    assert len(found) == len(expected), found
    assert all(part in line for part, line in zip(expected, found, strict=True)), found


def lazily_offered(source: str) -> tuple[set[str], set[str]]:
    """Return the names that a package imports for type checkers, and those that it imports when they are used."""
    for_checkers: set[str] = set()
    at_use: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom):
                    for_checkers |= {alias.asname or alias.name for alias in line.names}
        elif isinstance(node, ast.If):
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "lazy_exports":
                    table = call.args[1]
                    at_use |= {
                        str(item.value)
                        for entry in (table.values if isinstance(table, ast.Dict) else [])
                        for item in ast.walk(entry)
                        if isinstance(item, ast.Constant) and isinstance(item.value, str)
                    }
    return for_checkers, at_use


def test_what_a_room_offers_is_what_type_checkers_see(repository: Path) -> None:
    modules = sources(repository)
    for name, source in modules.items():
        if "lazy_exports(" not in source or name in ("p4q_edge.runtime", "p4q_edge.runtime.lazy"):
            continue
        for_checkers, at_use = lazily_offered(source)
        submodules = {one for one in for_checkers if f"{name}.{one}" in modules}
        assert for_checkers == offered(source), name
        assert at_use | submodules == offered(source), name
        # A function must not have the name of its module: importing the module would hide it.
        assert not {one for one in at_use if f"{name}.{one}" in modules}, name


def places(source: str, package: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return module and name of what a package imports for type checkers, and of its lazy table, as often as listed."""
    for_checkers: list[tuple[str, str]] = []
    at_use: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            for_checkers += [(str(node.module), alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy_exports":
            table = ast.literal_eval(node.args[1])
            at_use += [(f"{package}.{module}", name) for module, names in table.items() for name in names]
    return for_checkers, at_use


def test_a_room_takes_each_name_once_and_from_where_type_checkers_do(repository: Path) -> None:
    """Of a name that is listed twice the last place counts; one that only imports it for itself may stop to."""
    for name, source in sources(repository).items():
        if "lazy_exports(" in source and name not in ("p4q_edge.runtime", "p4q_edge.runtime.lazy", "p4q_edge.api"):
            for_checkers, at_use = places(source, name)
            assert sorted(at_use) == sorted(for_checkers), name
