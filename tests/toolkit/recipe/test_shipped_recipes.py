"""The recipes and templates under calibration/ are what the toolkit reads."""

import re
from pathlib import Path

import msgspec
import pytest

from p4q_edge.data.readers import read_words
from p4q_edge.models.prompts import fill
from p4q_edge.recipe.toml import read_recipe

WIDTHS = {
    "int8": ("W8A8", "executed", False),
    "w6a6": ("W6A6", "carried", False),
    "w4a8": ("W4A8", "carried", False),
    "w4a16": ("W4A16", "executed", False),
    "fp8": ("FP8 (E4M3)", "executed", False),
    "w4a4": ("W4A4", "carried", False),
    "paper-8-8-8": ("W8A8", "executed", True),
    "paper-4-4-8": ("W4A4 (attention W8A8)", "carried", True),
    "as-released": ("W8A8", "executed", True),
}


def test_every_recipe_has_its_row_here(repository: Path) -> None:
    assert {path.stem for path in (repository / "calibration" / "recipes").glob("*.toml")} == set(WIDTHS)


def test_the_guide_tells_of_every_recipe_and_its_bits(repository: Path) -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\S+?),? .*?\| (\w+)", (repository / "calibration" / "README.md").read_text(), re.M
    )
    assert [name for name, _, _ in rows] == [*WIDTHS]
    for name, grid, runs in rows:
        if name != "as-released":
            assert (grid, runs) == (WIDTHS[name][0].split()[0], WIDTHS[name][1])


@pytest.mark.parametrize("name", WIDTHS)
def test_recipes_say_what_their_name_says(repository: Path, name: str) -> None:
    recipe = read_recipe(repository / "calibration" / "recipes" / f"{name}.toml")
    scheme = recipe.quantization.scheme()
    assert (scheme.label, scheme.execution, recipe.quantization.text) == WIDTHS[name]


def test_the_papers_recipes_differ_in_bits_alone(repository: Path) -> None:
    """One budget: the same prompts, adapter and schedule; 4-4-8 differs in [quantization]."""
    eight, four = (
        read_recipe(repository / "calibration" / "recipes" / f"paper-{name}.toml") for name in ("8-8-8", "4-4-8")
    )
    assert four.learn == eight.learn
    assert (four.model, four.data) == (eight.model, eight.data)
    bits = {"weight_bits": 4, "activation_bits": 4, "attention_bits": 8}
    assert four.quantization == msgspec.structs.replace(eight.quantization, **bits)


def test_one_recipe_is_of_a_baseline(repository: Path) -> None:
    methods = {path.stem: read_recipe(path).method for path in (repository / "calibration" / "recipes").glob("*.toml")}
    assert {name for name, method in methods.items() if method != "p4q"} == {"as-released"}
    paper, released = (
        read_recipe(repository / "calibration" / "recipes" / f"{name}.toml") for name in ("paper-8-8-8", "as-released")
    )
    assert released.learn == msgspec.structs.replace(paper.learn, epochs=100)


def test_templates_have_a_place_for_the_name(repository: Path) -> None:
    for path in (repository / "calibration" / "templates").glob("*.txt"):
        for template in read_words(str(path), key="data.templates"):
            assert "cat" in fill(template, "cat")
