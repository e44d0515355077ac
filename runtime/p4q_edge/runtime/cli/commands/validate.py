"""`p4q-edge validate`: compare the stages of a model on real images; with the toolkit from PyTorch on."""

from __future__ import annotations

import argparse
import logging
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.cli.command import Command, write_result
from p4q_edge.runtime.errors import EnvironmentNotAbleError, QualityGateError

if TYPE_CHECKING:
    from p4q_edge.runtime.evaluation import Request
    from p4q_edge.runtime.evaluation.report import Report

TOOLKIT_ENTRY_POINT = "validate-reference"

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `validate`; the toolkit's half has the same."""
    parser.add_argument("engine", type=Path, help="engine (.onnx or .plan) with its card beside it")
    parser.add_argument("--data", help="labelled images: a folder of class folders; default: the recipe's test images")
    parser.add_argument(
        "--reference", type=Path, help="bundle (.p4q), recipe (.toml) or run folder; default: those beside the engine"
    )
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
    parser.add_argument("--bench", type=Path, help="show this document of `p4q-edge bench ENGINE -o FILE` as well")
    parser.add_argument("--limit", type=int, default=0, help="at most so many images, drawn with the seed")
    parser.add_argument("--batch", type=int, default=64, help="images a batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and of --limit (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of a CPU engine (default: one a core)")
    parser.add_argument(
        "--debug", action="store_true", help="name the first layer where engine and reference part (toolkit)"
    )


def request_of(args: argparse.Namespace) -> Request:
    """Return what the arguments ask for.

    Raises:
        UsageError: a number that makes no sense.
    """
    from p4q_edge.runtime.errors import UsageError
    from p4q_edge.runtime.evaluation import Request

    if args.limit < 0 or args.batch < 1:
        raise UsageError(f"--limit must be at least 0 and --batch at least 1; got {args.limit} and {args.batch}")
    return Request(
        engine=args.engine,
        reference=args.reference,
        data=args.data,
        limit=args.limit,
        batch_size=args.batch,
        seed=args.seed,
        max_top1_drop=args.max_top1_drop,
        device=args.device,
        threads=args.threads,
        bench=args.bench,
        command=command_line(args),
    )


def command_line(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the arguments that decide the figures, as they would be typed again."""
    words = ["validate", str(args.engine)]
    for name in ("data", "reference", "max_top1_drop", "threads"):
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    defaults = {"limit": 0, "batch": 64, "seed": 0, "device": "auto"}
    for name, default in defaults.items():
        if getattr(args, name) != default:
            words += [f"--{name}", str(getattr(args, name))]
    return (*words, "--debug") if args.debug else tuple(words)


def finish(args: argparse.Namespace, report: Report, paths: tuple[Path, ...]) -> int:
    """Write the result to stdout, name the gates that fail on stderr, and return the exit code."""
    import msgspec

    from p4q_edge.runtime.evaluation.report import summary

    document = {**msgspec.to_builtins(report), "reports": [str(path) for path in paths]}
    write_result(args, document=document, text=summary(report, paths))
    if report.passed:
        return 0
    parts = [part.gates for part in (report.chain, report.golden) if part is not None]
    failed = dict.fromkeys(gate.name for gates in (report.files, *parts) for gate in gates if not gate.passed)
    # Not raised: the document was written, and an error would add a second one.
    if report.debug is not None and report.debug.same_arithmetic and report.debug.first is not None:
        failed[f"{report.debug.first} parts from {report.debug.reference}"] = None
    hint = (
        "Build it again from its bundle" if args.debug else f"Find the layer: p4q-edge validate {args.engine} --debug"
    )
    logger.error("%s fails: %s. %s", args.engine, "; ".join(failed), hint)
    return QualityGateError.exit_code


def _run(args: argparse.Namespace) -> int:
    found = list(entry_points(group="p4q_edge.commands", name=TOOLKIT_ENTRY_POINT))
    if found:
        command = found[0].load()
        if not isinstance(command, Command):
            raise TypeError(f"the entry point {TOOLKIT_ENTRY_POINT} is a {type(command).__name__}, not a Command")
        return command.run(args)
    return _run_on_device(args)


def _run_on_device(args: argparse.Namespace) -> int:
    from p4q_edge.runtime.evaluation import RENDERERS, check_report_paths, default_report, validate, write_reports

    if args.debug or (args.reference is not None and args.reference.suffix != ".p4q"):
        raise EnvironmentNotAbleError(
            "--debug, recipes and run folders need the toolkit (PyTorch), which is not installed here. Leave them out: "
            "the bundle's results of PyTorch are the reference. Or run, in a checkout: pip install ./runtime ."
        )
    paths = tuple(dict.fromkeys((default_report(args.engine), *args.report)))
    check_report_paths(paths, RENDERERS, force=args.force)
    logger.info("without PyTorch the reference is what it computed when the bundle was exported")
    outcome = validate(request_of(args))
    write_reports(outcome, paths, RENDERERS)
    return finish(args, outcome.report, paths)


COMMAND = Command(
    name="validate",
    help="compare PyTorch, ONNX and engine on real images",
    add_arguments=add_arguments,
    run=_run,
)
