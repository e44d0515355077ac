"""`p4q-edge learn` and `p4q-edge calibrate`: run the stages up to there, into a run folder."""

import argparse
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import msgspec

from p4q_edge.cli.common import add_recipe_arguments, choose_recipe
from p4q_edge.cli.documents import AblateDocument, CalibrateDocument, LearnDocument
from p4q_edge.cli.from_recipe import run_stages
from p4q_edge.evaluation import lever_variants, quantization_variants, variants_of
from p4q_edge.recipe import Recipe
from p4q_edge.runtime.artifacts import quantized_parts
from p4q_edge.runtime.builders import RecipeRequest
from p4q_edge.runtime.cli import LOADING, Command, Output
from p4q_edge.runtime.cli.commands import add_log_dir, recipe_request
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.evaluation.report import Baseline, baseline, baseline_table
from p4q_edge.runtime.progress import task
from p4q_edge.runtime.storage import atomic_write, is_unchanged, write_record
from p4q_edge.runtime.wording import number_of
from p4q_edge.stages import RunFiles

logger = logging.getLogger(__name__)


SEEDS = "0,1,2"
Ablation = Literal["methods", "levers", "quantization"]


@dataclass(frozen=True, kw_only=True)
class CalibrateRequest:
    """What `calibrate` was asked for: a recipe, and the run folder to make or to go on with."""

    recipe: RecipeRequest
    run_folder: Path


@dataclass(frozen=True, kw_only=True)
class LearnRequest:
    """What `learn` was asked for.

    Attributes:
        recipe: what is learned.
        run_folder: to make or to go on with.
        ablate: compare in place of one run; None learns.
        seeds: of the comparison.
    """

    recipe: RecipeRequest
    run_folder: Path
    ablate: Ablation | None = None
    seeds: tuple[int, ...] = (0, 1, 2)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="run folder to make or to go on with")


def _add_learn_arguments(parser: argparse.ArgumentParser) -> None:
    _add_arguments(parser)
    add_log_dir(parser)
    parser.add_argument(
        "--ablate",
        choices=get_args(Ablation),
        help="in place of one run, compare methods on the test images, or the levers of [learn] or [quantization] by "
        "cross-validation on the labelled ones; writes baselines.json, levers.json or quantization.json and a .md "
        "beside it",
    )
    parser.add_argument("--seeds", help=f"of --ablate (default: {SEEDS})")


def _recipe_of(request: CalibrateRequest | LearnRequest) -> Recipe:
    """Return the recipe of a request.

    Raises:
        UsageError: its file is the one that the run folder keeps the resolved recipe in.
    """
    recipe, own = choose_recipe(request.recipe), RunFiles(folder=request.run_folder).recipe
    if request.recipe.path is not None and own.exists() and own.samefile(request.recipe.path):
        raise UsageError(
            f"-o {request.run_folder}: {own} is the recipe itself, and would be replaced by the resolved one; name "
            f"another folder, such as {request.run_folder / 'model.run'}"
        )
    return recipe


def _calibrate(request: CalibrateRequest, output: Output) -> int:
    recipe = _recipe_of(request)
    with task(LOADING, total=1):
        # Imported here: they need torch, and everything cheap is checked before.
        from p4q_edge.cli import team_work
        from p4q_edge.models import memory_in_words
        from p4q_edge.quant import quant_linears

    with memory_in_words():
        prepared = team_work.calibrated(recipe, request.run_folder)
    calibrated = prepared.calibrated
    linears = quant_linears(calibrated.encoder)
    scales = {name: float(linear.input_scale) for name, linear in linears.items() if linear.calibrated}
    document = CalibrateDocument(
        run=str(request.run_folder),
        scheme=recipe.quantization.scheme().label,
        execution=recipe.quantization.scheme().execution,
        images=calibrated.images,
        input_scales=scales,
        kept_float=(*calibrated.kept_float, *calibrated.in_float),
        folded=tuple(calibrated.folded),
        quantized_attentions=tuple(calibrated.products),
        quantized_convolutions=tuple(path for path in calibrated.convolutions if path not in calibrated.in_float),
    )
    text = (
        f"{request.run_folder}  {document.scheme} {document.execution}, {_parts(document)} quantized, "
        f"{len(document.kept_float)} kept in float (n = {number_of(calibrated.images, 'image')})"
    )
    output.write(document=document, text=text)
    return 0


