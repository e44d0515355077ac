"""Everything about a build that can be checked in seconds, before torch is imported and weights are loaded."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from p4q_edge.data import Split, check_data, in_one_list
from p4q_edge.learning import CURVE_TABLE
from p4q_edge.recipe import Recipe, run_recipe_of
from p4q_edge.runtime.artifacts import card_path
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import is_outdated, not_fetched, require_writable
from p4q_edge.runtime.wording import one_or_many
from p4q_edge.stages import RunFiles

logger = logging.getLogger(__name__)

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
COPIES = 4
"""Weights on the disk of a build: calibrated, in the bundle for two graphs, in the engine."""
LEAST_FREE_BYTES = 64 << 20


def check_build(recipe: Recipe, engine: Path, *, force: bool, log_dir: Path | None = None) -> Split:
    """Return the recipe's images, after all that can be checked about a build.

    Args:
        recipe: what is built.
        engine: what is written, with its bundle and run folder beside it.
        force: replace files of another recipe.
        log_dir: where the learning curve goes as well.

    Raises:
        UsageError: every problem that was found, in one list.
        EnvironmentNotAbleError: the recipe's device is not there.
    """
    check_device(recipe)
    split, problems = build_problems(recipe, engine, force=force, log_dir=log_dir)
    if split is None or problems:
        raise UsageError(in_one_list(problems))
    return split


def build_problems(
    recipe: Recipe, engine: Path, *, force: bool, log_dir: Path | None = None
) -> tuple[Split | None, list[str]]:
    """Return the recipe's images, None if there is no split of them, and all that stands in the way of a build."""
    logs = () if log_dir is None else unwritable(log_dir / CURVE_TABLE)
    problems = [*output_problems(recipe, engine, force=force), *logs, *model_problems(recipe)]
    split, found = check_data(recipe.data, seed=recipe.seed)
    return split, [*problems, *found]


def output_problems(recipe: Recipe, engine: Path, *, force: bool) -> list[str]:
    """Return what stands in the way of the files to write: other files, rights, space.

    Files of a run with the same recipe are no problem: what did not change is skipped.
    """
    bundle, run = engine.with_suffix(".p4q"), engine.with_suffix(".run")
    problems = [*unwritable(engine)]
    if not problems:
        folder = next(parent for parent in engine.absolute().parents if parent.exists())
        free, needed = shutil.disk_usage(folder).free, max(LEAST_FREE_BYTES, COPIES * _weights_bytes(recipe))
        if free < needed:
            problems.append(
                f"{folder} has {free >> 20} MiB free, and a build of this model needs about {needed >> 20} MiB; free "
                "some, or name another place with --engine"
            )
    same = _is_of(run, recipe)
    if same and not force and bundle.exists() and not is_outdated(RunFiles(folder=run).bundle_record, [bundle]):
        problems.append(
            f"{bundle} exists already and was changed since the run {run} wrote it; add --force to replace it, or name "
            "another --engine"
        )
    if not same and not force:
        there = [str(path) for path in (engine, card_path(engine), bundle, run) if path.exists()]
        if there:
            exist = one_or_many(len(there), "exists already and is", "exist already and are")
            them = one_or_many(len(there), "it", "them")
            problems.append(
                f"{', '.join(there)} {exist} of another recipe; add --force to replace {them}, or name another --engine"
            )
    return problems


def unwritable(path: Path) -> Iterator[str]:
    """Why no file can be made at a path, if so."""
    try:
        require_writable(path, force=True)
    except UsageError as error:
        yield str(error).rstrip(".")


def check_device(recipe: Recipe) -> None:
    """Look for a GPU that the recipe names; only then is torch loaded before the data is read.

    Raises:
        EnvironmentNotAbleError: it is not there.
    """
    if recipe.compute.device.startswith("cuda"):
        from p4q_edge.models import require_device

        require_device(recipe.compute.device)


def _is_of(run: Path, recipe: Recipe) -> bool:
    """Return whether a run folder is of this recipe, wherever it was computed."""
    try:
        return run_recipe_of(run).anywhere() == recipe.anywhere()
    except UsageError:  # no run folder, or what it holds is no recipe of this version
        return False


def model_problems(recipe: Recipe) -> list[str]:
    """Return whether the files that [model] names are there; open_clip, which knows the names, is not asked yet."""
    section = recipe.model
    if section.name.startswith("local-dir:"):
        config = Path(section.name.removeprefix("local-dir:")) / "open_clip_config.json"
        if not config.is_file():
            return [f"model.name: {config} does not exist; local-dir: names a folder with that file and its weights"]
    elif section.pretrained.endswith(CHECKPOINT_SUFFIXES) and not Path(section.pretrained).is_file():
        return [f"model.pretrained: {not_fetched(section.pretrained) or f'{section.pretrained} does not exist'}"]
    return []


def _weights_bytes(recipe: Recipe) -> int:
    section = recipe.model
    if section.name.startswith("local-dir:"):
        folder = Path(section.name.removeprefix("local-dir:"))
        return max((path.stat().st_size for path in folder.glob("*") if path.suffix in CHECKPOINT_SUFFIXES), default=0)
    path = Path(section.pretrained)
    return path.stat().st_size if section.pretrained.endswith(CHECKPOINT_SUFFIXES) and path.is_file() else 0
