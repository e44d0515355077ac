"""Keys of a recipe that were set and do nothing beside the others."""

from collections.abc import Iterator

import msgspec

from p4q_edge.recipe.schema import Recipe


def without_effect(recipe: Recipe) -> Iterator[str]:
    """Keys that were set and change nothing beside the others, each in words with the reason."""
    learn = recipe.learn
    no_prompts, no_adapter = (not learn.prompts, "prompts is false"), (not learn.adapter, "adapter is false")
    nothing = (not (learn.prompts or learn.adapter or learn.class_residual), "nothing is learned")
    no_phase = (not learn.prompt_steps, "prompt_steps is 0")
    usual = {field.name: field.default for field in msgspec.structs.fields(learn)}
    keys: dict[str, tuple[bool, str]] = {
        "anchor_prompts": no_prompts,
        "prompt_pull": no_prompts,
        "prompt_rate": no_phase,
        "feature_loss": no_adapter,
        "learn_ratio": no_adapter,
        "flip": (learn.views == 1, "views is 1, the image itself"),
    }
    for name, (idle, reason) in keys.items():
        if idle and getattr(learn, name) != usual[name]:
            yield f"learn.{name} has no effect: learn.{reason}"
    if nothing[0] and learn.taught_by != "none":
        yield f"learn.teacher has no effect: {nothing[1]}"
    if recipe.method == "p4q" and recipe.quantization.text and no_prompts[0]:
        yield f"quantization.text has no effect: learn.{no_prompts[1]}, and the text tower runs once, in full precision"
