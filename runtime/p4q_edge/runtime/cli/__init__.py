"""The command line `p4q-edge`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.cli import documents
    from p4q_edge.runtime.cli.command import Command, Output
    from p4q_edge.runtime.cli.main import parse

__all__ = ["Command", "Output", "documents", "parse"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "command": (
                "Command",
                "Output",
            ),
            "main": ("parse",),
        },
    )
