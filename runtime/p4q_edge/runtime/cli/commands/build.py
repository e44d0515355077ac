"""`p4q-edge build`: an engine from a bundle (here), or from a recipe (handed to the toolkit)."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from p4q_edge.runtime.choices import BackendName, CpuChoice
from p4q_edge.runtime.cli.command import Command, toolkit_command, write_result
from p4q_edge.runtime.errors import UsageError

if TYPE_CHECKING:
    from p4q_edge.runtime.builders import BuildOptions

RECIPE_ENTRY_POINT = "build-recipe"
NEEDS_TOOLKIT = (
    "building from a recipe needs the toolkit, which is not installed. Run: pip install ./runtime . in a checkout, or "
    "name a bundle: p4q-edge build model.p4q --engine out.onnx"
)


# Options of the TensorRT builder: flag, field of `TensorRTOptions`, and how argparse reads it. All default to None, so
# that a flag which was given is told from one that was not; the defaults stand in the dataclass alone.
_TENSORRT_FLAGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "--precision",
        "precision",
        {"choices": ("auto", "int8", "fp16"), "help": "auto (default) builds all and keeps the best"},
    ),
    ("--prefer", "prefer", {"choices": ("speed", "size"), "help": "what auto means by better (default: speed)"}),
    ("--min-batch", "min_batch", {"type": int, "help": "smallest batch (default: 1)"}),
    ("--opt-batch", "opt_batch", {"type": int, "help": "batch that is tuned for (default: 1)"}),
    ("--max-batch", "max_batch", {"type": int, "help": "largest batch (default: 8)"}),
    (
        "--min-cosine",
        "min_cosine",
        {"type": float, "help": "accuracy gate (default: what rounding explains in this model)"},
    ),
    ("--workspace-mib", "workspace_mib", {"type": int, "help": "scratch memory of the builder in MiB"}),
    ("--optimization-level", "optimization_level", {"type": int, "help": "0 builds fastest, 5 searches longest"}),
    ("--no-timing-cache", "timing_cache", {"action": "store_false", "help": "keep no kernel times beside the engine"}),
    ("--typing", "typing", {"choices": ("auto", "strong", "weak"), "help": "strong typing, or weak below 10.12"}),
    (
        "--version-compatible",
        "version_compatible",
        {"action": "store_true", "help": "make a plan that newer TensorRT versions load"},
    ),
    (
        "--hardware-compatibility",
        "hardware_compatibility",
        {"choices": ("none", "ampere_plus", "same_compute_capability"), "help": "make a plan for more desktop GPUs"},
    ),
    ("--gpu", "device", {"type": int, "metavar": "N", "help": "index of the GPU (default: 0)"}),
    (
        "--cuda-backend",
        "cuda_backend",
        {"choices": ("auto", "cuda-bindings", "pycuda"), "help": "library that reaches CUDA (default: auto)"},
    ),
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", type=Path, help="bundle to build from; without one, the recipe is run")
    parser.add_argument(
        "--engine", type=Path, required=True, help="engine to write: .onnx (CPU) or .plan/.engine (TensorRT)"
    )
    parser.add_argument("--backend", choices=get_args(BackendName), help="overrides the suffix of --engine")
    parser.add_argument("--dry-run", action="store_true", help="say what would be built, and build nothing")
    recipe = parser.add_argument_group("from a recipe (toolkit)")
    recipe.add_argument("--recipe", type=Path, help="recipe to run instead of a bundle")
    add_recipe_overrides(recipe)
    recipe.add_argument("--print-config", action="store_true", help="write the resolved recipe, and build nothing")
    cpu = parser.add_argument_group("ONNX Runtime")
    cpu.add_argument(
        "--cpu-profile",
        choices=get_args(CpuChoice),
        default="exact",
        help="exact: 8-bit weights; fast: 7-bit weights, for x86 without VNNI; float: FP32; auto: the faster of exact "
        "and float, measured here (default: %(default)s)",
    )
    tensorrt = parser.add_argument_group("TensorRT")
    for flag, field, keywords in _TENSORRT_FLAGS:
        tensorrt.add_argument(flag, dest=field, default=None, **keywords)


def add_recipe_overrides(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options that override keys of a recipe; None where they are not given."""
    parser.add_argument("--seed", type=int, help="overrides the recipe's seed")
    parser.add_argument(
        "--quantize-attention",
        action=argparse.BooleanOptionalAction,
        help="overrides the recipe's quantization.quantize_attention: the products of attentions in INT8 too",
    )


