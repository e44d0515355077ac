"""The report of a validation, as a document, Markdown and text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.evaluation.report import formatting
    from p4q_edge.runtime.evaluation.report.document import (
        KIND,
        Baseline,
        DebugReport,
        LayerFinding,
        LearningPoint,
        Report,
        baseline,
        read_report,
    )
    from p4q_edge.runtime.evaluation.report.markdown import baseline_table, render_markdown
    from p4q_edge.runtime.evaluation.report.notebook import shown_report
    from p4q_edge.runtime.evaluation.report.text_summary import columns, summary
    from p4q_edge.runtime.evaluation.report.trial_rows import TrialTable, trial_tables

__all__ = [
    "KIND",
    "Baseline",
    "DebugReport",
    "LayerFinding",
    "LearningPoint",
    "Report",
    "TrialTable",
    "baseline",
    "baseline_table",
    "columns",
    "formatting",
    "read_report",
    "render_markdown",
    "shown_report",
    "summary",
    "trial_tables",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "document": (
                "Baseline",
                "DebugReport",
                "KIND",
                "LayerFinding",
                "LearningPoint",
                "Report",
                "baseline",
                "read_report",
            ),
            "markdown": (
                "baseline_table",
                "render_markdown",
            ),
            "notebook": ("shown_report",),
            "text_summary": (
                "columns",
                "summary",
            ),
            "trial_rows": ("TrialTable", "trial_tables"),
        },
    )
