"""One module a subcommand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.cli.commands.build import add_log_dir, add_recipe_overrides, add_torch_device, recipe_request

__all__ = ["add_log_dir", "add_recipe_overrides", "add_torch_device", "recipe_request"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "build": (
                "add_log_dir",
                "add_recipe_overrides",
                "add_torch_device",
                "recipe_request",
            ),
        },
    )
