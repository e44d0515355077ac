"""The device runtime of P4Q Edge: build an engine from a bundle and classify images with it, without torch.

Public names are imported when they are first used, so that `p4q-edge --help` loads neither numpy nor an engine.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p4q_edge.runtime.build import BuildOptions, build_engine
    from p4q_edge.runtime.classifier import RuntimeOptions, ZeroShotClassifier
    from p4q_edge.runtime.errors import (
        ArtifactError,
        CorruptArtifactError,
        EnvironmentNotAbleError,
        IncompatibleEngineError,
        InputError,
        P4QEdgeError,
        QualityGateError,
        UsageError,
    )
    from p4q_edge.runtime.heads import Head, load_head
    from p4q_edge.runtime.proof import selftest
    from p4q_edge.runtime.results import Prediction

__all__ = [
    "ArtifactError",
    "BuildOptions",
    "CorruptArtifactError",
    "EnvironmentNotAbleError",
    "Head",
    "IncompatibleEngineError",
    "InputError",
    "P4QEdgeError",
    "Prediction",
    "QualityGateError",
    "RuntimeOptions",
    "UsageError",
    "ZeroShotClassifier",
    "build_engine",
    "load_head",
    "selftest",
]

_MODULES = {
    "build": ("BuildOptions", "build_engine"),
    "classifier": ("RuntimeOptions", "ZeroShotClassifier"),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "heads": ("Head", "load_head"),
    "results": ("Prediction",),
    "proof": ("selftest",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

logging.getLogger("p4q_edge").addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
