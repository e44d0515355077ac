"""`p4q-edge validate`: compare the stages of a model on real images; with the toolkit from PyTorch on."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.choices import MAX_BATCH
from p4q_edge.runtime.cli.arguments import name_or_path
from p4q_edge.runtime.cli.command import Command, Output, add_backend, has_toolkit, toolkit_function
from p4q_edge.runtime.cli.from_hub import add_bundle, local_bundle
from p4q_edge.runtime.errors import EnvironmentNotAbleError, QualityGateError, UsageError
from p4q_edge.runtime.storage import quoted

if TYPE_CHECKING:
    from p4q_edge.runtime.evaluation import ReferenceOf, ValidateRequest
    from p4q_edge.runtime.evaluation.report import Report

REFERENCE_FUNCTION, PAGE_FUNCTION = "torch_reference", "html_renderer"
NEEDS_TOOLKIT = (
    "--debug, recipes and run folders need the toolkit (PyTorch), which is not installed here. Leave them out: "
    "the bundle's results of PyTorch are the reference. Or run, in a checkout: pip install ./runtime ."
)

logger = logging.getLogger(__name__)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine (.onnx or .plan) with its card beside it")
    parser.add_argument(
        "--data",
        type=name_or_path,
        help="labelled images: a folder of class folders; default: the recipe's test images",
    )
    about = (
        "bundle (.p4q), recipe (.toml) or run folder; of a bundle and a run folder that lie together the other is "
        "found too (default: those beside the engine)"
    )
    add_bundle(parser, "--reference", about=about)
    parser.add_argument(
        "--max-top1-drop",
        type=float,
        metavar="POINTS",
        help="fail (exit 5) if the engine loses more percentage points of top-1 against the full-precision model",
    )
    parser.add_argument(
        "--report",
        type=Path,
        action="append",
        default=[],
        help="also write .html, .md or .json (may be repeated); ENGINE-stem.report.json is always written",
    )
    _add_trials(parser)
    parser.add_argument("--bench", type=Path, help="show this document of `p4q-edge bench ENGINE -o FILE` as well")
    parser.add_argument("--limit", type=int, default=0, help="use at most N images, sampled with the seed")
    parser.add_argument("--batch", type=int, default=64, help="images per batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and of --limit (default: %(default)s)")
    parser.add_argument(
        "--device",
        default="auto",
        help="of the engine and of PyTorch beside it: auto, cpu, cuda or cuda:N (default: %(default)s; PyTorch then "
        "follows the recipe)",
    )
    parser.add_argument("--threads", type=int, help="threads of a CPU engine (default: one a core)")
    add_backend(parser)
    parser.add_argument(
        "--debug", action="store_true", help="name the first layer where engine and reference diverge (toolkit)"
    )
    parser.add_argument(
        "--save-repro",
        type=Path,
        metavar="DIR",
        help="with --debug, write that layer as a model of its own, with its inputs, both outputs and the polygraphy "
        "command that compares them",
    )


def _add_trials(parser: argparse.ArgumentParser) -> None:
    """Add what a validation can look at beyond accuracy."""
    parser.add_argument(
        "--ood",
        type=Path,
        metavar="DIR",
        help="images that show none of the classes: how well the score tells them apart, and the share that the "
        "engine's threshold rejects",
    )
    parser.add_argument(
        "--corruptions",
        action="store_true",
        help="also top-1 with noise, blur, JPEG and darkness at 3 strengths, of at most 500 of the images",
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        metavar="TABLE",
        help="images and captions (.csv, .tsv: path,caption): recall at 1, 5 and 10 both ways (toolkit)",
    )


def _request(args: argparse.Namespace) -> ValidateRequest:
    """Return what the arguments ask for.

    Raises:
        UsageError: a number that makes no sense.
    """
    from p4q_edge.runtime.evaluation import ValidateRequest

    if args.limit < 0 or not 1 <= args.batch <= MAX_BATCH:
        raise UsageError(
            f"--limit must be at least 0 and --batch at least 1 and at most {MAX_BATCH}; got {args.limit} and "
            f"{args.batch}"
        )
    if args.seed < 0:
        raise UsageError(f"--seed must not be negative, got {args.seed}")
    if args.save_repro is not None and not args.debug:
        raise UsageError("--save-repro writes the layer that --debug finds. Add --debug.")
    return ValidateRequest(
        engine=args.engine,
        reference=args.reference,
        data=args.data,
        limit=args.limit,
        batch_size=args.batch,
        seed=args.seed,
        max_top1_drop=args.max_top1_drop,
        device=args.device,
        threads=args.threads,
        backend=args.backend,
        bench=args.bench,
        ood=args.ood,
        corruptions=args.corruptions,
        pairs=args.pairs,
        debug=args.debug,
        save_repro=args.save_repro,
        reports=tuple(args.report),
    )


def _run(request: ValidateRequest, output: Output) -> int:
    from p4q_edge.runtime.evaluation import RENDERERS, check_report_paths, report_paths, run_validation, write_reports

    if request.reference is not None:
        request = replace(request, reference=local_bundle(request.reference))
    renderers, reference = dict(RENDERERS), _torch_reference(request)
    paths = report_paths(request)
    if reference is not None and any(path.suffix == ".html" for path in paths):
        renderers[".html"] = toolkit_function(PAGE_FUNCTION, missing=NEEDS_TOOLKIT)()
    check_report_paths(paths, renderers, force=output.force)
    outcome = run_validation(request, torch_reference=reference)
    write_reports(outcome, paths, renderers)
    return _finish(request, output, outcome.report, paths)


def _torch_reference(request: ValidateRequest) -> ReferenceOf | None:
    """Return the toolkit's half; None where there is no toolkit and none is needed."""
    if has_toolkit():
        return toolkit_function(REFERENCE_FUNCTION, missing=NEEDS_TOOLKIT)
    if request.pairs is not None:
        raise EnvironmentNotAbleError(
            "--pairs reads captions with the text tower of the toolkit (PyTorch), which is not installed here. "
            "Leave it out, or run, in a checkout: pip install ./runtime ."
        )
    if request.debug or (request.reference is not None and request.reference.suffix != ".p4q"):
        raise EnvironmentNotAbleError(NEEDS_TOOLKIT)
    logger.info("without PyTorch the reference is what it computed when the bundle was exported")
    return None


def _finish(request: ValidateRequest, output: Output, report: Report, paths: tuple[Path, ...]) -> int:
    """Write the result to stdout, name the gates that fail on stderr, and return the exit code."""
    import msgspec

    from p4q_edge.runtime.cli.documents import ValidateDocument
    from p4q_edge.runtime.evaluation.report import summary

    document = ValidateDocument(**msgspec.structs.asdict(report), reports=tuple(map(str, paths)))
    output.write(document=document, text=summary(report, paths, details=output.verbose))
    if report.passed:
        return 0
    parts = [part.gates for part in (report.chain, report.golden) if part is not None]
    failed = dict.fromkeys(gate.name for gates in (report.files, *parts) for gate in gates if not gate.passed)
    # Not raised: the document was written, and an error would add a second one.
    if report.debug is not None and report.debug.same_arithmetic and report.debug.first is not None:
        failed[f"{report.debug.first} diverges from {report.debug.reference}"] = None
    hint = (
        "Build it again from its bundle"
        if request.debug
        else f"Find the layer: p4q-edge validate {quoted(request.engine)} --debug"
    )
    logger.error("%s fails: %s. %s", request.engine, "; ".join(failed), hint)
    return QualityGateError.exit_code


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
