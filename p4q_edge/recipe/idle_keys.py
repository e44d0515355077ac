"""Keys of a recipe that were set and do nothing beside the others."""

from collections.abc import Iterator, Mapping

import msgspec

from p4q_edge.recipe.schema import Recipe

KEYS_OF: Mapping[str, tuple[str, ...]] = {
    "prompts": ("context_init", "num_context_tokens", "context_rate", "prompt_pull", "anchor_prompts", "prompt_steps"),
    "adapter": ("zero_init", "residual_ratio", "learn_ratio", "adapter_rate", "feature_loss"),
    "class_residual": ("class_rate",),
}
"""Which keys of [learn] are of which part that is learned."""


def without_effect(recipe: Recipe) -> Iterator[str]:
    """Yield keys that were set and change nothing beside the others, each in words with the reason."""
    learn = recipe.learn
    parts_off = [part for part in KEYS_OF if not getattr(learn, part)]
    idle = {name: f"learn.{part} is false" for part in parts_off for name in KEYS_OF[part]}
    if not learn.prompt_steps:
        idle["prompt_rate"] = "learn.prompt_steps is 0"
    if learn.views == 1:
        idle["flip"] = "learn.views is 1, the image itself"
    usual = {field.name: field.default for field in msgspec.structs.fields(learn)}
    for name, reason in idle.items():
        if getattr(learn, name) != usual[name]:
            yield f"learn.{name} has no effect: {reason}"
    if len(parts_off) == len(KEYS_OF) and learn.taught_by != "none":
        yield "learn.teacher has no effect: nothing is learned"
    if recipe.method == "p4q" and recipe.quantization.text and "prompts" in parts_off:
        yield "quantization.text has no effect: learn.prompts is false, and the text tower runs once, in full precision"
