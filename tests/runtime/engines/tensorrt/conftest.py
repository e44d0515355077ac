"""The CUDA backends, each over the double of its library."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fresh_imports import reimported

from p4q_edge.runtime.engines.tensorrt.engine import TensorRTEngine

from doubles.cards import card_of
from doubles.cuda_runtime import Cudart
from doubles.pycuda_driver import Driver


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cudart]:
    runtime = Cudart()
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = runtime  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    yield from reimported(monkeypatch, "bindings", runtime)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    double = Driver()
    package = ModuleType("pycuda")
    package.driver = double  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", double)
    yield from reimported(monkeypatch, "pycuda", double)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "out.plan"
    path.write_bytes(b"plan")
    return path


@pytest.fixture
def engine(installed: Any, plan: Path) -> Any:
    loaded = TensorRTEngine.open(plan, card_of(installed), sessions=1)
    installed.calls.clear()
    installed.cuda.calls.clear()
    return loaded
