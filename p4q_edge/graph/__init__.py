"""From a module to a checked ONNX graph with Q/DQ nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.graph.export import ExportedGraphs, export_classifier, linear_quantizations
    from p4q_edge.graph.lint_rules import lint
    from p4q_edge.graph.parity import run_in_onnxruntime
    from p4q_edge.graph.trace import trace_float_graph

__all__ = [
    "ExportedGraphs",
    "export_classifier",
    "linear_quantizations",
    "lint",
    "run_in_onnxruntime",
    "trace_float_graph",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "export": (
                "ExportedGraphs",
                "export_classifier",
                "linear_quantizations",
            ),
            "lint_rules": ("lint",),
            "parity": ("run_in_onnxruntime",),
            "trace": ("trace_float_graph",),
        },
    )
