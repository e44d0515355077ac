"""`p4q-edge build` without a bundle: run the stages of a recipe, then build the engine."""

import argparse
import json
import logging
from pathlib import Path

import msgspec

from p4q_edge.cli.common import choose_recipe, epoch_progress
from p4q_edge.recipe import Recipe, to_toml
from p4q_edge.runtime.artifacts import card_path, read_card
from p4q_edge.runtime.builders import BuildOptions, build_engine, recorded_options
from p4q_edge.runtime.cli import Command, write_result
from p4q_edge.runtime.cli.commands import build_options
from p4q_edge.runtime.errors import P4QEdgeError, UsageError
from p4q_edge.runtime.storage import atomic_write, sha256_bytes, sha256_file
from p4q_edge.stages import CODE_VERSION, Learned, RunFiles, export_bundle, learn_stage, open_source, prepare

logger = logging.getLogger(__name__)


def run_stages(recipe: Recipe, folder: Path, *, quiet: bool) -> Learned:
    """load, calibrate, learn and fold, each skipped when unchanged."""
    files = RunFiles(folder=folder)
    prepared = prepare(open_source(recipe), files)
    with epoch_progress(recipe.learn.passes(len(prepared.features.labels)), quiet=quiet) as progress:
        return learn_stage(prepared, files, progress=progress)


def bundle_is_current(learned: Learned, bundle: Path, folder: Path) -> bool:
    """Whether the bundle was exported from exactly this and not changed since."""
    record = folder / "bundle.json"
    if not bundle.is_file() or not record.is_file():
        return False
    expected = json.loads(record.read_text(encoding="utf-8"))
    return bool(expected == {"key": _bundle_key(learned), "sha256": sha256_file(bundle)})


def export_if_needed(learned: Learned, bundle: Path, folder: Path, *, force: bool) -> None:
    """Stage `export`, skipped when the bundle is current.

    Raises:
        UsageError: another bundle is there and `force` is false.
    """
    if bundle_is_current(learned, bundle, folder) and not force:
        logger.info("export: unchanged, %s", bundle)
        return
    written = export_bundle(learned, bundle, force=force)
    record = {"key": _bundle_key(learned), "sha256": written.sha256()}
    atomic_write(folder / "bundle.json", json.dumps(record).encode(), force=True)


def engine_is_current(engine: Path, bundle: Path, options: BuildOptions) -> bool:
    """Whether the engine was built from exactly this bundle with these options and not changed since."""
    if not engine.is_file() or not card_path(engine).is_file():
        return False
    try:
        card = read_card(engine)
    except P4QEdgeError:
        return False
    same_options = recorded_options(options, card.backend).items() <= card.options.items()
    return same_options and card.bundle_sha256 == sha256_file(bundle) and card.engine_sha256 == sha256_file(engine)


def _bundle_key(learned: Learned) -> str:
    document = [CODE_VERSION, learned.key, to_toml(learned.prepared.source.recipe)]
    return sha256_bytes(json.dumps(document).encode())


def _run(args: argparse.Namespace) -> int:
    recipe = choose_recipe(args)
    if getattr(args, "print_config", False):
        write_result(args, document={"recipe": msgspec.to_builtins(recipe)}, text=to_toml(recipe))
        return 0
    bundle, folder = args.engine.with_suffix(".p4q"), args.engine.with_suffix(".run")
    if bundle == args.engine:
        raise UsageError(f"--engine {args.engine} names a bundle; end it in .onnx (CPU) or .plan (TensorRT)")
    learned = run_stages(recipe, folder, quiet=args.quiet)
    export_if_needed(learned, bundle, folder, force=args.force)
    options = build_options(args)
    if engine_is_current(args.engine, bundle, options) and not args.force:
        logger.info("build: unchanged, %s", args.engine)
        card = read_card(args.engine)
    else:
        card = build_engine(bundle, args.engine, backend=args.backend, force=args.force, options=options)
    document = {
        "engine": str(args.engine),
        "card": str(card_path(args.engine)),
        "bundle": str(bundle),
        "run": str(folder),
        "backend": card.backend,
        "engine_sha256": card.engine_sha256,
        "engine_size_bytes": card.engine_size_bytes,
    }
    what = f"{card.backend}, {card.precision.label}, {card.engine_size_bytes / 1e6:.2f} MB"
    text = f"{args.engine}  {what}\n{bundle}  the bundle"
    write_result(args, document=document, text=text)
    return 0


COMMAND = Command(
    name="build-recipe", help="run the stages of a recipe and build an engine", add_arguments=lambda _: None, run=_run
)
