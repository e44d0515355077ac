"""`p4q-edge build` without a bundle: run the stages of a recipe, then build the engine."""

import argparse
import logging
from pathlib import Path

import msgspec

from p4q_edge.cli.common import choose_recipe, epoch_progress
from p4q_edge.recipe import Recipe, to_toml
from p4q_edge.runtime.artifacts import card_path
from p4q_edge.runtime.builders import build_unless_current
from p4q_edge.runtime.cli import Command, write_result
from p4q_edge.runtime.cli.commands import build_options
from p4q_edge.runtime.errors import UsageError
from p4q_edge.stages import Learned, RunFiles, export_unless_current, learn_stage, open_source, prepare

logger = logging.getLogger(__name__)


def run_stages(recipe: Recipe, folder: Path, *, quiet: bool) -> Learned:
    """load, calibrate, learn and fold, each skipped when unchanged."""
    files = RunFiles(folder=folder)
    prepared = prepare(open_source(recipe), files)
    with epoch_progress(recipe.learn.passes(len(prepared.features.labels)), quiet=quiet) as progress:
        return learn_stage(prepared, files, progress=progress)


def _run(args: argparse.Namespace) -> int:
    recipe = choose_recipe(args)
    if getattr(args, "print_config", False):
        write_result(args, document={"recipe": msgspec.to_builtins(recipe)}, text=to_toml(recipe))
        return 0
    bundle, folder = args.engine.with_suffix(".p4q"), args.engine.with_suffix(".run")
    if bundle == args.engine:
        raise UsageError(f"--engine {args.engine} names a bundle; end it in .onnx (CPU) or .plan (TensorRT)")
    learned = run_stages(recipe, folder, quiet=args.quiet)
    export_unless_current(learned, bundle, folder, force=args.force)
    options = build_options(args)
    card = build_unless_current(bundle, args.engine, backend=args.backend, force=args.force, options=options)
    document = {
        "engine": str(args.engine),
        "card": str(card_path(args.engine)),
        "bundle": str(bundle),
        "run": str(folder),
        "backend": card.backend,
        "engine_sha256": card.engine_sha256,
        "engine_size_bytes": card.engine_size_bytes,
    }
    what = f"{card.backend}, {card.precision.description}, {card.engine_size_bytes / 1e6:.2f} MB"
    text = f"{args.engine}  {what}\n{bundle}  the bundle"
    write_result(args, document=document, text=text)
    return 0


COMMAND = Command(
    name="build-recipe", help="run the stages of a recipe and build an engine", add_arguments=lambda _: None, run=_run
)
