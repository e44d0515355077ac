"""Engines that run: one interface over ONNX Runtime (CPU) and TensorRT (NVIDIA GPU)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.engines.base import Engine, fingerprint, library_words, load_engine

__all__ = ["Engine", "fingerprint", "library_words", "load_engine"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "base": (
                "Engine",
                "fingerprint",
                "library_words",
                "load_engine",
            ),
        },
    )
