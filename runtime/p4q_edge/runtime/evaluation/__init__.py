"""Compare the stages of a model on real images and report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.evaluation.comparison import ChainReport
    from p4q_edge.runtime.evaluation.gates import GateResult, Gates, judge
    from p4q_edge.runtime.evaluation.request import Request
    from p4q_edge.runtime.evaluation.stage_comparison import StageComparison, StageReport
    from p4q_edge.runtime.evaluation.subject import find_bundle
    from p4q_edge.runtime.evaluation.validation import (
        RENDERERS,
        Outcome,
        Reference,
        Renderer,
        check_report_paths,
        default_report,
        found_names,
        learned_digests,
        validate,
        write_reports,
    )

__all__ = [
    "RENDERERS",
    "ChainReport",
    "GateResult",
    "Gates",
    "Outcome",
    "Reference",
    "Renderer",
    "Request",
    "StageComparison",
    "StageReport",
    "check_report_paths",
    "default_report",
    "find_bundle",
    "found_names",
    "judge",
    "learned_digests",
    "validate",
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
            "request": ("Request",),
            "stage_comparison": (
                "StageComparison",
                "StageReport",
            ),
            "subject": ("find_bundle",),
            "validation": (
                "Outcome",
                "RENDERERS",
                "Reference",
                "Renderer",
                "check_report_paths",
                "default_report",
                "found_names",
                "learned_digests",
                "validate",
                "write_reports",
            ),
        },
    )
