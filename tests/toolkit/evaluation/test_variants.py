"""What ablations compare: rows that a recipe can have, whatever it says itself."""

import logging
from typing import Any

import msgspec
import pytest

from p4q_edge.evaluation.variants import (
    LEARN_LEVERS,
    QUANTIZATION_LEVERS,
    UNCHANGED,
    lever_variants,
    method_variants,
    quantization_variants,
)
from p4q_edge.recipe.idle_keys import KEYS_OF, without_effect
from p4q_edge.recipe.schema import DataSection, LearnSection, ModelSection, QuantizationSection, Recipe

SECTIONS = (
    LearnSection(),
    LearnSection(teacher="none"),
    LearnSection(teacher="learned"),
    LearnSection(teacher="zero-shot", distillation=0.5),
    LearnSection(distillation=0.0),
    LearnSection(prompts=False),
    LearnSection(prompts=False, teacher="none"),
    LearnSection(adapter=False, class_residual=False),
    LearnSection(prompt_steps=9, anchor_prompts=True),
)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_lever_is_a_key_that_does_something_in_any_recipe(section: LearnSection) -> None:
    data = DataSection(train="x")
    unchanged = set(without_effect(Recipe(model=ModelSection(name="demo"), data=data, learn=section)))
    for variants in (lever_variants(section), method_variants(section), quantization_variants(QuantizationSection())):
        for variant in variants:
            learn = msgspec.structs.replace(section, **variant.learn)
            msgspec.structs.replace(QuantizationSection(), **variant.quantization).scheme()
            if variants[0] == UNCHANGED and variant.learn:
                recipe = Recipe(model=ModelSection(name="demo"), data=data, learn=learn)
                assert set(without_effect(recipe)) <= unchanged, variant.name
        assert len({variant.name for variant in variants}) == len(variants)


def test_levers_of_what_is_not_learned_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert len(lever_variants(LearnSection())) == len(LEARN_LEVERS) + 1
    assert not caplog.messages
    found = lever_variants(LearnSection(prompts=False))
    assert not any(variant.learn.keys() & set(KEYS_OF["prompts"]) for variant in found)
    number = len(LEARN_LEVERS) + 1 - len(found)
    assert caplog.messages == [f"ablate: prompts not learned, so that {number} levers change nothing and are left out"]


@pytest.mark.parametrize(
    ("section", "lever", "expected"),
    [
        (LearnSection(teacher="none"), "distillation = 0.3", ("zero-shot", 0.3)),
        (LearnSection(teacher="learned"), "distillation = 0.3", ("learned", 0.3)),
        (LearnSection(distillation=0.0), "teacher = learned", ("learned", 1.0)),
    ],
)
def test_a_lever_stands_against_what_the_recipe_says(section: LearnSection, lever: str, expected: Any) -> None:
    (variant,) = (v for v in lever_variants(section) if v.name == lever)
    changed = msgspec.structs.replace(section, **variant.learn)
    assert (changed.taught_by, changed.teacher_weight) == expected


def test_distillation_is_switched_in_its_own_row() -> None:
    assert "P4Q with distillation" in [v.name for v in method_variants(LearnSection())]
    assert "P4Q without distillation" in [v.name for v in method_variants(LearnSection(distillation=1.0))]


def test_levers_that_weights_in_blocks_refuse_are_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert len(quantization_variants(QuantizationSection())) == len(QUANTIZATION_LEVERS) + 1
    assert not caplog.messages
    section = QuantizationSection(weight_bits=4, activation_bits=16, weight_block=128, scale_epochs=0)
    found = quantization_variants(section)
    for variant in found:
        msgspec.structs.replace(section, **variant.quantization)
    assert {"observer", "headroom", "affine_correction", "scale_epochs"}.isdisjoint(
        key for variant in found for key in variant.quantization
    )
    assert {variant.name for variant in found} >= {"as the recipe", "weight_rounding = adaround"}
    (message,) = caplog.messages
    assert "left out, as they cannot be had in this recipe or change nothing: observer = minmax; " in message


def test_levers_of_integer_grids_are_left_out_in_fp8() -> None:
    section = QuantizationSection(number_format="fp8")
    found = quantization_variants(section)
    for variant in found:
        msgspec.structs.replace(section, **variant.quantization)
    changed = {key for variant in found for key in variant.quantization}
    assert changed >= {"headroom", "bias_correction"}
    assert changed.isdisjoint({"observer", "activation_gain", "weight_rounding", "affine_correction", "scale_epochs"})