def _parts(document: CalibrateDocument) -> str:
    return quantized_parts(
        len(document.input_scales),
        len(document.quantized_attentions),
        convolutions=len(document.quantized_convolutions),
    )


def _learn(request: LearnRequest, output: Output) -> int:
    recipe = _recipe_of(request)
    if request.ablate is not None:
        if request.recipe.log_dir is not None:
            raise UsageError("--log-dir has no effect on --ablate, which learns many heads. Leave out one of them.")
        return _ablate(request, request.ablate, recipe, output)
    learned = run_stages(recipe, request.run_folder, log_dir=request.recipe.log_dir)
    train = learned.prepared.source.split.train
    parts = [name for name in ("prompts", "adapter", "class_residual") if getattr(learned.student, name) is not None]
    document = LearnDocument(
        run=str(request.run_folder), learned=tuple(parts), images=len(train), classes=len(train.class_names)
    )
    text = (
        f"{request.run_folder}  learned {' and '.join(parts) or 'nothing (PTQ)'} from "
        f"{number_of(len(train), 'image')} of {number_of(len(train.class_names), 'class')}\n"
        f"next: p4q-edge export {shlex.quote(str(request.run_folder))} -o model.p4q"
    )
    output.write(document=document, text=text)
    return 0


def _ablate(request: LearnRequest, kind: Ablation, recipe: Recipe, output: Output) -> int:
    seeds = request.seeds
    if recipe.zero_shot:
        raise UsageError(
            "--ablate compares what is learned from labelled images, and data.train names none. Name some."
        )
    methods = kind == "methods"
    if recipe.method != "p4q" and not methods:
        raise UsageError(f"method {recipe.method!r} has no levers; expected --ablate methods, got {kind}")
    variants = {
        "methods": lambda: variants_of(recipe),
        "levers": lambda: lever_variants(recipe.learn),
        "quantization": lambda: quantization_variants(recipe.quantization),
    }[kind]()
    with task(LOADING, total=1):
        from p4q_edge.evaluation import ablation as ablate  # needs torch

    target = RunFiles(folder=request.run_folder).baselines if methods else request.run_folder / f"{kind}.json"
    scored: ablate.Scored = "tested" if methods else "cross_validated"
    record, key = target.with_suffix(".record.json"), ablate.ablation_key(recipe, seeds, variants, scored)
    if is_unchanged(record, key, [target]) and not output.force:
        logger.info("ablate: unchanged, %s", target)
        rows = list(msgspec.json.decode(target.read_bytes(), type=tuple[Baseline, ...]))
    else:
        results = ablate.ablate(recipe, seeds, variants, scored, progress=logger.info)
        scheme = recipe.quantization.scheme()
        execution = scheme.execution if recipe.method == "p4q" else "simulated"
        widths = {v.name: "FP32" if v.full_precision else f"{scheme.label} {execution}" for v in variants}
        rows = [baseline(name, shares, n=n, precision=widths[name]) for name, (shares, n) in results.items()]
        atomic_write(target, msgspec.json.format(msgspec.json.encode(rows)), force=True)
        atomic_write(target.with_suffix(".md"), baseline_table(rows).encode(), force=True)
        write_record(record, key, [target])
    output.write(
        document=AblateDocument(rows=tuple(rows), seeds=seeds, path=str(target)),
        text=baseline_table(rows),
    )
    return 0


def _learn_request(args: argparse.Namespace) -> LearnRequest:
    if args.seeds is not None and args.ablate is None:
        raise UsageError(f"--seeds {args.seeds} is for --ablate; one run has one seed: --seed. Leave it out.")
    return LearnRequest(
        recipe=recipe_request(args),
        run_folder=args.output,
        ablate=args.ablate,
        seeds=_parse_seeds(args.seeds or SEEDS),
    )


def _parse_seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--seeds takes whole numbers between commas such as 0,1,2; got {text!r}") from error
    if min(seeds) < 0:
        raise UsageError(f"--seeds takes whole numbers of 0 and more, got {text!r}")
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds names a seed twice: {text!r}")
    return tuple(seeds)


CALIBRATE = Command(
    add_arguments=_add_arguments,
    request=lambda args: CalibrateRequest(recipe=recipe_request(args), run_folder=args.output),
    run=_calibrate,
)
LEARN = Command(
    add_arguments=_add_learn_arguments,
    request=_learn_request,
    run=_learn,
)
