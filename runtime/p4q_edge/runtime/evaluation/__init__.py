"""Compare the stages of a model on real images and report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.evaluation.comparison import ChainReport
    from p4q_edge.runtime.evaluation.gates import GateResult, Gates, judge
    from p4q_edge.runtime.evaluation.request import ValidateRequest
    from p4q_edge.runtime.evaluation.stage_comparison import StageComparison, StageReport
    from p4q_edge.runtime.evaluation.subject import (
        Subject,
        bundle_graph,
        find_bundle,
        nothing_to_compare_with,
        seven_bits,
    )
    from p4q_edge.runtime.evaluation.validation import (
        RENDERERS,
        Outcome,
        Reference,
        ReferenceOf,
        Renderer,
        check_report_paths,
        found_names,
        learned_digests,
        report_paths,
        run_validation,
        write_reports,
    )

__all__ = [
    "RENDERERS",
    "ChainReport",
    "GateResult",
    "Gates",
    "Outcome",
    "Reference",
    "ReferenceOf",
    "Renderer",
    "StageComparison",
    "StageReport",
    "Subject",
    "ValidateRequest",
    "bundle_graph",
    "check_report_paths",
    "find_bundle",
    "found_names",
    "judge",
    "learned_digests",
    "nothing_to_compare_with",
    "report_paths",
    "run_validation",
    "seven_bits",
    "write_reports",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "comparison": ("ChainReport",),
            "gates": (
                "GateResult",
                "Gates",
                "judge",
            ),
            "request": ("ValidateRequest",),
            "stage_comparison": (
                "StageComparison",
                "StageReport",
            ),
            "subject": ("Subject", "bundle_graph", "find_bundle", "nothing_to_compare_with", "seven_bits"),
            "validation": (
                "Outcome",
                "RENDERERS",
                "Reference",
                "ReferenceOf",
                "Renderer",
                "check_report_paths",
                "report_paths",
                "found_names",
                "learned_digests",
                "run_validation",
                "write_reports",
            ),
        },
    )
