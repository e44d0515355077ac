"""The toolkit in Python, by the names of its commands: open a recipe, run its stages, get a bundle, compare.

What a device does with the bundle is in `p4q_edge.runtime`: `build_engine`, `selftest`, `ZeroShotClassifier`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.api.commands import calibrate, export, learn, validate
    from p4q_edge.api.names import Bundle, Learned, Prepared, Recipe, Report, demo_recipe, read_recipe

__all__ = [
    "Bundle",
    "Learned",
    "Prepared",
    "Recipe",
    "Report",
    "calibrate",
    "demo_recipe",
    "export",
    "learn",
    "read_recipe",
    "validate",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "commands": (
                "calibrate",
                "export",
                "learn",
                "validate",
            ),
            "names": (
                "Bundle",
                "Learned",
                "Prepared",
                "Recipe",
                "Report",
                "demo_recipe",
                "read_recipe",
            ),
        },
    )
