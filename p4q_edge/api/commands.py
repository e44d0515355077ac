"""The commands of the toolkit as functions. Nothing is written to stdout; progress goes to `logging`."""

from collections.abc import Callable
from pathlib import Path

from p4q_edge.evaluation import reference_for
from p4q_edge.recipe import Recipe
from p4q_edge.runtime.artifacts import Bundle
from p4q_edge.runtime.evaluation import ValidateRequest, run_validation
from p4q_edge.runtime.evaluation.report import Report
from p4q_edge.stages import Learned, Prepared, RunFiles, export_bundle, learn_stage, open_source, prepare


def calibrate(recipe: Recipe, run_folder: str | Path) -> Prepared:
    """Return the model of a recipe with its calibrated, quantized image tower, as `p4q-edge calibrate` leaves it.

    Args:
        recipe: of `read_recipe` or `demo_recipe`.
        run_folder: keeps what was computed; a stage whose inputs, recipe and code did not change is read from it.

    Raises:
        InputError: the data cannot be used.
        UsageError: the recipe asks for what cannot be done.
    """
    return prepare(open_source(recipe), RunFiles(folder=Path(run_folder)))


def learn(recipe: Recipe, run_folder: str | Path, *, progress: Callable[[int, float], None] | None = None) -> Learned:
    """Return what is learned on the calibrated tower, as `p4q-edge learn` leaves it.

    Args:
        recipe: of `read_recipe` or `demo_recipe`.
        run_folder: as in `calibrate`, which runs first unless it is unchanged.
        progress: is called after each epoch with its number and its loss.

    Raises:
        InputError: the data cannot be used.
        UsageError: the recipe asks for what cannot be done.
    """
    files = RunFiles(folder=Path(run_folder))
    return learn_stage(prepare(open_source(recipe), files), files, progress=progress)


def export(learned: Learned, bundle: str | Path, *, force: bool = False) -> Bundle:
    """Write the bundle of what was learned, as `p4q-edge export` does, and return it opened.

    Raises:
        UsageError: the file exists and `force` is false.
        QualityGateError: no exported graph computes what the model computes.
    """
    return export_bundle(learned, Path(bundle), force=force)


def validate(
    engine: str | Path,
    *,
    reference: str | Path | None = None,
    data: str | None = None,
    limit: int = 0,
    max_top1_drop: float | None = None,
) -> Report:
    """Compare an engine with the model that it was made from, stage by stage, as `p4q-edge validate` does.

    Args:
        engine: the engine, with its card beside it.
        reference: bundle, recipe or run folder; None looks beside the engine.
        data: labelled images; None takes those of the reference.
        limit: largest number of images; 0 takes all.
        max_top1_drop: percentage points that the engine may lose to full precision.

    Returns:
        The report; `passed` tells whether every gate holds. Nothing is written.

    Raises:
        ArtifactError: engine, card and bundle do not belong together.
        InputError: the images do not fit the classes.
    """
    request = ValidateRequest(
        engine=Path(engine),
        reference=None if reference is None else Path(reference),
        data=data,
        limit=limit,
        max_top1_drop=max_top1_drop,
    )
    return run_validation(request, torch_reference=reference_for).report
