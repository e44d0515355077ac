"""One module a subcommand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.cli.commands import validate
    from p4q_edge.runtime.cli.commands.build import add_recipe_overrides, build_options

__all__ = ["add_recipe_overrides", "build_options", "validate"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "build": (
                "add_recipe_overrides",
                "build_options",
            ),
        },
    )
