"""Imports modules anew while a double of a library stands in its place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest


def reimported(monkeypatch: pytest.MonkeyPatch, name: str, double: Any) -> Iterator[Any]:
    """Make the backend import the double now and the real library afterwards."""
    module = f"p4q_edge.runtime.engines.cuda.{name}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    yield double
    sys.modules.pop(module, None)
