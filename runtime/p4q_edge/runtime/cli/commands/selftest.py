"""`p4q-edge selftest`: the golden samples of the bundle through the engine, on this machine, without a data set."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

from p4q_edge.runtime.choices import CpuBackend
from p4q_edge.runtime.cli.command import Command, Output, add_backend, add_placement
from p4q_edge.runtime.errors import QualityGateError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SelftestRequest:
    """What `selftest` was asked for."""

    engine: Path
    device: str = "auto"
    threads: int | None = None
    backend: CpuBackend | None = None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine (.onnx or .plan) with its card beside it")
    add_placement(parser)
    add_backend(parser)


def _request(args: argparse.Namespace) -> SelftestRequest:
    return SelftestRequest(engine=args.engine, device=args.device, threads=args.threads, backend=args.backend)


def _run(request: SelftestRequest, output: Output) -> int:
    import msgspec

    from p4q_edge.runtime.cli.documents import SelftestDocument
    from p4q_edge.runtime.verification import selftest, wrong_values

    result = selftest(request.engine, device=request.device, threads=request.threads, backend=request.backend)
    problem = result.problem()
    drift = "built on another machine" if result.drift is None else f"moved by {result.drift:.1e} since built"
    text = (
        f"{'FAILED' if problem else 'passed'}: {request.engine}  cosine to the reference {result.cosine_min:.6f}, "
        f"top-1 agreement {result.top1_agreement:.3f}, {drift} (n = {result.samples})"
    )
    document = SelftestDocument(engine=str(request.engine), passed=problem is None, **msgspec.structs.asdict(result))
    output.write(document=document, text=text)
    if problem is None:
        return 0
    # Not raised: the document with the figures was written, and an error would add a second one.
    logger.error("%s", wrong_values(str(request.engine), problem, doubt=result.doubt))
    return QualityGateError.exit_code


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
