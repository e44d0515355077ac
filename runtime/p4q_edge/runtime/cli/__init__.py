"""The command line `p4q-edge`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.cli.command import LOADING, Command, Output
    from p4q_edge.runtime.cli.documents import BuildSummary, SummaryRow
    from p4q_edge.runtime.cli.inspect_documents import LintRow
    from p4q_edge.runtime.cli.interruption import GRACE_SECONDS, Interruption, end_process, on_signals
    from p4q_edge.runtime.cli.main import parse

__all__ = [
    "GRACE_SECONDS",
    "LOADING",
    "BuildSummary",
    "Command",
    "Interruption",
    "LintRow",
    "Output",
    "SummaryRow",
    "end_process",
    "on_signals",
    "parse",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "command": (
                "LOADING",
                "Command",
                "Output",
            ),
            "documents": (
                "BuildSummary",
                "SummaryRow",
            ),
            "inspect_documents": ("LintRow",),
            "interruption": (
                "GRACE_SECONDS",
                "Interruption",
                "end_process",
                "on_signals",
            ),
            "main": ("parse",),
        },
    )
