"""`p4q-edge learn` and `p4q-edge calibrate`: run the stages up to there, into a run folder."""

import argparse
from pathlib import Path

from p4q_edge.command.build_recipe import run_stages
from p4q_edge.command.common import add_recipe_arguments, choose_recipe
from p4q_edge.pipeline import RunFiles, open_source, prepare
from p4q_edge.quant.modules import quant_linears
from p4q_edge.runtime.commands import Command, write_result


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="run folder to make or to go on with")


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
    }
    text = (
        f"{args.output}  {document['scheme']} {document['execution']}, {len(scales)} linears quantized, "
        f"{len(prepared.calibrated.kept_float)} kept in float (n = {prepared.calibrated.images} images)"
    )
    write_result(args, document=document, text=text)
    return 0


def _learn(args: argparse.Namespace) -> int:
    recipe = choose_recipe(args)
    learned = run_stages(recipe, args.output, quiet=args.quiet)
    train = learned.prepared.source.split.train
    parts = [name for name in ("prompts", "adapter") if getattr(learned.student, name) is not None]
    document = {"run": str(args.output), "learned": parts, "images": len(train), "classes": len(train.class_names)}
    text = (
        f"{args.output}  learned {' and '.join(parts) or 'nothing (PTQ)'} from {len(train)} images "
        f"of {len(train.class_names)} classes\nnext: p4q-edge export {args.output} -o model.p4q"
    )
    write_result(args, document=document, text=text)
    return 0


CALIBRATE = Command(
    name="calibrate", help="measure activation ranges on images", add_arguments=_add_arguments, run=_calibrate
)
LEARN = Command(
    name="learn",
    help="learn prompts and a low-bit adapter from a few images a class",
    add_arguments=_add_arguments,
    run=_learn,
)
