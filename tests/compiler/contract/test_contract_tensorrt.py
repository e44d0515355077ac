"""What our code uses of TensorRT exists in NVIDIA's bindings 10.3, 10.13, 10.16 and 11.4; nothing removed is used."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

# Names that a removed member of TensorRT shares with fields of ours.
OURS = {"precision"}
# Removed in 11, and asked for by name where the version is older: `BuilderFlag` under weak typing.
GUARDED = {"INT8", "FP16"}


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _expected_enums(surface: dict[str, Any], version: str) -> Iterator[tuple[str, str, bool]]:
    """Every enum member that the code may ask for, and whether this version has it."""
    for name, members in surface["enums"].items():
        yield from ((name, member, True) for member in members)
    for name, members in surface["enums_since"].items():
        yield from ((name, member, _key(version) >= _key(first)) for member, first in members.items())
    for name, members in surface["enums_until"].items():
        yield from ((name, member, _key(version) < _key(last)) for member, last in members.items())


def test_every_class_and_member_of_the_surface_exists(bindings: dict[str, Any], surface: dict[str, Any]) -> None:
    missing = [
        f"{kind}.{member}"
        for kind, members in surface["classes"].items()
        for member in members
        if member not in bindings["classes"].get(kind, {})
    ]
    assert missing == []


def test_every_enum_member_exists_exactly_where_the_surface_says(
    bindings: dict[str, Any], surface: dict[str, Any]
) -> None:
    expected = list(_expected_enums(surface, bindings["version"]))
    found = [(name, member, member in bindings["classes"][name]) for name, member, _ in expected]
    assert found == expected


def test_what_we_override_is_called_with_the_parameters_we_take(
    bindings: dict[str, Any], surface: dict[str, Any]
) -> None:
    for kind, methods in surface["overridden"].items():
        for method, parameters in methods.items():
            assert parameters in _parameters(bindings["classes"][kind][method]), f"{kind}.{method}"


def test_calls_of_the_double_would_bind_to_the_real_methods(bindings: dict[str, Any], doubles: ModuleType) -> None:
    """The double takes its parameters in the real order and under the real names; what it leaves out is optional."""
    checked = 0
    for kind in (*doubles.CLASSES_OF_MODULE, *doubles.CLASSES_BEHIND):
        for name, function in vars(kind).items():
            real = list(_signatures(bindings["classes"][kind.__name__].get(name, "")))
            # What has no signature is an attribute there, or cannot be made by Python.
            if not inspect.isfunction(function) or not real or kind.__name__ == "Weights":
                continue
            ours = list(inspect.signature(function).parameters)[1:]
            assert any(_binds(ours, signature) for signature in real), f"{kind.__name__}.{name}: {real}"
            checked += 1
    assert checked >= 30


def test_weights_are_made_of_an_array(bindings: dict[str, Any]) -> None:
    assert re.search(r"Weights, a: (numpy|Annotated|collections|typing)", bindings["classes"]["Weights"]["__init__"])


WEIGHTS = """
import ctypes, json, sys
import numpy as np
folder, major = sys.argv[1], sys.argv[2]
for library in sys.argv[3:]:
    ctypes.CDLL(f"{folder}/{library}.so.{major}", ctypes.RTLD_GLOBAL)
import tensorrt_bindings as trt
from p4q_edge.runtime.builders.tensorrt.network import read_weights
right = []
for dtype in (np.int8, np.float16, np.float32):
    array = np.arange(1, 7).astype(dtype)
    weights = trt.Weights(array)
    given = weights.numpy()
    read = read_weights(given)
    right.append([weights.size == 6, given.ctypes.data == array.ctypes.data, read.dtype == dtype,
                  np.array_equal(read, array), np.array_equal(given, array)])
print(json.dumps(right))
"""


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106"])
def test_weights_are_read_as_they_are_although_older_bindings_misread_numpy_2(
    version: str, describe_arguments: Callable[[str], tuple[Path, list[str]]], python: Callable[..., str]
) -> None:
    folder, arguments = describe_arguments(version)
    found = json.loads(python(WEIGHTS, *arguments, path=folder))
    assert [row[:4] for row in found] == [[True] * 4] * 3
    misread = _key(version) < (10, 16) and np.lib.NumpyVersion(np.__version__) >= "2.0.0"
    assert [row[4] for row in found] == [not misread] * 3


OBJECTS = """
import ctypes, json, sys
folder, major = sys.argv[1], sys.argv[2]
for library in sys.argv[3:]:
    ctypes.CDLL(f"{folder}/{library}.so.{major}", ctypes.RTLD_GLOBAL)
import tensorrt_bindings as trt
from p4q_edge.runtime.engines.tensorrt.library import make_logger, problems
from p4q_edge.runtime.builders.tensorrt.progress import make_monitor
log = make_logger(trt)
for severity in (trt.ILogger.VERBOSE, trt.ILogger.INFO, trt.ILogger.WARNING):
    log.log(severity, "fine")
log.log(trt.ILogger.Severity.ERROR, "broken")
seen = []
monitor = make_monitor(trt, report=lambda tree: seen.append(tree.fraction), cancelled=lambda: len(seen) >= 2)
monitor.phase_start("Building engine", None, 4)
goes_on = [monitor.step_complete("Building engine", step) for step in range(3)]
monitor.phase_finish("Building engine")
dims = trt.Dims([2, 3, 4])
print(json.dumps({"problems": problems(log), "seen": seen, "goes_on": goes_on,
                  "dims": [*dims], "first": next(iter(dims)),
                  "is_logger": isinstance(log, trt.ILogger), "is_monitor": isinstance(monitor, trt.IProgressMonitor)}))
