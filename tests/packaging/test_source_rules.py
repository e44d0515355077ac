"""Rules that can be read from the source: who imports whom, how long things are, what no file may name."""

from __future__ import annotations

import ast
import re
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

MAX_MODULE_LINES = 400
MAX_TEST_MODULE_LINES = 300
MAX_FUNCTION_LINES = 50
MAX_PARAMETERS = 6
MAX_OBJECT_BYTES = 3_000_000
TORCH_SIGNATURES = {"scaled_dot_product_attention"}  # the exporter calls them with the parameters that torch has
FRAMEWORKS = {"torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript", "onnx_graphsurgeon", "sklearn"}
# The fast CPU profile rewrites the graph, which only happens where a CPU engine is built with it.
MAY_IMPORT_ONNX_LAZILY = {"runtime/p4q_edge/runtime/engines/onnxruntime/models.py"}


def tracked(repository: Path, *patterns: str) -> list[Path]:
    """Return the tracked files, and the new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns]
    listing = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout
    return [path for name in listing.split("\0") if name and (path := repository / name).is_file()]


def shipped(repository: Path) -> list[Path]:
    return tracked(repository, "p4q_edge/*.py", "runtime/*.py")


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Return the name and line of every module that is imported anywhere, in functions as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def forbidden_imports(source: str, *, may_import_onnx_lazily: bool = False) -> list[str]:
    """Return what a module of the runtime imports although the runtime must do without it."""
    tree = ast.parse(source)
    lazy = {id(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for node in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        for name, line in imported(node) if isinstance(node, ast.Import | ast.ImportFrom) else ():
            root = name.partition(".")[0]
            of_toolkit = root == "p4q_edge" and not f"{name}.".startswith("p4q_edge.runtime.")
            if root == "onnx" and may_import_onnx_lazily and id(node) in lazy:
                continue
            if root in FRAMEWORKS or of_toolkit:
                found.append(f"line {line}: {name}")
    return found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import torch", 1),
        ("def f():\n    from open_clip.model import CLIP", 2),
        ("import p4q_edge.quant.affine", 1),
        ("from p4q_edge import load", 2),
        ("from p4q_edge.runtime import errors", 0),
        ("import onnxruntime", 0),
        ("import onnx", 1),
    ],
)
def test_the_guard_of_the_layers_can_fail(source: str, count: int) -> None:
    assert len(forbidden_imports(source)) == count


def test_the_guard_of_the_layers_knows_where_onnx_is_allowed() -> None:
    assert forbidden_imports("def f():\n    import onnx", may_import_onnx_lazily=True) == []
    assert forbidden_imports("import onnx", may_import_onnx_lazily=True) == ["line 1: onnx"]


def test_the_runtime_imports_neither_toolkit_nor_framework(repository: Path) -> None:
    found = {}
    for path in tracked(repository, "runtime/*.py"):
        name = path.relative_to(repository).as_posix()
        lines = forbidden_imports(path.read_text(), may_import_onnx_lazily=name in MAY_IMPORT_ONNX_LAZILY)
        if lines:
            found[name] = lines
    assert found == {}


def test_the_namespace_stays_open(repository: Path) -> None:
    for folder in (repository / "p4q_edge", repository / "runtime/p4q_edge"):
        assert not (folder / "__init__.py").exists(), f"{folder}/__init__.py hides the other distribution"


def too_long(source: str) -> list[str]:
    """Return which functions have too many lines or parameters, and the module if it has too many lines."""
    found = []
    lines = len(source.splitlines())
    if lines > MAX_MODULE_LINES:
        found.append(f"{lines} lines")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) else None
            described = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
            length = (node.end_lineno or 0) - node.lineno + 1 - described
            arguments = node.args
            parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            count = len([item for item in parameters if item.arg not in ("self", "cls")])
            if length > MAX_FUNCTION_LINES:
                found.append(f"{node.name} has {length} lines")
            if count > MAX_PARAMETERS and node.name not in TORCH_SIGNATURES:
                found.append(f"{node.name} has {count} parameters")
    return found


def test_the_guard_of_the_lengths_can_fail() -> None:
    assert too_long("x = 1\n" * 401) == ["401 lines"]
    assert too_long("def f():\n" + "    x = 1\n" * 50) == ["f has 51 lines"]
    assert too_long('def f():\n    """Say what.\n\n    And why.\n    """\n' + "    x = 1\n" * 49) == []
    assert too_long("def f(a, b, /, c, *, d, e, f, g): ...") == ["f has 7 parameters"]
    assert too_long("class C:\n    def f(self, a, b, c, d, e, f): ...") == []


def test_modules_and_functions_are_short(repository: Path) -> None:
    paths = [*shipped(repository), *tracked(repository, "tools/*.py")]
    found = {path.relative_to(repository).as_posix(): too_long(path.read_text()) for path in paths}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_test_module_is_too_long(repository: Path) -> None:
    paths = tracked(repository, "tests/*.py")
    lengths = {str(path.relative_to(repository)): len(path.read_text().splitlines()) for path in paths}
    assert len(lengths) > 100
    assert {name: lines for name, lines in lengths.items() if lines > MAX_TEST_MODULE_LINES} == {}


# Written in pieces, so that this file does not name them either.
UNWANTED = {
    "a folder of one machine": r"(?<![\w.])/(?:wo" r"rk|ro" r"ot|home|Users)/[\w.]",
    "a temporary folder": r"(?<![\w.])/tm" r"p/[\w.]",
    "a folder beside the repository": r"\.\./sha" r"red\b",
    "a host of a registry": r"py" r"pi\.org|pythonhos" r"ted\.org|download\.py" r"torch\.org|regis" r"try\.npmjs",
}


def unwanted(text: str) -> list[str]:
    return [what for what, pattern in UNWANTED.items() if re.search(pattern, text)]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("/ro" + "ot/.cache/clip", 1),
        ("open('/tm" + "p/x')", 1),
        ("--index-url https://py" + "pi.org/simple", 1),
        ("see ../sha" + "red/data", 1),
        ("docs/ro" + "ot/x and p4q_edge/wo" + "rk/y", 0),
        ("{tmp_path}/tm" + "p", 0),
    ],
)
def test_the_guard_of_the_names_can_fail(text: str, count: int) -> None:
    assert len(unwanted(text)) == count


def test_no_file_names_a_machine_or_a_registry(repository: Path) -> None:
    found = {}
    for path in tracked(repository):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # binary
        if reasons := unwanted(text):
            found[path.relative_to(repository).as_posix()] = reasons
    assert found == {}


def test_no_large_file_is_tracked(repository: Path) -> None:
    # git keeps files deflated; the demo's weights are mostly zeros, for tokens that it never reads.
    large = [path for path in tracked(repository) if path.stat().st_size > MAX_OBJECT_BYTES]
    sizes = {path.name: len(zlib.compress(path.read_bytes())) for path in large}
    assert {name: size for name, size in sizes.items() if size > MAX_OBJECT_BYTES} == {}


def test_pinned_versions_are_names_only(repository: Path) -> None:
    for line in (repository / "tools/constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r'[a-z0-9-]+==[\w.]+(?: ; python_version (?:<|>=) "3\.\d+")?', line), line


def test_every_requirement_is_pinned(repository: Path) -> None:
    import tomllib

    lines = (repository / "tools/constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    for project in ("pyproject.toml", "runtime/pyproject.toml"):
        metadata = tomllib.loads((repository / project).read_text())["project"]
        optional = metadata["optional-dependencies"]
        groups = [
            metadata["dependencies"],
            *(optional[name] for name in optional if name != "pycuda"),
        ]
        for requirement in (line for group in groups for line in group):
            name = re.split(r"[^\w-]", requirement)[0].replace("_", "-").lower()
            assert name in pinned | {"p4q-edge", "p4q-edge-runtime"}, f"{name} is not in tools/constraints.txt"


def outside_state(source: str) -> list[str]:
    """Return assignments to attributes that the quantized modules keep for themselves, and unmade constructors."""
    own = {"phase", "products", "dynamic", "float_prefix"}
    found = []
    for node in ast.walk(ast.parse(source)):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found += [
            ast.unparse(target)
            for target in targets
            if isinstance(target, ast.Attribute) and target.attr in own and ast.unparse(target.value) != "self"
        ]
        if isinstance(node, ast.Attribute) and (node.attr == "__dict__" or ast.unparse(node) == "cls.__new__"):
            found.append(ast.unparse(node))
    return found


def test_no_room_sets_the_state_of_another(repository: Path) -> None:
    for path in (repository / "p4q_edge").rglob("*.py"):
        if path.parent.name != "quant":
            assert outside_state(path.read_text(encoding="utf-8")) == [], path
    for path in (repository / "runtime" / "p4q_edge").rglob("*.py"):
        assert outside_state(path.read_text(encoding="utf-8")) == [], path


def test_the_search_for_outside_state_can_find_some() -> None:
    planted = 'linear.phase = x\nself.__dict__["tower"] = t\nengine = cls.__new__(cls)\nself.phase = x'
    assert outside_state(planted) == ["linear.phase", "self.__dict__", "cls.__new__"]
