"""The one place through which the runtime reaches CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.engines.cuda.base import BACKENDS, Cuda, DeviceFacts
    from p4q_edge.runtime.engines.cuda.device import open_cuda

__all__ = ["BACKENDS", "Cuda", "DeviceFacts", "open_cuda"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "base": (
                "BACKENDS",
                "Cuda",
                "DeviceFacts",
            ),
            "device": ("open_cuda",),
        },
    )
