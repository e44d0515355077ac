"""An engine as a model repository of Triton Inference Server, for more than one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.serving.model_configs import ENCODED, IMAGE, TOP_K, engine_model, head_model
    from p4q_edge.runtime.serving.repository import ServedBy, write_repository

__all__ = ["ENCODED", "IMAGE", "TOP_K", "ServedBy", "engine_model", "head_model", "write_repository"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "model_configs": ("ENCODED", "IMAGE", "TOP_K", "engine_model", "head_model"),
            "repository": (
                "ServedBy",
                "write_repository",
            ),
        },
    )
