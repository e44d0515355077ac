"""The recipe: every choice of a run, in one TOML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.recipe.defaults import demo_recipe, run_recipe_of
    from p4q_edge.recipe.idle_keys import KEYS_OF, idle_by_grid, without_effect
    from p4q_edge.recipe.schema import (
        DEMO_DATA,
        DRAWN_IMAGES,
        ComputeSection,
        DataSection,
        FloatPrecision,
        LearnSection,
        ModelSection,
        QuantizationSection,
        Recipe,
        TeacherName,
    )
    from p4q_edge.recipe.toml import (
        anchor,
        on_device,
        read_recipe,
        read_right_keys,
        to_document,
        to_toml,
        without_folders,
    )
    from p4q_edge.recipe.words import entries_problem, template_problems

__all__ = [
    "DEMO_DATA",
    "DRAWN_IMAGES",
    "KEYS_OF",
    "ComputeSection",
    "DataSection",
    "FloatPrecision",
    "LearnSection",
    "ModelSection",
    "QuantizationSection",
    "Recipe",
    "TeacherName",
    "anchor",
    "demo_recipe",
    "entries_problem",
    "idle_by_grid",
    "on_device",
    "read_recipe",
    "read_right_keys",
    "run_recipe_of",
    "template_problems",
    "to_document",
    "to_toml",
    "without_effect",
    "without_folders",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "defaults": (
                "demo_recipe",
                "run_recipe_of",
            ),
            "idle_keys": ("KEYS_OF", "idle_by_grid", "without_effect"),
            "schema": (
                "ComputeSection",
                "DEMO_DATA",
                "DRAWN_IMAGES",
                "DataSection",
                "LearnSection",
                "ModelSection",
                "FloatPrecision",
                "QuantizationSection",
                "Recipe",
                "TeacherName",
            ),
            "toml": (
                "anchor",
                "on_device",
                "read_recipe",
                "read_right_keys",
                "to_document",
                "to_toml",
                "without_folders",
            ),
            "words": ("entries_problem", "template_problems"),
        },
    )
