"""What a room offers, imported when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping


def lazy_exports(
    package: str, names_of: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package whose names are imported when they are first used.

    `p4q-edge --help` must load neither numpy nor an engine, and the rooms' imports must not add up.

    Args:
        package: its `__name__`.
        names_of: names by the submodule that defines them.
    """
    module_of = {name: module for module, names in names_of.items() for name in names}

    def get(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    def names() -> list[str]:
        return sorted(module_of)

    return get, names
