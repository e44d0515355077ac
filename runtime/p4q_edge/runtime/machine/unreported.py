"""Importing OpenVINO without the report of it that its package sends to its makers."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_REPORTER = "openvino_telemetry"
_lock = threading.Lock()


def import_openvino_unreported() -> ModuleType:
    """Return the module `openvino`.

    Its tools come with it, leave an identifier in the user's home and report the import, unless the package
    that reports is missing: it is out of sight meanwhile. A program that imported OpenVINO before did so itself.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    with _lock, _hidden(_REPORTER):
        import openvino
    module: ModuleType = openvino
    return module


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Let imports of a package fail, unless it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
