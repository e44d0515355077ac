"""What ablations compare: methods, and single levers of [learn] and of [quantization]."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from p4q_edge.recipe import KEYS_OF, LearnSection, QuantizationSection, Recipe, idle_by_grid
from p4q_edge.runtime.wording import number_of, one_or_many

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the comparison.

    Attributes:
        name: as printed.
        full_precision: learn on, and test with, features of the float encoder.
        learn: keys of the recipe's [learn] that differ.
        quantization: keys of the recipe's [quantization] that differ.
    """

    name: str
    full_precision: bool = False
    learn: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)


UNCHANGED = Variant(name="as the recipe")
PTQ = {"prompts": False, "adapter": False, "class_residual": False, "prompt_steps": 0}
PROMPTS_ALONE = PTQ | {"prompts": True, "teacher": "none", "distillation": None}
COOP = {"context_init": "", "num_context_tokens": 16, "epochs": 0, "steps": 1000, "context_rate": 1e-2}
"""What serves full-precision prompts best; a baseline on the schedule of another method would be a weak one.

By cross-validation on the labelled images of seed 0: digits 87.5 % (n = 160; 80.6 on the recipe's schedule, 85.0 from
words), CIFAR-100 with the CLIP of photographs 17.9 % (n = 800; 14.6, 16.6).

Source: CoOp, arXiv:2109.01134, section 4.1: 16 random context vectors.
"""
FULL_PRECISION = (
    Variant(name="zero-shot", full_precision=True, learn=PTQ),
    Variant(name="learned prompts (CoOp)", full_precision=True, learn=PROMPTS_ALONE | COOP),
    Variant(name="learned prompts, the recipe's schedule", full_precision=True, learn=PROMPTS_ALONE),
)


def method_variants(section: LearnSection) -> tuple[Variant, ...]:
    """Return the recipe's method, each of its parts alone, and what it is measured against."""
    taught = section.taught_by != "none"
    switched = {"teacher": "none" if taught else "zero-shot", "distillation": None}
    residual: tuple[Variant, ...] = (
        Variant(name="class residual only", learn=PTQ | {"class_residual": True}),
        Variant(name="P4Q, prompts and adapter only", learn={"class_residual": False}),
    )
    residual = residual if section.class_residual else ()
    return (
        *FULL_PRECISION,
        Variant(name="PTQ", learn=PTQ),
        Variant(name="prompts only", learn=PTQ | {"prompts": True, "prompt_steps": section.prompt_steps}),
        Variant(name="adapter only", learn=PTQ | {"adapter": True}),
        *residual,
        Variant(name=f"P4Q {'without' if taught else 'with'} distillation", learn=switched),
        Variant(name="P4Q"),
    )


RELEASED_VARIANTS = (*FULL_PRECISION, Variant(name="as-released, PTQ", learn=PTQ), Variant(name="as-released"))


def variants_of(recipe: Recipe) -> tuple[Variant, ...]:
    """Return what `--ablate methods` compares for a recipe."""
    return RELEASED_VARIANTS if recipe.method == "as-released" else method_variants(recipe.learn)


LEARN_LEVERS: tuple[dict[str, Any], ...] = (
    {"context_init": "", "num_context_tokens": 16},
    {"context_init": "", "num_context_tokens": 4},
    {"zero_init": False},
    {"residual_ratio": 0.2},
    {"residual_ratio": 0.5},
    {"learn_ratio": True},
    {"class_residual": False},
    {"class_residual": True},
    {"prompt_pull": 1.0},
    {"feature_loss": 1.0},
    {"label_smoothing": 0.1},
    {"distillation": 0.3},
    {"distillation": 1.0},
    {"distillation": 1.0, "kl_temperature": 3.0},
    {"teacher": "learned"},
    {"anchor_prompts": True},
    {"prompt_steps": 1000},
    {"prompt_steps": 1000, "anchor_prompts": True},
    {"prompt_steps": 1000, "context_init": "", "num_context_tokens": 16},
    {"steps": 150},
    {"steps": 600},
    {"adapter_rate": 1e-3},
    {"adapter_rate": 5e-3},
    {"context_rate": 1e-3},
    {"context_rate": 5e-3},
    {"class_rate": 1e-3},
    {"class_rate": 3e-3},
    {"batch_size": 64},
    {"views": 4},
    {"views": 4, "flip": True},
)

QUANTIZATION_LEVERS: tuple[dict[str, Any], ...] = (
    {"observer": "minmax"},
    {"weight_observer": "minmax"},
    {"fold_strength": 0.0},
    {"fold_strength": 1.0},
    {"headroom": 1.0},
    {"bias_correction": True},
    {"affine_correction": True},
    {"weight_rounding": "adaround"},
    {"weight_rounding": "descent"},
    {"weight_rounding": "descent", "affine_correction": True},
    {"scale_epochs": 8},
    {"weight_rounding": "descent", "scale_epochs": 8},
)


def lever_variants(section: LearnSection) -> tuple[Variant, ...]:
    """Return the recipe as it is, and one changed lever of its [learn] in each further row.

    Levers of what the recipe does not learn would each be the recipe again, and are left out.
    """
    idle = {key for part, keys in KEYS_OF.items() if not getattr(section, part) for key in keys}
    levers = [change for change in LEARN_LEVERS if not change.keys() & idle]
    if len(levers) < len(LEARN_LEVERS):
        parts = " and ".join(part for part in KEYS_OF if not getattr(section, part))
        number = len(LEARN_LEVERS) - len(levers)
        logger.info(
            "ablate: %s not learned, so that %s nothing and %s left out",
            parts,
            number_of(number, "lever changes", "levers change"),
            one_or_many(number, "is", "are"),
        )
    return (UNCHANGED, *(Variant(name=_words(change), learn=_beside(section, change)) for change in levers))


def _beside(section: LearnSection, change: Mapping[str, Any]) -> dict[str, Any]:
    """Return a change without what the recipe says against it: a weight needs a teacher, and a teacher a weight."""
    if "distillation" in change and section.teacher == "none":
        return {"teacher": None, **change}
    if "teacher" in change and section.distillation == 0:
        return {"distillation": None, **change}
    return dict(change)


def quantization_variants(section: QuantizationSection) -> tuple[Variant, ...]:
    """Return the recipe as it is, and one changed lever of [quantization] in each further row.

    Levers that the recipe's other choices refuse, or that change nothing beside them, are left out.
    """
    levers = [change for change in QUANTIZATION_LEVERS if _can_be_had(section, change)]
    if left_out := [_words(change) for change in QUANTIZATION_LEVERS if change not in levers]:
        logger.info("ablate: left out, as they cannot be had in this recipe or change nothing: %s", "; ".join(left_out))
    return (UNCHANGED, *(Variant(name=_words(change), quantization=change) for change in levers))


def _can_be_had(section: QuantizationSection, change: Mapping[str, Any]) -> bool:
    if change.keys() & idle_by_grid(section).keys():
        return False
    try:
        msgspec.structs.replace(section, **change)
    except ValueError:
        return False
    return True


def _words(change: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in change.items())