"""


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106"])
def test_our_logger_and_monitor_are_made_of_the_real_classes(
    version: str, describe_arguments: Callable[[str], tuple[Path, list[str]]], python: Callable[..., str]
) -> None:
    folder, arguments = describe_arguments(version)
    assert json.loads(python(OBJECTS, *arguments, path=folder)) == {
        "problems": "broken",
        "seen": [0.25, 0.5],
        "goes_on": [True, True, False],
        "dims": [2, 3, 4],
        "first": 2,
        "is_logger": True,
        "is_monitor": True,
    }


def test_the_sources_name_nothing_outside_the_surface(repository: Path, surface: dict[str, Any]) -> None:
    known = {**surface["classes"], **surface["enums"], **surface["rtx"]["enums"]}
    found = {chain for path in _sources(repository) for chain in _chains(path.read_text(encoding="utf-8"))}
    for chain in found:
        first, *rest = chain.split(".")
        if first == "__version__":
            continue
        assert first in known, f"trt.{chain}"
        assert not rest or rest[0] in known[first], f"trt.{chain}"
    assert {"OnnxParser", "BuilderFlag.VERSION_COMPATIBLE", "ILogger.ERROR"} <= found


def test_the_sources_touch_nothing_that_left_between_10_3_and_11(
    repository: Path, describe: Callable[[str], dict[str, Any]]
) -> None:
    removed = _members(describe("10.3.0")) - _members(describe("11.4.0.106"))
    assert {
        "int8_calibrator",
        "platform_has_fast_int8",
        "dynamic_range",
        "EXPLICIT_BATCH",
        "set_output_type",
    } <= removed
    for path in _sources(repository):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert used & removed <= OURS, path.name
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        named = {text for text in texts if isinstance(text, str)}
        assert named & removed <= GUARDED | OURS, path.name


def test_the_guarded_names_are_flags_only_of_the_older_bindings(describe: Callable[[str], dict[str, Any]]) -> None:
    assert set(describe("10.3.0")["classes"]["BuilderFlag"]) >= GUARDED
    assert not set(describe("11.4.0.106")["classes"]["BuilderFlag"]) & GUARDED


def test_without_libraries_the_bindings_refuse_and_so_the_surface_was_read_from_no_library(
    bindings: dict[str, Any],
) -> None:
    assert "nullptr" in bindings["refused"]


@pytest.mark.parametrize(
    ("source", "chains"),
    [
        ("trt.Builder(log)", {"Builder"}),
        ("f(self.trt.BuilderFlag.INT8)", {"BuilderFlag.INT8"}),
        ("getattr(trt.BuilderFlag, name)", {"BuilderFlag"}),
        ("class M(trt.IProgressMonitor): pass", {"IProgressMonitor"}),
        ("other.Builder", set()),
    ],
)
def test_the_scan_finds_what_it_looks_for(source: str, chains: set[str]) -> None:
    assert _chains(source) == chains


def test_the_comparison_of_signatures_can_fail() -> None:
    text = "parse(self: tensorrt.OnnxParser, model: buffer, path: str = None) -> bool"
    real = list(_signatures(text))
    assert real == [[("model", False), ("path", True)]]
    assert _binds(["model"], real[0])
    assert not _binds(["path"], real[0])
    assert not _binds([], real[0])
    assert not _binds(["model", "path", "more"], real[0])


def _sources(repository: Path) -> list[Path]:
    runtime = repository / "runtime" / "p4q_edge" / "runtime"
    found = sorted([*runtime.glob("engines/tensorrt/*.py"), *runtime.glob("builders/tensorrt/*.py")])
    assert len(found) >= 10
    return found


def _chains(source: str) -> set[str]:
    """Every dotted name behind `trt`, the longest form of each."""
    tree = ast.parse(source)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    chains = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        parts: list[str] = []
        place: ast.expr = node
        while isinstance(place, ast.Attribute):
            parts.insert(0, place.attr)
            place = place.value
        parts.insert(0, place.id if isinstance(place, ast.Name) else "")
        if "trt" in parts[:-1]:
            chains.add(".".join(parts[parts.index("trt") + 1 :][:2]))
    return chains


def _members(description: dict[str, Any]) -> set[str]:
    return {
        member
        for kind, members in description["classes"].items()
        for member in (kind, *members)
        if not member.startswith("_")
    }


def _signatures(text: str) -> Iterator[list[tuple[str, bool]]]:
    """Parameters of every overload in a pybind docstring: name, and whether it has a default."""
    for found in re.finditer(r"^\s*(?:\d+\. )?\w+\((self: .*)\) -> ", text, re.MULTILINE):
        depth, parts, current = 0, [], ""
        for character in found[1]:
            depth += (character in "[(<") - (character in "])>")
            if character == "," and depth == 0:
                parts.append(current)
                current = ""
            else:
                current += character
        parts.append(current)
        yield [(part.split(":")[0].strip(), "=" in part) for part in parts[1:]]


def _parameters(text: str) -> list[list[str]]:
    return [[name for name, _ in signature] for signature in _signatures(text)]


def _binds(ours: list[str], real: list[tuple[str, bool]]) -> bool:
    names = [name for name, _ in real]
    return names[: len(ours)] == ours and all(optional for _, optional in real[len(ours) :])
