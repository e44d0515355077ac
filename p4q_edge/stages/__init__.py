"""The stages of a run, from files to files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.stages.cache import read_metadata, read_tensors, write_tensors
    from p4q_edge.stages.export import export_bundle
    from p4q_edge.stages.pipeline import (
        BATCH_SIZE,
        CODE_VERSION,
        Learned,
        RunFiles,
        Source,
        augmented_views,
        cache_features,
        hand_written_embeddings,
        image_features,
        learn_stage,
        new_student,
        open_source,
        prepare,
        teacher_embeddings,
    )

__all__ = [
    "BATCH_SIZE",
    "CODE_VERSION",
    "Learned",
    "RunFiles",
    "Source",
    "augmented_views",
    "cache_features",
    "export_bundle",
    "hand_written_embeddings",
    "image_features",
    "learn_stage",
    "new_student",
    "open_source",
    "prepare",
    "read_metadata",
    "read_tensors",
    "teacher_embeddings",
    "write_tensors",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "cache": (
                "read_metadata",
                "read_tensors",
                "write_tensors",
            ),
            "export": ("export_bundle",),
            "pipeline": (
                "BATCH_SIZE",
                "CODE_VERSION",
                "Learned",
                "RunFiles",
                "Source",
                "augmented_views",
                "cache_features",
                "hand_written_embeddings",
                "image_features",
                "learn_stage",
                "new_student",
                "open_source",
                "prepare",
                "teacher_embeddings",
            ),
        },
    )
