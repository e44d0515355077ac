"""Keys of a recipe that were set and do nothing beside the others."""

from collections.abc import Iterator, Mapping

import msgspec

from p4q_edge.recipe.schema import QuantizationSection, Recipe

KEYS_OF: Mapping[str, tuple[str, ...]] = {
    "prompts": (
        "context_init",
        "num_context_tokens",
        "context_rate",
        "prompt_pull",
        "anchor_prompts",
        "prompt_steps",
        "text_memory_mib",
    ),
    "adapter": ("zero_init", "residual_ratio", "learn_ratio", "adapter_rate", "feature_loss"),
    "class_residual": ("class_rate",),
}
"""Which keys of [learn] are of which part that is learned."""


_OF_ACTIVATIONS = ("observer", "activation_gain", "headroom")
"""What the grids of activations alone read, of which there are none beside `weight_block`."""
_OF_INTEGER_RANGES = ("observer", "percentile", "weight_observer", "activation_gain")
"""What chooses ranges of integer grids: those of FP8 are maxima."""
_OF_CONVOLUTIONS = ("convolutions", "depthwise", "stem")
_READ_AS_RELEASED = frozenset({"weight_bits", "activation_bits", "adapter_bits", "keep_float", "text"})
"""What the published code's method takes from [quantization]."""
_NOT_LEARNED_AS_RELEASED = ("kl_temperature", "learn_ratio", "feature_loss", "class_rate")
_OF_ANY_LEARNING = ("steps", "epochs", "batch_size", "label_smoothing", "weight_decay")


def without_effect(recipe: Recipe) -> Iterator[str]:
    """Yield keys that were set and change nothing beside the others, each in words with the reason."""
    sections = (("quantization", _idle_quantization(recipe)), ("learn", _idle_learn(recipe)))
    for section, idle in (*sections, ("compute", _idle_compute(recipe))):
        chosen = getattr(recipe, section)
        usual = {field.name: field.default for field in msgspec.structs.fields(chosen)}
        for name, reason in idle.items():
            if getattr(chosen, name) != usual[name]:
                yield f"{section}.{name} has no effect: {reason}"
    if _learns_nothing(recipe) and recipe.learn.taught_by != "none":
        yield "learn.teacher has no effect: nothing is learned"
    if recipe.method == "p4q" and recipe.quantization.text and not recipe.learn.prompts:
        yield "quantization.text has no effect: learn.prompts is false, and the text tower runs once, in full precision"


def _learns_nothing(recipe: Recipe) -> bool:
    return not any(getattr(recipe.learn, part) for part in KEYS_OF)


def _idle_quantization(recipe: Recipe) -> dict[str, str]:
    """Return why keys of [quantization] change nothing, by name."""
    section, idle = recipe.quantization, {}
    if "percentile" not in (section.observer, section.weight_observer):
        idle["percentile"] = "neither quantization.observer nor weight_observer is 'percentile'"
    if not (section.fold_norm or section.fold_value):
        idle["fold_strength"] = "quantization.fold_norm and fold_value are false"
    idle |= idle_by_grid(section)
    if section.convolutions == "off":
        idle = dict.fromkeys(("depthwise", "stem"), "quantization.convolutions is 'off'") | idle
    if recipe.method == "as-released":
        others = [key for key in section.__struct_fields__ if key not in _READ_AS_RELEASED]
        idle |= dict.fromkeys(others, "method = 'as-released' quantizes the image tower in its own way")
    if recipe.method == "p4q" and not recipe.learn.adapter:
        idle["adapter_bits"] = "learn.adapter is false"
    return idle


def idle_by_grid(section: QuantizationSection) -> dict[str, str]:
    """Return why keys of [quantization] change nothing beside the kind of grid that it asks for, by name."""
    if section.weight_block is not None:
        reason = "quantization.weight_block is given, and no activation is quantized"
        idle = dict.fromkeys(_OF_ACTIVATIONS, reason)
        reason = "convolutions stay in high precision beside quantization.weight_block"
        return idle | dict.fromkeys(_OF_CONVOLUTIONS, reason)
    if section.number_format == "fp8":
        idle = dict.fromkeys(_OF_INTEGER_RANGES, "quantization.number_format is 'fp8', whose ranges are maxima")
        reason = "convolutions stay in high precision beside quantization.number_format = 'fp8'"
        return idle | dict.fromkeys(_OF_CONVOLUTIONS, reason)
    return {}


def _idle_learn(recipe: Recipe) -> dict[str, str]:
    """Return why keys of [learn] change nothing, by name."""
    learn = recipe.learn
    idle = {name: f"learn.{part} is false" for part in KEYS_OF if not getattr(learn, part) for name in KEYS_OF[part]}
    if not learn.prompt_steps:
        idle["prompt_rate"] = "learn.prompt_steps is 0"
    if learn.views == 1:
        idle["flip"] = "learn.views is 1, the image itself"
    if learn.epochs:
        idle["steps"] = f"learn.epochs is {learn.epochs}, and steps count where it is 0"
    if recipe.method == "as-released":
        why = "method = 'as-released' learns an adapter alone, in its own way"
        idle |= dict.fromkeys(_NOT_LEARNED_AS_RELEASED, why)
    if recipe.method == "p4q" and learn.taught_by == "none":
        idle["kl_temperature"] = "learn.teacher is 'none', as it is without distillation"
    if recipe.method == "p4q" and _learns_nothing(recipe):
        idle |= dict.fromkeys(_OF_ANY_LEARNING, "nothing is learned")
    return idle


def _idle_compute(recipe: Recipe) -> dict[str, str]:
    """Return why keys of [compute] change nothing, by name."""
    if recipe.compute.batch_size != "auto":
        return {"memory_gib": "compute.batch_size is a number, and memory_gib bounds those of 'auto'"}
    return {}
