"""PyTorch as the reference of a validation, layer comparison and ablations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.evaluation import ablation
    from p4q_edge.evaluation.ablation import (
        COOP,
        PROMPTS_ALONE,
        PTQ,
        UNCHANGED,
        Variant,
        ablate,
        learned_student,
        lever_variants,
        method_variants,
        open_seed,
        part_features,
        parts_of,
        quantization_section,
        quantization_variants,
    )
    from p4q_edge.evaluation.reproduce import compare_reports, repeat
    from p4q_edge.evaluation.torch_reference import BASELINES, reference_for

__all__ = [
    "BASELINES",
    "COOP",
    "PROMPTS_ALONE",
    "PTQ",
    "UNCHANGED",
    "Variant",
    "ablate",
    "ablation",
    "compare_reports",
    "learned_student",
    "lever_variants",
    "method_variants",
    "open_seed",
    "part_features",
    "parts_of",
    "quantization_section",
    "quantization_variants",
    "reference_for",
    "repeat",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "ablation": (
                "COOP",
                "PROMPTS_ALONE",
                "PTQ",
                "UNCHANGED",
                "Variant",
                "ablate",
                "learned_student",
                "lever_variants",
                "method_variants",
                "open_seed",
                "part_features",
                "parts_of",
                "quantization_section",
                "quantization_variants",
            ),
            "reproduce": (
                "compare_reports",
                "repeat",
            ),
            "torch_reference": (
                "BASELINES",
                "reference_for",
            ),
        },
    )
