"""Imports tools of the bench for a test, as they import each other when they are run as scripts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

BENCH = Path(__file__).parents[2] / "tools" / "bench"


@contextmanager
def bench_modules(names: Sequence[str]) -> Iterator[dict[str, ModuleType]]:
    """Give the modules by name, and forget them and their neighbours afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCH))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(BENCH))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and BENCH in Path(file).parents:
                del sys.modules[name]
