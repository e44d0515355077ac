"""What a graph computes: attentions, linears, tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.graph.analysis.linears import differing_linears, linear_nodes

__all__ = ["differing_linears", "linear_nodes"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "linears": (
                "differing_linears",
                "linear_nodes",
            ),
        },
    )
