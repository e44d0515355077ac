"""Learn prompts, adapter and class residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.learning.losses import contrastive_loss
    from p4q_edge.learning.tensor_file import read_tensors, write_tensors
    from p4q_edge.learning.training import CachedFeatures, LearningRun, Student, batch_loss, learn, make_student

__all__ = [
    "CachedFeatures",
    "LearningRun",
    "Student",
    "batch_loss",
    "contrastive_loss",
    "learn",
    "make_student",
    "read_tensors",
    "write_tensors",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "losses": ("contrastive_loss",),
            "tensor_file": (
                "read_tensors",
                "write_tensors",
            ),
            "training": (
                "CachedFeatures",
                "LearningRun",
                "Student",
                "batch_loss",
                "learn",
                "make_student",
            ),
        },
    )
