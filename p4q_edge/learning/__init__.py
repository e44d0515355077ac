"""Learn prompts, adapter and class residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.learning.cached_features import Batch, CachedFeatures, Unlabelled
    from p4q_edge.learning.curves import CURVE_TABLE, CurvePoint, decode_curve, encode_curve, write_curve
    from p4q_edge.learning.feature_store import SHARD_IMAGES, FeatureSink, FeatureStore, HeldFeatures
    from p4q_edge.learning.losses import contrastive_loss
    from p4q_edge.learning.student import Student, Teacher, make_student
    from p4q_edge.learning.tensor_file import read_tensors, write_tensors
    from p4q_edge.learning.training import LearningRun, batch_loss, learn_in_place

__all__ = [
    "CURVE_TABLE",
    "SHARD_IMAGES",
    "Batch",
    "CachedFeatures",
    "CurvePoint",
    "FeatureSink",
    "FeatureStore",
    "HeldFeatures",
    "LearningRun",
    "Student",
    "Teacher",
    "Unlabelled",
    "batch_loss",
    "contrastive_loss",
    "decode_curve",
    "encode_curve",
    "learn_in_place",
    "make_student",
    "read_tensors",
    "write_curve",
    "write_tensors",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "cached_features": ("Batch", "CachedFeatures", "Unlabelled"),
            "curves": ("CURVE_TABLE", "CurvePoint", "decode_curve", "encode_curve", "write_curve"),
            "feature_store": ("FeatureSink", "FeatureStore", "HeldFeatures", "SHARD_IMAGES"),
            "losses": ("contrastive_loss",),
            "tensor_file": (
                "read_tensors",
                "write_tensors",
            ),
            "student": ("Student", "Teacher", "make_student"),
            "training": ("LearningRun", "batch_loss", "learn_in_place"),
        },
    )
