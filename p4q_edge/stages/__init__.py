"""The stages of a run, from files to files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.stages.export import bundle_key, export_bundle, export_unless_current
    from p4q_edge.stages.features import augmented_views, image_features, teacher_embeddings, teacher_features
    from p4q_edge.stages.learning_log import log_learning, read_curve
    from p4q_edge.stages.pipeline import (
        Learned,
        Prepared,
        cache_features,
        calibration_set,
        learn_stage,
        prepare,
        student_features,
    )
    from p4q_edge.stages.run_files import RunFiles
    from p4q_edge.stages.source import Source, open_model, open_source
    from p4q_edge.stages.stored_run import restore_classifier
    from p4q_edge.stages.students import hand_written_embeddings, learn_student, new_student

__all__ = [
    "Learned",
    "Prepared",
    "RunFiles",
    "Source",
    "augmented_views",
    "bundle_key",
    "cache_features",
    "calibration_set",
    "export_bundle",
    "export_unless_current",
    "hand_written_embeddings",
    "image_features",
    "learn_stage",
    "learn_student",
    "log_learning",
    "new_student",
    "open_model",
    "open_source",
    "prepare",
    "read_curve",
    "restore_classifier",
    "student_features",
    "teacher_embeddings",
    "teacher_features",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "export": ("bundle_key", "export_bundle", "export_unless_current"),
            "features": ("augmented_views", "image_features", "teacher_embeddings", "teacher_features"),
            "learning_log": ("log_learning", "read_curve"),
            "pipeline": (
                "Learned",
                "Prepared",
                "cache_features",
                "calibration_set",
                "learn_stage",
                "prepare",
                "student_features",
            ),
            "run_files": ("RunFiles",),
            "source": ("Source", "open_model", "open_source"),
            "stored_run": ("restore_classifier",),
            "students": ("hand_written_embeddings", "learn_student", "new_student"),
        },
    )
