"""The CPU engine, on ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.engines.onnxruntime.convolutions import (
        integer_convolutions,
        overflowing_weights,
        without_overflow,
    )
    from p4q_edge.runtime.engines.onnxruntime.engine import (
        FLOAT_ACTIVATIONS,
        OPTIMIZED,
        OnnxRuntimeEngine,
        fingerprint,
        import_onnxruntime,
        load_error,
        open_optimized,
        open_session,
        optimized_path,
        session_errors,
        session_options,
    )
    from p4q_edge.runtime.engines.onnxruntime.models import (
        corrected_bias,
        differing_tensors,
        float_weights,
        narrowed,
        seven_bit_weights,
    )

__all__ = [
    "FLOAT_ACTIVATIONS",
    "OPTIMIZED",
    "OnnxRuntimeEngine",
    "corrected_bias",
    "differing_tensors",
    "fingerprint",
    "float_weights",
    "import_onnxruntime",
    "integer_convolutions",
    "load_error",
    "narrowed",
    "open_optimized",
    "open_session",
    "optimized_path",
    "overflowing_weights",
    "session_errors",
    "session_options",
    "seven_bit_weights",
    "without_overflow",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "convolutions": ("integer_convolutions", "overflowing_weights", "without_overflow"),
            "engine": (
                "FLOAT_ACTIVATIONS",
                "OPTIMIZED",
                "OnnxRuntimeEngine",
                "fingerprint",
                "import_onnxruntime",
                "load_error",
                "open_optimized",
                "open_session",
                "optimized_path",
                "session_errors",
                "session_options",
            ),
            "models": (
                "corrected_bias",
                "differing_tensors",
                "float_weights",
                "narrowed",
                "seven_bit_weights",
            ),
        },
    )
