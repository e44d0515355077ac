"""Warnings are errors where they concern our own code; how other libraries use Python is their authors' business."""

from __future__ import annotations

import tomllib
import warnings
from pathlib import Path

import pytest
from _pytest.config import parse_warning_filter


@pytest.fixture
def filters(repository: Path) -> list[str]:
    """The filters of pyproject.toml, in their order."""
    document = tomllib.loads((repository / "pyproject.toml").read_text())
    found: list[str] = document["tool"]["pytest"]["ini_options"]["filterwarnings"]
    return found


def warn(filters: list[str], category: type[Warning], module: str) -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for line in filters:
            warnings.filterwarnings(*parse_warning_filter(line, escape=False))
        warnings.warn_explicit("'maxsplit' is passed as positional argument", category, "a.py", 1, module=module)


# On Python 3.13 polygraphy's re.split(pattern, text, 1) warns; on 3.14 others may.
@pytest.mark.parametrize("module", ["polygraphy.util.util", "onnxscript._internal", "open_clip.factory", "timm.layers"])
@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning])
def test_how_a_library_uses_python_is_no_error(filters: list[str], category: type[Warning], module: str) -> None:
    warn(filters, category, module)


@pytest.mark.parametrize("module", ["p4q_edge.quant.linear", "p4q_edge.runtime.cli.main", "tests.runtime.test_silence"])
def test_how_we_use_python_is_one(filters: list[str], module: str) -> None:
    with pytest.raises(DeprecationWarning, match="maxsplit"):
        warn(filters, DeprecationWarning, module)


def test_other_warnings_are_errors_wherever_they_come_from(filters: list[str]) -> None:
    with pytest.raises(RuntimeWarning, match="maxsplit"):
        warn(filters, RuntimeWarning, "numpy.core")
