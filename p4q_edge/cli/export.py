"""`p4q-edge export`: the bundle of a run folder."""

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path

from p4q_edge.cli.documents import ExportDocument
from p4q_edge.cli.from_recipe import run_stages
from p4q_edge.data import read_split_again
from p4q_edge.recipe import on_device, run_recipe_of
from p4q_edge.runtime.artifacts import SUFFIX
from p4q_edge.runtime.cli import Command, Output
from p4q_edge.runtime.cli.commands import add_torch_device
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import require_writable


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What `export` was asked for: a run folder, the bundle to write, and the device of PyTorch or the run's own."""

    run_folder: Path
    bundle: Path
    device: str | None = None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, help="run folder of `p4q-edge learn`")
    parser.add_argument("-o", "--output", type=Path, required=True, help=f"bundle to write, *{SUFFIX}")
    add_torch_device(parser)


def _request(args: argparse.Namespace) -> ExportRequest:
    return ExportRequest(run_folder=args.run_folder, bundle=args.output, device=args.torch_device)


def _run(request: ExportRequest, output: Output) -> int:
    if request.bundle.suffix != SUFFIX:
        raise UsageError(f"--output {request.bundle} must end in {SUFFIX}")
    require_writable(request.bundle, force=output.force)
    recipe = run_recipe_of(request.run_folder)
    recipe = recipe if request.device is None else on_device(recipe, request.device)
    split = read_split_again(recipe.data, seed=recipe.seed)
    learned = run_stages(recipe, request.run_folder, split=split)
    from p4q_edge.stages import export_bundle  # needs torch, which is loaded by now

    bundle = export_bundle(learned, request.bundle, force=output.force)
    manifest = bundle.manifest
    size = request.bundle.stat().st_size
    document = ExportDocument(
        bundle=str(request.bundle),
        sha256=bundle.sha256(),
        size_bytes=size,
        parity=manifest.parity.flat(),
        execution=manifest.precision.execution,
    )
    text = (
        f"{request.bundle}  {manifest.precision.label}, {manifest.precision.parts}, {size / 1e6:.2f} MB, "
        f"least cosine to fake quant {manifest.parity.least_cosine:.6f}\n"
        f"next: p4q-edge build {shlex.quote(str(request.bundle))} --engine model.onnx   (CPU; model.plan on a TensorRT "
        "device)"
    )
    output.write(document=document, text=text)
    return 0


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
