"""`p4q-edge build`: an engine from a bundle (here), or from a recipe (handed to the toolkit)."""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_args

from p4q_edge.runtime.commands import Command, write_result
from p4q_edge.runtime.errors import EnvironmentNotAbleError
from p4q_edge.runtime.options import BackendName, CpuProfile

RECIPE_ENTRY_POINT = "build-recipe"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", type=Path, help="bundle to build from; without one, the recipe is run")
    parser.add_argument(
        "--engine", type=Path, required=True, help="engine to write: .onnx (CPU) or .plan/.engine (TensorRT)"
    )
    parser.add_argument("--recipe", type=Path, help="recipe to run instead of a bundle (toolkit)")
    parser.add_argument("--backend", choices=get_args(BackendName), help="overrides the suffix of --engine")
    parser.add_argument(
        "--cpu-profile",
        choices=get_args(CpuProfile),
        default="exact",
        help="exact: 8-bit weights; fast: 7-bit weights, for x86 without VNNI (default: %(default)s)",
    )


def _run(args: argparse.Namespace) -> int:
    from p4q_edge.runtime.build import BuildOptions, backend_of, build_engine
    from p4q_edge.runtime.errors import UsageError

    backend_of(args.engine, args.backend)
    if args.bundle is None:
        return _recipe_command().run(args)
    if args.recipe is not None:
        raise UsageError("a bundle and --recipe were both given. Name one of them.")
    card = build_engine(
        args.bundle,
        args.engine,
        backend=args.backend,
        force=args.force,
        options=BuildOptions(cpu_profile=args.cpu_profile),
    )
    golden = card.measured.get("golden", {})
    document = {
        "engine": str(args.engine),
        "card": f"{args.engine}.json",
        "backend": card.backend,
        "engine_size_bytes": card.engine_size_bytes,
        "engine_sha256": card.engine_sha256,
        "golden": golden,
    }
    text = f"{args.engine}  {card.backend}, {card.engine_size_bytes / 1e6:.1f} MB"
    if golden:
        text += f", cosine to the reference {golden['cosine_min']:.6f} (n = {golden['samples']})"
    write_result(args, document=document, text=text)
    return 0


def _recipe_command() -> Command:
    found = list(entry_points(group="p4q_edge.commands", name=RECIPE_ENTRY_POINT))
    if not found:
        raise EnvironmentNotAbleError(
            "building from a recipe needs the toolkit, which is not installed. Run: pip install ./runtime . "
            "in a checkout, or name a bundle: p4q-edge build model.p4q --engine out.onnx"
        )
    command = found[0].load()
    if not isinstance(command, Command):
        raise TypeError(f"the entry point {RECIPE_ENTRY_POINT} is a {type(command).__name__}, not a Command")
    return command


COMMAND = Command(
    name="build",
    help="build an engine from a bundle, a recipe or the built-in demo",
    add_arguments=_add_arguments,
    run=_run,
)
