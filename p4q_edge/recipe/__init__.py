"""The recipe: every choice of a run, in one TOML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.recipe.defaults import demo_recipe, run_recipe_of
    from p4q_edge.recipe.idle_keys import without_effect
    from p4q_edge.recipe.schema import (
        DEMO_DATA,
        DRAWN_IMAGES,
        ComputeSection,
        DataSection,
        LearnSection,
        ModelSection,
        Precision,
        QuantizationSection,
        Recipe,
        Teacher,
    )
    from p4q_edge.recipe.toml import anchor, on_device, read_recipe, to_toml

__all__ = [
    "DEMO_DATA",
    "DRAWN_IMAGES",
    "ComputeSection",
    "DataSection",
    "LearnSection",
    "ModelSection",
    "Precision",
    "QuantizationSection",
    "Recipe",
    "Teacher",
    "anchor",
    "demo_recipe",
    "on_device",
    "read_recipe",
    "run_recipe_of",
    "to_toml",
    "without_effect",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "defaults": (
                "demo_recipe",
                "run_recipe_of",
            ),
            "idle_keys": ("without_effect",),
            "schema": (
                "ComputeSection",
                "DEMO_DATA",
                "DRAWN_IMAGES",
                "DataSection",
                "LearnSection",
                "ModelSection",
                "Precision",
                "QuantizationSection",
                "Recipe",
                "Teacher",
            ),
            "toml": (
                "anchor",
                "on_device",
                "read_recipe",
                "to_toml",
            ),
        },
    )
