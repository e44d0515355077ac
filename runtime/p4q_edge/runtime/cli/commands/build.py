"""`p4q-edge build`: an engine from a bundle (here), or from a recipe (handed to the toolkit)."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from p4q_edge.runtime.choices import CPU_BACKENDS, BackendName, CpuChoice, RemainderChoice
from p4q_edge.runtime.cli.command import Command, Output, toolkit_function
from p4q_edge.runtime.cli.from_hub import add_bundle, local_bundle
from p4q_edge.runtime.cli.zero_shot_options import add_zero_shot, zero_shot_request
from p4q_edge.runtime.errors import UsageError

if TYPE_CHECKING:
    from p4q_edge.runtime.builders import BuildOptions, BuildRequest, RecipeRequest
    from p4q_edge.runtime.builders.tensorrt import ShowProgress

BUNDLE_FUNCTION, RESOLVE_FUNCTION, SUMMARY_FUNCTION = "bundle_from_recipe", "resolved_recipe", "build_summary"
_CPU_NUMBERS = ("deadline", "remainder", "threads", "batch")
"""Options of engines for CPUs that are absent by default."""
_FIELD_OF = {"deadline": "deadline_s"}
NEEDS_TOOLKIT = (
    "building from a recipe needs the toolkit, which is not installed. Run: pip install ./runtime . in a checkout, or "
    "name a bundle: p4q-edge build model.p4q --engine out.onnx"
)


@dataclass(frozen=True)
class _Flag:
    """A flag of the TensorRT builder; default and choices are those of the field of `TensorRTOptions`."""

    field: str
    help: str
    name: str = ""
    metavar: str | None = None
    default: str = ""
    """How the help line puts the default; `{}` is its value."""

    @property
    def flag(self) -> str:
        """As it is typed."""
        return self.name or "--" + self.field.replace("_", "-")


_TENSORRT_FLAGS = (
    _Flag("precision", "auto (default) builds all and keeps the best"),
    _Flag("prefer", "which of them auto prefers", default="{}"),
    _Flag("min_batch", "smallest batch", default="{}"),
    _Flag("opt_batch", "batch size to tune for", default="{}"),
    _Flag("max_batch", "largest batch", default="{}"),
    _Flag("min_cosine", "accuracy gate", default="what rounding explains in this model"),
    _Flag("workspace_mib", "scratch memory of the builder in MiB"),
    _Flag("optimization_level", "0 builds fastest, 5 searches longest"),
    _Flag("timing_cache", "keep no kernel times beside the engine", name="--no-timing-cache"),
    _Flag("typing", "strong typing, or weak below 10.12"),
    _Flag("version_compatible", "make a plan that newer TensorRT versions load"),
    _Flag("hardware_compatibility", "make a plan for more desktop GPUs"),
    _Flag("device", "index of the GPU", name="--gpu", metavar="N", default="{}"),
    _Flag("cuda_backend", "library that reaches CUDA", default="{}"),
)
_RTX_FIELDS = frozenset(
    {"precision", "prefer", "min_cosine", "min_batch", "opt_batch", "max_batch", "optimization_level"}
)
"""What of these the builder of TensorRT for RTX takes too."""


def _add_tensorrt_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the flags of the TensorRT builder.

    All are absent by default, so that a flag which was given is told from one that was not.
    """
    from p4q_edge.runtime.artifacts import TensorRTOptions

    hints = get_type_hints(TensorRTOptions)
    defaults = {field.name: field.default for field in fields(TensorRTOptions)}
    for flag in _TENSORRT_FLAGS:
        kind, default = hints[flag.field], defaults[flag.field]
        note = f" (default: {flag.default.format(default)})" if flag.default else ""
        keywords: dict[str, Any] = {"dest": flag.field, "default": None, "help": flag.help + note}
        if kind is bool:
            keywords["action"] = "store_false" if default else "store_true"
        elif get_origin(kind) is Literal:
            keywords["choices"] = get_args(kind)
        else:
            keywords |= {"type": float if float in (kind, *get_args(kind)) else int, "metavar": flag.metavar}
        parser.add_argument(flag.flag, **keywords)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser, "bundle", nargs="?", about="bundle to build from; without one, the recipe is run")
    parser.add_argument(
        "--engine",
        type=Path,
        required=True,
        help="engine to write: .onnx (CPU), .plan/.engine (TensorRT) or .rtx (TensorRT for RTX)",
    )
    parser.add_argument("--backend", choices=get_args(BackendName), help="overrides the suffix of --engine")
    parser.add_argument("--dry-run", action="store_true", help="say what would be built, and build nothing")
    recipe = parser.add_argument_group("from a recipe (toolkit)")
    recipe.add_argument("--recipe", type=Path, help="recipe to run instead of a bundle")
    add_recipe_overrides(recipe)
    add_log_dir(recipe)
    add_zero_shot(parser.add_argument_group("without labelled images (toolkit)"))
    recipe.add_argument("--print-config", action="store_true", help="write the resolved recipe, and build nothing")
    cpu = parser.add_argument_group("engines for CPUs (ONNX Runtime, OpenVINO)")
    cpu.add_argument(
        "--cpu-profile",
        choices=get_args(CpuChoice),
        help="exact: 8-bit weights; fast: 7-bit weights, for x86 without VNNI; float: FP32; convolutions and "
        "fast-convolutions: convolutions in INT8 too, in OpenVINO; auto: the fastest of these and of OpenVINO where it "
        "is installed, measured here (default: auto where OpenVINO is installed or convolutions are quantized, "
        "elsewhere exact)",
    )
    cpu.add_argument(
        "--remainder",
        choices=get_args(RemainderChoice),
        help="precision of what is not quantized, in OpenVINO (default: the faster one here)",
    )
    cpu.add_argument("--threads", type=int, help="threads to measure and check with (default: one a core)")
    cpu.add_argument(
        "--batch", type=int, help="images per measured run; OpenVINO compiles for this number (default: 1)"
    )
    cpu.add_argument(
        "--deadline",
        type=float,
        metavar="SECONDS",
        help="stop the check with the golden samples if it takes longer (default: 600)",
    )
    _add_tensorrt_arguments(parser.add_argument_group("TensorRT"))
    rtx = parser.add_argument_group(
        "TensorRT for RTX (experimental; also takes batches, level and precision of TensorRT)"
    )
    rtx.add_argument(
        "--capability",
        action="append",
        metavar="X.Y",
        help="compute capability of a GPU that the engine is for, as 8.6; can be repeated (default: 8.0 and later)",
    )


