"""The command line `p4q-edge`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.cli import documents
    from p4q_edge.runtime.cli.command import Command, write_result
    from p4q_edge.runtime.cli.main import build_parser

__all__ = ["Command", "build_parser", "documents", "write_result"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "command": (
                "Command",
                "write_result",
            ),
            "main": ("build_parser",),
        },
    )