def build_options(args: argparse.Namespace) -> BuildOptions:
    """Return the build options that the arguments of `p4q-edge build` ask for.

    Raises:
        UsageError: an option of another backend than the engine's was given, or a value is out of range.
    """
    from p4q_edge.runtime.builders import BuildOptions, backend_of

    given = {field: getattr(args, field) for _, field, _ in _TENSORRT_FLAGS if getattr(args, field) is not None}
    if backend_of(args.engine, args.backend) == "tensorrt":
        from p4q_edge.runtime.builders.tensorrt import TensorRTOptions

        if args.cpu_profile != "exact":
            raise UsageError(f"--cpu-profile has no effect on {args.engine}, a TensorRT engine. Leave it out.")
        return BuildOptions(tensorrt=TensorRTOptions(**given))
    if given:
        flags = ", ".join(flag for flag, field, _ in _TENSORRT_FLAGS if field in given)
        raise UsageError(f"{flags} has no effect on {args.engine}, an ONNX Runtime engine. Leave it out.")
    return BuildOptions(cpu_profile=args.cpu_profile)


def _run(args: argparse.Namespace) -> int:
    options = build_options(args)
    if args.bundle is None:
        if args.dry_run:
            raise UsageError("--dry-run needs a bundle: p4q-edge build model.p4q --engine PATH --dry-run")
        return toolkit_command(RECIPE_ENTRY_POINT, missing=NEEDS_TOOLKIT).run(args)
    overrides = (args.recipe, args.seed, args.quantize_attention)
    if args.print_config or any(value is not None for value in overrides):
        raise UsageError("a bundle and an option for recipes were both given. Leave out one of them.")
    if args.dry_run:
        return _describe(args, options)
    return _build(args, options)


def _build(args: argparse.Namespace, options: BuildOptions) -> int:
    from p4q_edge.runtime.builders import build_engine

    if options.tensorrt is not None and not args.quiet:
        # Minutes on a Jetson, so it shows how far it is.
        from p4q_edge.runtime.builders.tensorrt import ProgressLine

        progress = ProgressLine(sys.stderr)
    else:
        progress = None
    with progress or nullcontext():
        card = build_engine(
            args.bundle, args.engine, backend=args.backend, force=args.force, options=options, progress=progress
        )
    golden = card.measured["golden"]
    document = {
        "engine": str(args.engine),
        "card": f"{args.engine}.json",
        "backend": card.backend,
        "engine_size_bytes": card.engine_size_bytes,
        "engine_sha256": card.engine_sha256,
        "golden": golden,
    }
    text = (
        f"{args.engine}  {card.backend}, {card.precision.description}, {card.engine_size_bytes / 1e6:.1f} MB, "
        f"cosine to the reference {golden['cosine_min']:.6f} (n = {golden['samples']})"
    )
    write_result(args, document=document, text=text)
    return 0


def _describe(args: argparse.Namespace, options: BuildOptions) -> int:
    from p4q_edge.runtime.builders import describe_build

    document = describe_build(args.bundle, args.engine, backend=args.backend, options=options)
    write_result(args, document=document, text="\n".join(f"{key}  {value}" for key, value in document.items()))
    return 0


COMMAND = Command(
    name="build",
    help="build an engine from a bundle, a recipe or the built-in demo",
    add_arguments=_add_arguments,
    run=_run,
)
