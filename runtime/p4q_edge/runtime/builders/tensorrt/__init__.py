"""From an ONNX model to a TensorRT plan, in a worker process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.builders.tensorrt.progress import ProgressLine
    from p4q_edge.runtime.builders.tensorrt.worker_process import ShowProgress

__all__ = ["ProgressLine", "ShowProgress"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "progress": ("ProgressLine",),
            "worker_process": ("ShowProgress",),
        },
    )
