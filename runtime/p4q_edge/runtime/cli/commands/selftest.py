"""`p4q-edge selftest`: the golden samples of the bundle through the engine, on this machine, without a data set."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from p4q_edge.runtime.cli.command import Command, write_result
from p4q_edge.runtime.errors import QualityGateError

logger = logging.getLogger(__name__)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine (.onnx or .plan) with its card beside it")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of a CPU engine (default: one a core)")


def _run(args: argparse.Namespace) -> int:
    import msgspec

    from p4q_edge.runtime.verification import selftest, wrong_values

    result = selftest(args.engine, device=args.device, threads=args.threads)
    problem = result.problem()
    drift = "built on another machine" if result.drift is None else f"moved by {result.drift:.1e} since built"
    text = (
        f"{'FAILED' if problem else 'passed'}: {args.engine}  cosine to the reference {result.cosine_min:.6f}, "
        f"top-1 agreement {result.top1_agreement:.3f}, {drift} (n = {result.samples})"
    )
    document = {"engine": str(args.engine), "passed": problem is None, **msgspec.structs.asdict(result)}
    write_result(args, document=document, text=text)
    if problem is None:
        return 0
    # Not raised: the document with the figures was written, and an error would add a second one.
    logger.error("%s", wrong_values(str(args.engine), problem))
    return QualityGateError.exit_code


COMMAND = Command(
    name="selftest",
    help="run the golden samples through an engine and compare",
    add_arguments=_add_arguments,
    run=_run,
)