def add_recipe_overrides(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options that override keys of a recipe; None where they are not given."""
    add_torch_device(parser)
    parser.add_argument("--seed", type=int, help="overrides the recipe's seed")
    parser.add_argument(
        "--quantize-attention",
        action=argparse.BooleanOptionalAction,
        help="overrides the recipe's quantization.quantize_attention: the products of attentions in INT8 too",
    )
    parser.add_argument(
        "--max-cosine-loss",
        type=float,
        metavar="X",
        help="overrides the recipe's quantization.max_cosine_loss: as few layers as possible stay in high precision, "
        "so that the mean cosine of calibration images to the float model is at least 1 - X",
    )
    parser.add_argument(
        "--max-top1-drop",
        type=float,
        metavar="Y",
        help="overrides the recipe's quantization.max_top1_drop: as few layers as possible stay in high precision, so "
        "that top-1 is at most Y points below the float learned model's, cross-validated on the labelled images",
    )
    parser.add_argument(
        "--keep-float",
        default="",
        metavar="PATH,...",
        help="paths of layers that stay in high precision, beside those of the recipe's quantization.keep_float",
    )


def add_torch_device(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add what names the device of PyTorch; None where it is not given."""
    parser.add_argument(
        "--device",
        dest="torch_device",
        metavar="auto|cpu|cuda|cuda:N",
        help="where PyTorch computes; overrides the recipe's compute.device (auto: a GPU if there is one)",
    )


def add_log_dir(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add where learning curves go."""
    parser.add_argument(
        "--log-dir",
        type=Path,
        metavar="DIR",
        help="write loss, learning rates and held-out accuracy of each epoch as CSV and for TensorBoard; a head is "
        "learned a second time for the accuracy",
    )


def recipe_request(args: argparse.Namespace) -> RecipeRequest:
    """Return which recipe the arguments name, and what they override."""
    from p4q_edge.runtime.builders import RecipeRequest

    return RecipeRequest(
        path=args.recipe,
        seed=args.seed,
        device=args.torch_device,
        log_dir=getattr(args, "log_dir", None),  # calibrate learns nothing
        quantize_attention=args.quantize_attention,
        max_cosine_loss=args.max_cosine_loss,
        max_top1_drop=args.max_top1_drop,
        keep_float=tuple(path for path in args.keep_float.split(",") if path),
        zero_shot=zero_shot_request(args) if "class_names" in args else None,  # only build has it
    )


def _options(args: argparse.Namespace) -> BuildOptions:
    """Return the build options that the arguments ask for.

    Raises:
        UsageError: an option of another backend than the engine's was given, or a value is out of range.
    """
    from p4q_edge.runtime.builders import BuildOptions, backend_of

    backend = backend_of(args.engine, args.backend)
    flags = {flag: value for flag in _TENSORRT_FLAGS if (value := getattr(args, flag.field)) is not None}
    given = {flag.field: value for flag, value in flags.items()}
    on_cpu = backend in CPU_BACKENDS
    if not on_cpu:
        given_for_cpus = {f"--{name}": getattr(args, name) is not None for name in _CPU_NUMBERS}
        _refuse({**given_for_cpus, "--cpu-profile": args.cpu_profile is not None}, args.engine, "a TensorRT engine")
    if backend == "tensorrt":
        from p4q_edge.runtime.artifacts import TensorRTOptions

        _refuse({"--capability": args.capability is not None}, args.engine, "a TensorRT engine")
        return BuildOptions(tensorrt=TensorRTOptions(**given))
    useless = {flag.flag: flag.field not in _RTX_FIELDS or on_cpu for flag in flags}
    if backend == "tensorrt-rtx":
        from p4q_edge.runtime.artifacts import RtxOptions

        _refuse(useless, args.engine, "an engine of TensorRT for RTX")
        return BuildOptions(rtx=RtxOptions(**given, capabilities=tuple(args.capability or ())))
    useless["--capability"] = args.capability is not None
    _refuse(useless, args.engine, "an engine for CPUs")
    profile: CpuChoice | None = args.cpu_profile
    if args.remainder is not None and args.backend != "openvino":
        profile = profile or "auto"
        if profile != "auto" or args.backend is not None:
            raise UsageError(
                "--remainder is OpenVINO's. Add --backend openvino, or --cpu-profile auto without a --backend."
            )
    numbers = {name: value for name in _CPU_NUMBERS if (value := getattr(args, name)) is not None}
    return BuildOptions(cpu_profile=profile, **{_FIELD_OF.get(name, name): value for name, value in numbers.items()})


def _refuse(flags: Mapping[str, bool], engine: Path, kind: str) -> None:
    """Raise where a flag was given that does nothing for an engine of a kind.

    Raises:
        UsageError: names the flags.
    """
    useless = ", ".join(flag for flag, given in flags.items() if given)
    if useless:
        raise UsageError(f"{useless} has no effect on {engine}, {kind}. Leave it out.")


def _request(args: argparse.Namespace) -> BuildRequest:
    from p4q_edge.runtime.builders import BuildRequest

    options, recipe = _options(args), recipe_request(args)
    if args.bundle is not None and Path(args.bundle).suffix == ".toml":
        raise UsageError(
            f"expected a bundle (.p4q), got the recipe {args.bundle}. Run: p4q-edge build "
            f"--recipe {shlex.quote(str(args.bundle))} --engine {shlex.quote(str(args.engine))}"
        )
    if args.bundle is None and args.dry_run:
        raise UsageError("--dry-run needs a bundle: p4q-edge build model.p4q --engine PATH --dry-run")
    if args.bundle is not None and (args.print_config or not recipe.empty):
        raise UsageError("a bundle and an option for recipes were both given. Leave one of them out.")
    return BuildRequest(
        engine=args.engine,
        options=options,
        bundle=args.bundle,
        backend=args.backend,
        recipe=recipe,
        force=args.force,
        quiet=args.quiet,
        dry_run=args.dry_run,
        print_config=args.print_config,
    )


def _run(request: BuildRequest, output: Output) -> int:
    from p4q_edge.runtime.cli.documents import ConfigDocument

    if request.print_config:
        document, text = toolkit_function(RESOLVE_FUNCTION, missing=NEEDS_TOOLKIT)(request.recipe)
        output.write(document=ConfigDocument(recipe=document), text=text)
    elif request.bundle is None:
        _build_from_recipe(request, output)
    elif request.dry_run:
        _describe(request, local_bundle(request.bundle), output)
    else:
        _build(request, local_bundle(request.bundle), output)
    return 0


def _build_from_recipe(request: BuildRequest, output: Output) -> None:
    from p4q_edge.runtime.artifacts import card_path
    from p4q_edge.runtime.builders import build_unless_current, require_able, require_replaceable
    from p4q_edge.runtime.cli.documents import RecipeBuildDocument

    require_able(request.engine, backend=request.backend, options=request.options)
    if not request.force:
        require_replaceable(request.engine, backend=request.backend, options=request.options)
    bundle: Path = toolkit_function(BUNDLE_FUNCTION, missing=NEEDS_TOOLKIT)(request)
    with _progress(request) as progress:
        card = build_unless_current(
            bundle,
            request.engine,
            backend=request.backend,
            force=request.force,
            options=request.options,
            progress=progress,
        )
    summary, table = toolkit_function(SUMMARY_FUNCTION, missing=NEEDS_TOOLKIT)(request, bundle)
    document = RecipeBuildDocument(
        engine=str(request.engine),
        card=str(card_path(request.engine)),
        bundle=str(bundle),
        summary=summary,
        run=str(request.engine.with_suffix(".run")),
        backend=card.backend,
        engine_sha256=card.engine_sha256,
        engine_size_bytes=card.engine_size_bytes,
    )
    what = f"{card.backend}, {card.precision.description}, {card.engine_size_bytes / 1e6:.2f} MB"
    output.write(document=document, text=f"{request.engine}  {what}\n{bundle}  the bundle\n\n{table}")


def _build(request: BuildRequest, bundle: Path, output: Output) -> None:
    from p4q_edge.runtime.artifacts import card_path
    from p4q_edge.runtime.builders import build_engine
    from p4q_edge.runtime.cli.documents import BuildDocument

    with _progress(request) as progress:
        card = build_engine(
            bundle,
            request.engine,
            backend=request.backend,
            force=request.force,
            options=request.options,
            progress=progress,
        )
    golden = None if card.measured is None else card.measured.golden
    # An engine for another machine is not run where it is built.
    proof = (
        "not run here" if golden is None else f"cosine to the reference {golden.cosine_min:.6f} (n = {golden.samples})"
    )
    document = BuildDocument(
        engine=str(request.engine),
        card=str(card_path(request.engine)),
        backend=card.backend,
        engine_size_bytes=card.engine_size_bytes,
        engine_sha256=card.engine_sha256,
        golden=golden,
    )
    text = (
        f"{request.engine}  {card.backend}, {card.precision.description}, {card.engine_size_bytes / 1e6:.1f} MB, "
        f"{proof}"
    )
    output.write(document=document, text=text)


def _progress(request: BuildRequest) -> AbstractContextManager[ShowProgress | None]:
    """Return what shows how far a build is: minutes on a Jetson, and nothing for builds that take seconds."""
    if (request.options.tensorrt is None and request.options.rtx is None) or request.quiet:
        return nullcontext()
    from p4q_edge.runtime.builders.tensorrt import ProgressLine

    return ProgressLine(sys.stderr)


def _describe(request: BuildRequest, bundle: Path, output: Output) -> None:
    import msgspec

    from p4q_edge.runtime.builders import describe_build
    from p4q_edge.runtime.cli.artifact_words import value_words

    document = describe_build(bundle, request.engine, backend=request.backend, options=request.options)
    values: dict[str, Any] = msgspec.to_builtins(document)
    output.write(document=document, text="\n".join(f"{key}  {value_words(value)}" for key, value in values.items()))


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
