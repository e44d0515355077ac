"""`p4q-edge export`: the bundle of a run folder."""

import argparse
from pathlib import Path

from p4q_edge.cli.build_recipe import run_stages
from p4q_edge.recipe import run_recipe_of
from p4q_edge.runtime.artifacts import SUFFIX
from p4q_edge.runtime.cli import Command, write_result
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import refuse_existing
from p4q_edge.stages import export_bundle


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, help="run folder of `p4q-edge learn`")
    parser.add_argument("-o", "--output", type=Path, required=True, help=f"bundle to write, *{SUFFIX}")


def _run(args: argparse.Namespace) -> int:
    if args.output.suffix != SUFFIX:
        raise UsageError(f"--output {args.output} must end in {SUFFIX}")
    refuse_existing(args.output, force=args.force)
    learned = run_stages(run_recipe_of(args.run_folder), args.run_folder, quiet=args.quiet)
    bundle = export_bundle(learned, args.output, force=args.force)
    manifest = bundle.manifest
    size = args.output.stat().st_size
    document = {
        "bundle": str(args.output),
        "sha256": bundle.sha256(),
        "size_bytes": size,
        "parity": dict(manifest.parity),
        "execution": manifest.precision.execution,
    }
    text = (
        f"{args.output}  {manifest.precision.label}, {manifest.precision.parts}, {size / 1e6:.2f} MB, "
        f"least cosine to fake quant {min(v for k, v in manifest.parity.items() if '.cosine_' in k):.6f}\n"
        f"next: p4q-edge build {args.output} --engine model.onnx   (CPU; model.plan on a TensorRT device)"
    )
    write_result(args, document=document, text=text)
    return 0


COMMAND = Command(name="export", help="write the bundle model.p4q", add_arguments=_add_arguments, run=_run)
