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


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"quantization": {"percentile": 99.0}},
            [
                "quantization.percentile has no effect: neither quantization.observer nor weight_observer is "
                "'percentile'"
            ],
        ),
        (
            {"quantization": {"fold_norm": False, "fold_value": False, "fold_strength": 0.3}},
            ["quantization.fold_strength has no effect: quantization.fold_norm and fold_value are false"],
        ),
        (
            {"quantization": {"convolutions": "off", "depthwise": True, "stem": True}},
            [
                "quantization.depthwise has no effect: quantization.convolutions is 'off'",
                "quantization.stem has no effect: quantization.convolutions is 'off'",
            ],
        ),
        (
            {"quantization": {"number_format": "fp8", "observer": "mse", "stem": True, "headroom": 1.3}},
            [
                "quantization.observer has no effect: quantization.number_format is 'fp8', whose ranges are maxima",
                "quantization.stem has no effect: convolutions stay in high precision beside "
                "quantization.number_format = 'fp8'",
            ],
        ),
        (
            {"quantization": {"adapter_bits": 4}, "learn": {"adapter": False}},
            ["quantization.adapter_bits has no effect: learn.adapter is false"],
        ),
        (
            {"learn": {"epochs": 3, "steps": 100}},
            ["learn.steps has no effect: learn.epochs is 3, and steps count where it is 0"],
        ),
        (
            {"learn": {"kl_temperature": 2.0}},
            ["learn.kl_temperature has no effect: learn.teacher is 'none', as it is without distillation"],
        ),
        (
            {"learn": {"prompts": False, "text_memory_mib": 100}},
            ["learn.text_memory_mib has no effect: learn.prompts is false"],
        ),
        (
            {"learn": {"prompts": False, "adapter": False, "class_residual": False, "batch_size": 5, "steps": 3}},
            [
                "learn.steps has no effect: nothing is learned",
                "learn.batch_size has no effect: nothing is learned",
            ],
        ),
        (
            {"method": "as-released", "quantization": {"weight_bits": 4, "mean_weight_bits": 4.5}},
            [
                "quantization.mean_weight_bits has no effect: method = 'as-released' quantizes the image tower in its "
                "own way"
            ],
        ),
        (
            {"compute": {"memory_gib": 4.0, "batch_size": 8}},
            ["compute.memory_gib has no effect: compute.batch_size is a number, and memory_gib bounds those of 'auto'"],
        ),
    ],
)
def test_keys_of_every_section_that_do_nothing_are_told_of(changes: dict[str, Any], messages: list[str]) -> None:
    assert list(without_effect(recipe_of(changes))) == messages


def test_each_key_that_the_published_method_does_not_read_is_told_of() -> None:
    """A run of `learn --ablate methods` on the demo gave the same bits with and without all of them."""
    usual = recipe_of({}).quantization
    changes = {
        "attention_bits": 4,
        "calibration_images": 5,
        "convolutions": "off",
        "fold_strength": 0.3,
        "headroom": 1.1,
        "max_cosine_loss": 0.01,
        "max_top1_drop": 1.0,
        "observer": "percentile",
        "percentile": 98.0,
        "reconstruction_epochs": 2,
        "rotation": True,
        "scale_epochs": 2,
        "weight_observer": "percentile",
        "weight_rounding": "adaround",
    }
    for key in usual.__struct_fields__:
        if isinstance(value := getattr(usual, key), bool) and key != "text":
            changes[key] = not value
    read = {"weight_bits": 4, "activation_bits": 6, "adapter_bits": 4, "keep_float": ["a"], "text": True}
    # By attention_bits, and by the method itself.
    refused = {"mean_weight_bits", "weight_block", "number_format"}
    assert {*changes, *read, *refused} == set(usual.__struct_fields__)
    told = list(without_effect(recipe_of({"method": "as-released", "quantization": {**read, **changes}})))
    why = "has no effect: method = 'as-released' quantizes the image tower in its own way"
    assert sorted(told) == sorted(f"quantization.{key} {why}" for key in changes)
    learn = {"class_rate": 0.01, "feature_loss": 1.0, "kl_temperature": 2.0, "learn_ratio": True}
    told = list(without_effect(recipe_of({"method": "as-released", "learn": learn})))
    why = "has no effect: method = 'as-released' learns an adapter alone, in its own way"
    assert sorted(told) == [f"learn.{key} {why}" for key in learn]


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization": {"percentile": 99.0, "weight_observer": "percentile"}},
        {"quantization": {"fold_norm": False, "fold_strength": 0.3}},
        {"quantization": {"depthwise": True, "stem": True, "adapter_bits": 4}},
        {"method": "as-released", "learn": {"adapter": False}, "quantization": {"adapter_bits": 4}},
        {"learn": {"steps": 100, "batch_size": 5, "text_memory_mib": 100}},
        {"learn": {"distillation": 1.0, "kl_temperature": 2.0}},
        {"compute": {"memory_gib": 4.0}},
    ],
)
def test_the_same_keys_do_something_beside_others(changes: dict[str, Any]) -> None:
    assert not list(without_effect(recipe_of(changes)))


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
