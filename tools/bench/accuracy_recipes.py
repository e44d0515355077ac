"""The recipes of the accuracy benches: ours of each width, on the data sets that they know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from real_clip import TEMPLATES as CLIP_TEMPLATES
from real_photos import caltech_section

from p4q_edge.recipe import DataSection, ModelSection, Recipe, demo_recipe, on_device, read_recipe

REPOSITORY = Path(__file__).parents[2]
PHOTO_CLIP = Path(__file__).with_name("photo_clip")
RECIPES = REPOSITORY / "calibration" / "recipes"
WIDTHS = {"W8A8": "int8", "W6A6": "w6a6", "W4A8": "w4a8", "W4A4": "w4a4"}
"""Our recipe of each width."""

FLOAT = "FP32"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a run of the bench measures; the same for every row.

    Attributes:
        models: folder of the models of ``real_models.py``.
        features: folder that keeps features between runs; None keeps none.
    """

    data: str
    folder: Path
    models: Path = Path()
    shots: int = 16
    limit: int = 0
    learn: Mapping[str, Any] = field(default_factory=dict)
    features: Path | None = None


def recipe_of(choice: Choice, name: str) -> Recipe:
    """A shipped recipe with the data, the model and, for the digits, the demo's own [learn]."""
    # On the CPU, as the other libraries of the table.
    recipe = on_device(read_recipe(RECIPES / f"{name}.toml"), "cpu")
    if choice.data == "digits":
        demo = demo_recipe()
        data = msgspec.structs.replace(demo.data, shots=choice.shots, test_limit=choice.limit)
        own = recipe.method == "as-released" or name.startswith("paper")
        learned = recipe.learn if own else demo.learn
        return msgspec.structs.replace(recipe, model=demo.model, data=data, learn=learned)
    if choice.data == "caltech101":
        data = caltech_section(choice.folder, shots=choice.shots, templates=CLIP_TEMPLATES)
        data = msgspec.structs.replace(data, test_limit=choice.limit)
        model = ModelSection(name=f"local-dir:{(choice.models / 'clip').resolve()}")
        return msgspec.structs.replace(recipe, model=model, data=data)
    data = DataSection(
        train=str(choice.folder / "cifar100" / "train.npz"),
        test=str(choice.folder / "cifar100" / "test.npz"),
        templates=str(REPOSITORY / "calibration" / "templates" / "photo.txt"),
        shots=choice.shots,
        test_limit=choice.limit,
    )
    return msgspec.structs.replace(recipe, model=ModelSection(name=f"local-dir:{PHOTO_CLIP}"), data=data)
