"""The GPU engine, on TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.engines.tensorrt.engine import TensorRTEngine
    from p4q_edge.runtime.engines.tensorrt.library import (
        INT4_READ,
        RTX,
        STRONG_TYPING_COMPLETE,
        TENSORRT,
        Library,
        covers_gpu,
        import_library,
        import_tensorrt,
        known_capabilities,
        machine_facts,
        make_builder,
        make_logger,
        multiplies_fp8,
        platform_name,
        problems,
        version_tuple,
    )

__all__ = [
    "INT4_READ",
    "RTX",
    "STRONG_TYPING_COMPLETE",
    "TENSORRT",
    "Library",
    "TensorRTEngine",
    "covers_gpu",
    "import_library",
    "import_tensorrt",
    "known_capabilities",
    "machine_facts",
    "make_builder",
    "make_logger",
    "multiplies_fp8",
    "platform_name",
    "problems",
    "version_tuple",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "engine": ("TensorRTEngine",),
            "library": (
                "INT4_READ",
                "RTX",
                "STRONG_TYPING_COMPLETE",
                "TENSORRT",
                "Library",
                "covers_gpu",
                "import_library",
                "import_tensorrt",
                "known_capabilities",
                "machine_facts",
                "make_builder",
                "make_logger",
                "multiplies_fp8",
                "platform_name",
                "problems",
                "version_tuple",
            ),
        },
    )
