"""The functions that the toolkit lends to `p4q-edge build`: the bundle of a recipe, and the recipe itself."""

from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.cli.common import DEFAULT_RECIPE, choose_recipe
from p4q_edge.cli.preflight import build_problems, check_build
from p4q_edge.data import Split, in_one_list
from p4q_edge.learning import CURVE_TABLE
from p4q_edge.recipe import Recipe, read_right_keys, to_document, to_toml
from p4q_edge.runtime.artifacts import RecipeDocument
from p4q_edge.runtime.builders import BuildRequest, RecipeRequest
from p4q_edge.runtime.cli import LOADING
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.machine import give_back_memory
from p4q_edge.runtime.progress import task
from p4q_edge.runtime.storage import require_writable

if TYPE_CHECKING:
    from p4q_edge.stages import Learned


def run_stages(recipe: Recipe, folder: Path, *, split: Split | None = None, log_dir: Path | None = None) -> "Learned":
    """load, calibrate, learn and fold, each skipped when unchanged.

    Args:
        split: what the recipe's data gave already.
        log_dir: where the learning curve is written; None writes none.
    """
    with task(LOADING, total=1):
        # Imported here: they need torch, and everything cheap is checked before.
        from p4q_edge.cli import team_work
        from p4q_edge.models import memory_in_words
        from p4q_edge.stages import RunFiles, log_learning

    if log_dir is not None:
        require_writable(log_dir / CURVE_TABLE, force=True)
    with memory_in_words():
        learned = team_work.learned(recipe, folder, split=split)
        if log_dir is not None:
            log_learning(learned, RunFiles(folder=folder), log_dir)
    return learned


def bundle_from_recipe(request: BuildRequest) -> Path:
    """Run the stages of a recipe up to the bundle, which is written beside the engine as the run folder does.

    Raises:
        UsageError: the engine has a bundle's name, or `check_build` found problems.
    """
    try:
        recipe = choose_recipe(request.recipe)
    except UsageError as error:
        raise UsageError(in_one_list([str(error), *_problems_beside(request)])) from error
    bundle, folder = request.engine.with_suffix(".p4q"), request.engine.with_suffix(".run")
    if bundle == request.engine:
        raise UsageError(f"--engine {request.engine} names a bundle; end it in .onnx (CPU) or .plan (TensorRT)")
    split = check_build(recipe, request.engine, force=request.force, log_dir=request.recipe.log_dir)
    learned = run_stages(recipe, folder, split=split, log_dir=request.recipe.log_dir)
    from p4q_edge.stages import export_unless_current  # needs torch, which is loaded by now

    export_unless_current(learned, bundle, folder, force=request.force)
    del learned
    give_back_memory()  # the engine is made beside nothing else
    return bundle


def _problems_beside(request: BuildRequest) -> list[str]:
    """Return what else is wrong with a build, as far as what is right of its recipe tells."""
    path = request.recipe.path or DEFAULT_RECIPE
    if request.recipe.zero_shot is not None or not path.is_file():
        return []
    try:
        recipe = read_right_keys(path)
    except UsageError:  # no TOML, as has been told
        return []
    if recipe is None:
        return []
    return build_problems(recipe, request.engine, force=request.force, log_dir=request.recipe.log_dir)[1]


def resolved_recipe(request: RecipeRequest) -> tuple[RecipeDocument, str]:
    """Return a recipe with every key, as documents have it and as TOML."""
    recipe = choose_recipe(request)
    return to_document(recipe), to_toml(recipe)
