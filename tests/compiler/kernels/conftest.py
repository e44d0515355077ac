"""Exported models and what NVIDIA's compiler makes of them; skipped where the compiler cannot be had.

The tools run in processes of their own, where the compiler's log is read.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A model's FP16 graph, the compile check's document about it, and both as golden text."""

    model: Path
    document: dict[str, Any]
    text: str


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"compile_check_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def compile_tool() -> ModuleType:
    """tools/compile_check/golden.py."""
    return _load(Path(__file__).resolve().parents[3] / "tools" / "compile_check" / "golden.py")


@pytest.fixture(scope="session")
def compiled(compile_tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compiled]:
    """Exports and compiles an architecture, once."""
    done: dict[str, Compiled] = {}

    def compile_once(architecture: str) -> Compiled:
        if architecture not in done:
            model = compile_tool.export(architecture, tmp_path_factory.mktemp(architecture))
            try:
                document = compile_tool.compile_listed(model)
            except FileNotFoundError as unavailable:
                pytest.skip(f"NVIDIA's compiler: {unavailable}")
            text = compile_tool.describe(model, document)
            done[architecture] = Compiled(model=model, document=document, text=text)
        return done[architecture]

    return compile_once
