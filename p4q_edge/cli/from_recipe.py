"""The functions that the toolkit lends to `p4q-edge build`: the bundle of a recipe, and the recipe itself."""

from pathlib import Path
from typing import Any

import msgspec

from p4q_edge.cli.common import choose_recipe, epoch_progress
from p4q_edge.recipe import Recipe, to_toml
from p4q_edge.runtime.builders import BuildRequest, RecipeRequest
from p4q_edge.runtime.errors import UsageError
from p4q_edge.stages import Learned, RunFiles, export_unless_current, learn_stage, open_source, prepare


def run_stages(recipe: Recipe, folder: Path, *, quiet: bool) -> Learned:
    """load, calibrate, learn and fold, each skipped when unchanged."""
    files = RunFiles(folder=folder)
    prepared = prepare(open_source(recipe), files)
    with epoch_progress(recipe.learn.passes(len(prepared.features.labels)), quiet=quiet) as progress:
        return learn_stage(prepared, files, progress=progress)


def bundle_from_recipe(request: BuildRequest) -> Path:
    """Run the stages of a recipe up to the bundle, which lies beside the engine as the run folder does.

    Raises:
        UsageError: the engine has a bundle's name, or another bundle is there and `request.force` is false.
    """
    recipe = choose_recipe(request.recipe)
    bundle, folder = request.engine.with_suffix(".p4q"), request.engine.with_suffix(".run")
    if bundle == request.engine:
        raise UsageError(f"--engine {request.engine} names a bundle; end it in .onnx (CPU) or .plan (TensorRT)")
    learned = run_stages(recipe, folder, quiet=request.quiet)
    export_unless_current(learned, bundle, folder, force=request.force)
    return bundle


def resolved_recipe(request: RecipeRequest) -> tuple[dict[str, Any], str]:
    """Return a recipe with every key, as JSON values and as TOML."""
    recipe = choose_recipe(request)
    return msgspec.to_builtins(recipe), to_toml(recipe)
