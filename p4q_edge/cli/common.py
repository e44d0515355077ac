"""What the toolkit's subcommands share: which recipe."""

import argparse
import logging
from pathlib import Path

import msgspec

from p4q_edge.cli.zero_shot import zero_shot_recipe
from p4q_edge.recipe import Recipe, demo_recipe, on_device, read_recipe, without_effect
from p4q_edge.runtime.builders import RecipeRequest
from p4q_edge.runtime.cli.commands import add_recipe_overrides
from p4q_edge.runtime.errors import UsageError

logger = logging.getLogger(__name__)

DEFAULT_RECIPE = Path("p4q.toml")


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --recipe and the options that override its keys."""
    parser.add_argument("--recipe", type=Path, help=f"recipe (TOML); without it {DEFAULT_RECIPE} here, else the demo's")
    add_recipe_overrides(parser)


def choose_recipe(request: RecipeRequest) -> Recipe:
    """Return the recipe that was named, or `p4q.toml` in the current folder, or the built-in demo.

    Keys that do nothing are told of.
    """
    if request.zero_shot is not None:
        chosen = zero_shot_recipe(request.zero_shot, _base_recipe(request))
    else:
        chosen = _named_recipe(request)
    recipe = _with_overrides(chosen, request)
    for problem in without_effect(recipe):
        logger.warning("%s", problem)
    return recipe


def _base_recipe(request: RecipeRequest) -> Recipe | None:
    """Return what a zero-shot recipe is made of; nothing where the model is named and no recipe is."""
    named = request.zero_shot is not None and request.zero_shot.model is not None
    return None if named and request.path is None else _named_recipe(request)


def _named_recipe(request: RecipeRequest) -> Recipe:
    if request.path is not None:
        recipe = read_recipe(request.path)
    elif DEFAULT_RECIPE.is_file():
        logger.info("using %s", DEFAULT_RECIPE)
        recipe = read_recipe(DEFAULT_RECIPE)
    else:
        recipe = demo_recipe()
        if request.zero_shot is None:
            logger.warning("no recipe given and no %s here: running the built-in demo recipe", DEFAULT_RECIPE)
        else:
            logger.warning(
                "no --model, no recipe and no %s here: the demo's model, which knows digits alone, gets these classes",
                DEFAULT_RECIPE,
            )
    return recipe


def _with_overrides(recipe: Recipe, request: RecipeRequest) -> Recipe:
    if request.seed is not None:
        try:
            recipe = msgspec.structs.replace(recipe, seed=request.seed)
        except ValueError as error:
            raise UsageError(f"--seed: {error}") from error
    if request.device is not None:
        recipe = on_device(recipe, request.device)
    given = {name: getattr(request, name) for name in ("quantize_attention", "max_cosine_loss", "max_top1_drop")}
    if request.keep_float:
        given["keep_float"] = tuple(dict.fromkeys((*recipe.quantization.keep_float, *request.keep_float)))
    if overrides := {key: value for key, value in given.items() if value is not None}:
        try:
            section = msgspec.structs.replace(recipe.quantization, **overrides)
            section.scheme()
            recipe = msgspec.structs.replace(recipe, quantization=section)
        except ValueError as error:
            raise UsageError(f"{error}; see p4q-edge build --help") from error
    return recipe
