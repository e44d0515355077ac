"""`p4q-edge learn` and `p4q-edge calibrate`: run the stages up to there, into a run folder."""

import argparse
import logging
from pathlib import Path

import msgspec

from p4q_edge.calibration import CalibratedEncoder
from p4q_edge.cli.build_recipe import run_stages
from p4q_edge.cli.common import add_recipe_arguments, choose_recipe
from p4q_edge.evaluation import BASELINES
from p4q_edge.evaluation import ablation as ablate
from p4q_edge.quant import quant_linears
from p4q_edge.recipe import Recipe
from p4q_edge.runtime.artifacts import quantized_parts
from p4q_edge.runtime.cli import Command, write_result
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.evaluation.report import Baseline, baseline, baseline_table
from p4q_edge.runtime.storage import atomic_write, is_unchanged, write_record
from p4q_edge.stages import RunFiles, open_source, prepare

logger = logging.getLogger(__name__)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="run folder to make or to go on with")


def _add_learn_arguments(parser: argparse.ArgumentParser) -> None:
    _add_arguments(parser)
    parser.add_argument(
        "--ablate",
        choices=("methods", "levers", "quantization"),
        help="in place of one run, compare methods on the test images, or the levers of [learn] or [quantization] by "
        f"cross-validation on the labelled ones; writes {BASELINES}, levers.json or quantization.json and a .md beside "
        "it",
    )
    parser.add_argument("--seeds", default="0,1,2", help="of --ablate (default: %(default)s)")


def _calibrate(args: argparse.Namespace) -> int:
    recipe = choose_recipe(args)
    prepared = prepare(open_source(recipe), RunFiles(folder=args.output))
    linears = quant_linears(prepared.calibrated.encoder)
    scales = {name: float(linear.input_scale) for name, linear in linears.items()}
    document = {
        "run": str(args.output),
        "scheme": recipe.quantization.scheme().label,
        "execution": recipe.quantization.scheme().execution,
        "images": prepared.calibrated.images,
        "input_scales": scales,
        "kept_float": list(prepared.calibrated.kept_float),
        "folded": list(prepared.calibrated.folded),
        "quantized_attentions": list(prepared.calibrated.products),
        "quantized_convolutions": list(prepared.calibrated.convolutions),
    }
    text = (
        f"{args.output}  {document['scheme']} {document['execution']}, "
        f"{_parts(prepared.calibrated, len(scales))} quantized, "
        f"{len(prepared.calibrated.kept_float)} kept in float (n = {prepared.calibrated.images} images)"
    )
    write_result(args, document=document, text=text)
    return 0


def _parts(calibrated: CalibratedEncoder, linears: int) -> str:
    return quantized_parts(linears, len(calibrated.products), convolutions=len(calibrated.convolutions))


def _learn(args: argparse.Namespace) -> int:
    recipe = choose_recipe(args)
    if args.ablate:
        return _ablate(args, recipe)
    learned = run_stages(recipe, args.output, quiet=args.quiet)
    train = learned.prepared.source.split.train
    parts = [name for name in ("prompts", "adapter", "class_residual") if getattr(learned.student, name) is not None]
    document = {"run": str(args.output), "learned": parts, "images": len(train), "classes": len(train.class_names)}
    text = (
        f"{args.output}  learned {' and '.join(parts) or 'nothing (PTQ)'} from {len(train)} images "
        f"of {len(train.class_names)} classes\nnext: p4q-edge export {args.output} -o model.p4q"
    )
    write_result(args, document=document, text=text)
    return 0


def _ablate(args: argparse.Namespace, recipe: Recipe) -> int:
    seeds = _parse_seeds(args.seeds)
    methods = args.ablate == "methods"
    if recipe.method != "p4q" and not methods:
        raise UsageError(f"method {recipe.method!r} has no levers; expected --ablate methods, got {args.ablate}")
    variants = {
        "methods": ablate.variants_of(recipe),
        "levers": ablate.lever_variants(),
        "quantization": ablate.quantization_variants(),
    }[args.ablate]
    target = args.output / (BASELINES if methods else f"{args.ablate}.json")
    scored: ablate.Scored = "tested" if methods else "cross_validated"
    record, key = target.with_suffix(".record.json"), ablate.ablation_key(recipe, seeds, variants, scored)
    if is_unchanged(record, key, [target]) and not args.force:
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
    write_result(
        args,
        document={"rows": msgspec.to_builtins(rows), "seeds": seeds, "path": str(target)},
        text=baseline_table(rows),
    )
    return 0


def _parse_seeds(text: str) -> list[int]:
    try:
        seeds = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--seeds takes whole numbers between commas such as 0,1,2; got {text!r}") from error
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds names a seed twice: {text!r}")
    return seeds


CALIBRATE = Command(
    name="calibrate", help="measure activation ranges on images", add_arguments=_add_arguments, run=_calibrate
)
LEARN = Command(
    name="learn",
    help="learn prompts and a low-bit adapter from a few images a class",
    add_arguments=_add_learn_arguments,
    run=_learn,
)
