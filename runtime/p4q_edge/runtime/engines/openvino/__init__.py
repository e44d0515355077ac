"""The second CPU engine, on OpenVINO."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.engines.openvino.engine import ModelSource, OpenVINOEngine, model_source
    from p4q_edge.runtime.engines.openvino.kept_models import COMPILED, compiled_path
    from p4q_edge.runtime.engines.openvino.library import (
        fingerprint,
        import_openvino,
        installed,
        remainders,
    )

__all__ = [
    "COMPILED",
    "ModelSource",
    "OpenVINOEngine",
    "compiled_path",
    "fingerprint",
    "import_openvino",
    "installed",
    "model_source",
    "remainders",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "engine": (
                "OpenVINOEngine",
                "ModelSource",
                "model_source",
            ),
            "kept_models": (
                "COMPILED",
                "compiled_path",
            ),
            "library": (
                "fingerprint",
                "import_openvino",
                "installed",
                "remainders",
            ),
        },
    )
