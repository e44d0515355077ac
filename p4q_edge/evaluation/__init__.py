"""PyTorch as the reference of a validation, layer comparison and ablations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.evaluation import ablation
    from p4q_edge.evaluation.ablation import (
        ablate,
        learned_student,
        open_seed,
        part_features,
        parts_of,
        quantization_section,
    )
    from p4q_edge.evaluation.reproduce import compare_reports, repeat
    from p4q_edge.evaluation.torch_reference import reference_for
    from p4q_edge.evaluation.variants import (
        COOP,
        PROMPTS_ALONE,
        PTQ,
        UNCHANGED,
        Variant,
        lever_variants,
        method_variants,
        quantization_variants,
        variants_of,
    )

__all__ = [
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
    "variants_of",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "ablation": (
                "ablate",
                "learned_student",
                "open_seed",
                "part_features",
                "parts_of",
                "quantization_section",
            ),
            "reproduce": (
                "compare_reports",
                "repeat",
            ),
            "variants": (
                "COOP",
                "PROMPTS_ALONE",
                "PTQ",
                "UNCHANGED",
                "Variant",
                "lever_variants",
                "method_variants",
                "quantization_variants",
                "variants_of",
            ),
            "torch_reference": ("reference_for",),
        },
    )
