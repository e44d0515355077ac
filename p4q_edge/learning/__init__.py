"""Learn prompts, adapter and class residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.learning.feature_store import SHARD_IMAGES, FeatureSink, FeatureStore, HeldFeatures
    from p4q_edge.learning.losses import contrastive_loss
    from p4q_edge.learning.tensor_file import read_tensors, write_tensors
    from p4q_edge.learning.training import CachedFeatures, LearningRun, Student, batch_loss, learn, make_student

__all__ = [
    "SHARD_IMAGES",
    "CachedFeatures",
    "FeatureSink",
    "FeatureStore",
    "HeldFeatures",
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
            "feature_store": ("FeatureSink", "FeatureStore", "HeldFeatures", "SHARD_IMAGES"),
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
