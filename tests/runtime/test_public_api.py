"""One import path for each public name."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest

from p4q_edge import runtime
from p4q_edge.runtime import errors


def names_for_type_checkers() -> set[str]:
    tree = ast.parse(Path(str(runtime.__file__)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_public_names_are_sorted_and_listed_once() -> None:
    assert runtime.__all__ == sorted(set(runtime.__all__))


def test_what_is_public_is_what_type_checkers_see() -> None:
    assert set(runtime.__all__) == names_for_type_checkers()


@pytest.mark.parametrize("name", runtime.__all__)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(runtime, name).__name__ == name
    assert name in dir(runtime)


def test_no_public_name_is_private() -> None:
    assert [name for name in runtime.__all__ if name.startswith("_")] == []


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match=r"module 'p4q_edge\.runtime' has no attribute 'Classifier'"):
        _ = runtime.Classifier


def test_every_error_is_public_and_drawn_in_the_tree() -> None:
    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert found == {name for name in runtime.__all__ if name.endswith("Error")}
    for name in found:
        code = getattr(errors, name).exit_code
        (line,) = (line for line in (errors.__doc__ or "").splitlines() if f" {name} " in f" {line} ")
        assert line.split(name)[1].split()[0] == str(code), line


@pytest.mark.parametrize(
    ("function", "expected"),
    [(runtime.build_engine, runtime.Card), (runtime.selftest, runtime.GoldenResult), (runtime.load_head, runtime.Head)],
)
def test_what_public_functions_return_is_public(function: Callable[..., object], expected: type) -> None:
    assert get_type_hints(function, localns={"ShowProgress": object, "TensorRTOptions": object})["return"] is expected


def test_the_options_of_every_backend_are_public() -> None:
    options = runtime.BuildOptions(tensorrt=runtime.TensorRTOptions(max_batch=4))
    assert options.tensorrt is not None
    assert options.tensorrt.batches == (1, 1, 4)
