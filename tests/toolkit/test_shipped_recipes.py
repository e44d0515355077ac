"""The recipes and templates under calibration/ are what the toolkit reads."""

from pathlib import Path

import pytest

from p4q_edge.prompts import fill
from p4q_edge.recipe import read_recipe
from p4q_edge.sources import read_words

WIDTHS = {
    "int8": ("W8A8", "executed", False),
    "w6a6": ("W6A6", "carried", False),
    "w4a8": ("W4A8", "carried", False),
    "w4a4": ("W4A4", "carried", False),
    "paper-8-8-8": ("W8A8", "executed", True),
}


def test_every_recipe_has_its_row_here(repository: Path) -> None:
    assert {path.stem for path in (repository / "calibration" / "recipes").glob("*.toml")} == set(WIDTHS)


@pytest.mark.parametrize("name", WIDTHS)
def test_recipes_say_what_their_name_says(repository: Path, name: str) -> None:
    recipe = read_recipe(repository / "calibration" / "recipes" / f"{name}.toml")
    scheme = recipe.quantization.scheme()
    assert (scheme.label, scheme.execution, recipe.quantization.text) == WIDTHS[name]


def test_templates_have_a_place_for_the_name(repository: Path) -> None:
    for path in (repository / "calibration" / "templates").glob("*.txt"):
        for template in read_words(str(path), key="data.templates"):
            assert "cat" in fill(template, "cat")
