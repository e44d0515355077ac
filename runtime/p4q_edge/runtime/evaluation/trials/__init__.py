"""What a validation looks at beyond accuracy: embeddings, images of no class, made worse, with captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.evaluation.trials.all_trials import (
        OfNoClass,
        Tested,
        Trials,
        check_sources,
        check_trials,
        missing_labelled,
        open_of_no_class,
        run_trials,
    )
    from p4q_edge.runtime.evaluation.trials.corruptions import CorruptionRow
    from p4q_edge.runtime.evaluation.trials.hand_written import ClassGain, class_gains
    from p4q_edge.runtime.evaluation.trials.modality import ModalityReport, ModalityRow
    from p4q_edge.runtime.evaluation.trials.retrieval import CaptionedImages, RetrievalReport, RetrievalRow
    from p4q_edge.runtime.evaluation.trials.unknown_images import UnknownReport, UnknownStage, called_unknown

__all__ = [
    "CaptionedImages",
    "ClassGain",
    "CorruptionRow",
    "ModalityReport",
    "ModalityRow",
    "OfNoClass",
    "RetrievalReport",
    "RetrievalRow",
    "Tested",
    "Trials",
    "UnknownReport",
    "UnknownStage",
    "called_unknown",
    "check_sources",
    "check_trials",
    "class_gains",
    "missing_labelled",
    "open_of_no_class",
    "run_trials",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "all_trials": (
                "OfNoClass",
                "Tested",
                "Trials",
                "check_sources",
                "check_trials",
                "missing_labelled",
                "open_of_no_class",
                "run_trials",
            ),
            "corruptions": ("CorruptionRow",),
            "hand_written": ("ClassGain", "class_gains"),
            "modality": ("ModalityReport", "ModalityRow"),
            "retrieval": ("CaptionedImages", "RetrievalReport", "RetrievalRow"),
            "unknown_images": ("UnknownReport", "UnknownStage", "called_unknown"),
        },
    )
