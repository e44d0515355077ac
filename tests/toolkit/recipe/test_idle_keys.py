"""Keys that do nothing beside the others are told of."""

from pathlib import Path
from typing import Any

import pytest

from p4q_edge.cli.common import choose_recipe
from p4q_edge.recipe.idle_keys import without_effect
from p4q_edge.recipe.schema import Recipe
from p4q_edge.recipe.toml import parse_recipe
from p4q_edge.runtime.builders import RecipeRequest


def recipe_of(changes: dict[str, Any]) -> Recipe:
    return parse_recipe({"model": {"name": "ViT-B-32"}, "data": {"train": "photos"}} | changes, source="x.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": False, "anchor_prompts": True}, "learn.anchor_prompts has no effect: learn.prompts is false"),
        ({"prompts": False, "prompt_pull": 1.0}, "learn.prompt_pull has no effect: learn.prompts is false"),
        ({"prompt_rate": 0.5}, "learn.prompt_rate has no effect: learn.prompt_steps is 0"),
        ({"adapter": False, "feature_loss": 1.0}, "learn.feature_loss has no effect: learn.adapter is false"),
        ({"flip": True}, "learn.flip has no effect: learn.views is 1, the image itself"),
        (
            {"prompts": False, "adapter": False, "class_residual": False, "teacher": "learned"},
            "learn.teacher has no effect: nothing is learned",
        ),
    ],
)
def test_keys_that_do_nothing_are_told_of(change: dict[str, Any], message: str) -> None:
    assert list(without_effect(recipe_of({"learn": change}))) == [message]


def test_keys_that_do_something_are_not() -> None:
    assert not list(without_effect(recipe_of({})))
    learn = {"anchor_prompts": True, "prompt_rate": 0.5, "prompt_steps": 3, "views": 2, "flip": True}
    assert not list(without_effect(recipe_of({"learn": learn})))


def test_a_command_tells_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "p4q.toml"
    path.write_text(
        '[model]\nname = "demo"\n[data]\ntrain = "x"\n[learn]\nprompts = false\n[quantization]\ntext = true\n'
    )
    choose_recipe(RecipeRequest(path=path))
    assert "quantization.text has no effect: learn.prompts is false" in caplog.text
