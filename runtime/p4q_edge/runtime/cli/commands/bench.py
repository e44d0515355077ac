"""`p4q-edge bench`: how fast an engine is here, and whether that figure counts."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.choices import MAX_BATCH, CpuBackend
from p4q_edge.runtime.cli.arguments import name_or_path
from p4q_edge.runtime.cli.command import Command, Output, add_backend, add_placement, toolkit_function
from p4q_edge.runtime.errors import QualityGateError, UsageError

if TYPE_CHECKING:
    from p4q_edge.runtime.artifacts import Card
    from p4q_edge.runtime.benchmark import BenchOptions, Candidate, Measured
    from p4q_edge.runtime.cli.documents import BenchDocument

TOOLKIT_CANDIDATES = "p4q_edge.bench"
"""Entry-point group of the toolkit: `fp32` and `torch`, functions from an engine's path to a `Candidate`."""

KIND = "p4q-edge bench"
_MAX_SECONDS = 86_400.0
_MAX_ROUNDS = 1_000_000
_SHOWN = 200

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What `bench` was asked for.

    Attributes:
        against: what is measured in turns with the engine: `fp32`, `fp16`, `torch` or the path of another engine.
        report: file that the document is written to as well.
    """

    engine: Path
    options: BenchOptions
    against: tuple[str, ...] = ()
    device: str = "auto"
    threads: int | None = None
    backend: CpuBackend | None = None
    strict: bool = False
    report: Path | None = None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine (.onnx or .plan) with its card beside it")
    parser.add_argument("--batch", default="1", help="batch sizes, for example 1,8,32 (default: %(default)s)")
    add_placement(parser)
    add_backend(parser)
    parser.add_argument(
        "--against",
        type=name_or_path,
        action="append",
        default=[],
        metavar="fp32|fp16|torch|ENGINE",
        help="measure this in turns with the engine: its full-precision graph or PyTorch (both: toolkit), the FP16 "
        "plan of its bundle (TensorRT, built for this), or another engine",
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="for each batch size (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=5, help="unmeasured rounds (default: %(default)s)")
    parser.add_argument(
        "--energy-seconds", type=float, default=2.0, help="alone, where a power sensor exists (default: %(default)s)"
    )
    parser.add_argument("--strict", action="store_true", help="exit 5 if a measurement is invalid")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON document to this file")


def _request(args: argparse.Namespace) -> BenchRequest:
    return BenchRequest(
        engine=args.engine,
        options=_options(args),
        against=tuple(args.against),
        device=args.device,
        threads=args.threads,
        backend=args.backend,
        strict=args.strict,
        report=args.output,
    )


def _run(request: BenchRequest, output: Output) -> int:
    from p4q_edge.runtime.artifacts import on_backend, read_card
    from p4q_edge.runtime.benchmark import bench, load_candidate, measure_memory, reset_peak, this_setting
    from p4q_edge.runtime.storage import atomic_write, encode_json, require_writable

    options, setting = request.options, this_setting()
    if request.report is not None:
        require_writable(request.report, force=output.force)
    card = on_backend(read_card(request.engine), request.backend)
    reset_peak()
    candidates = [
        load_candidate(
            request.engine,
            name=_name(card),
            device=request.device,
            threads=request.threads,
            backend=request.backend,
        )
    ]
    try:
        # Before the others are loaded: their libraries would count as this engine's memory.
        memory = measure_memory(candidates[0], card, batch=max(options.batches), setting=setting)
        for against in request.against:
            candidates.append(_against(against, request, card, taken={candidate.name for candidate in candidates}))
        measured = bench(candidates, card, options, setting, memory=memory)
    finally:
        for candidate in candidates:
            candidate.close()
    document = _document(request, card, measured)
    if request.report is not None:
        atomic_write(request.report, encode_json(document), force=output.force)
    output.write(document=document, text=_text(measured))
    if measured.predictions is not None or (request.strict and not measured.valid):
        # Not raised: the document was written, and an error would add a second one.
        reasons = dict.fromkeys(reason for row in measured.rows for reason in row.invalid)
        logger.error("%s: %s. Measure again on a quiet machine, or build again.", request.engine, "; ".join(reasons))
        return QualityGateError.exit_code
    return 0


def _options(args: argparse.Namespace) -> BenchOptions:
    from p4q_edge.runtime.benchmark import BenchOptions
    from p4q_edge.runtime.statistics import Rounds

    try:
        batches = tuple(int(word) for word in args.batch.split(","))
    except ValueError:
        batches = ()
    if not batches or min(batches) < 1 or max(batches) > MAX_BATCH:
        raise UsageError(
            f"--batch {args.batch[:_SHOWN]}: expected positive numbers with commas between them, such as 1,8,32, each "
            f"at most {MAX_BATCH}"
        )
    came = f"{args.seconds:g}, {args.warm_up} and {args.energy_seconds:g}"
    if args.seconds < 0 or args.warm_up < 0 or args.energy_seconds < 0:
        raise UsageError(f"--seconds, --warm-up and --energy-seconds must not be negative, got {came}")
    if max(args.seconds, args.energy_seconds) > _MAX_SECONDS or args.warm_up > _MAX_ROUNDS:
        raise UsageError(
            f"--seconds and --energy-seconds must be at most {_MAX_SECONDS:g}, a day, and --warm-up at most "
            f"{_MAX_ROUNDS}; got {came}"
        )
    return BenchOptions(
        batches=batches,
        rounds=Rounds(warmup=args.warm_up, seconds=args.seconds),
        energy_seconds=args.energy_seconds,
    )


def _name(card: Card) -> str:
    return card.precision.label


def _against(against: str, request: BenchRequest, card: Card, *, taken: set[str]) -> Candidate:
    from p4q_edge.runtime.benchmark import load_candidate

    if Path(against).suffix in (".onnx", ".plan", ".engine"):
        if against in taken:
            raise UsageError(f"--against {against} was given twice")
        return load_candidate(Path(against), name=against, device=request.device, threads=request.threads)
    if against == "fp16":
        return _fp16(request, card)
    if against not in ("fp32", "torch"):
        raise UsageError(
            f"--against {against}: expected fp32, fp16, torch, or an engine ending in .onnx, .plan or .engine"
        )
    missing = (
        f"--against {against} needs the toolkit, which is not installed here. Run, in a checkout: "
        "pip install ./runtime . Or name an engine to compare with"
    )
    make: Callable[..., Candidate] = toolkit_function(against, group=TOOLKIT_CANDIDATES, missing=missing)
    return make(request.engine, threads=request.threads)


def _fp16(request: BenchRequest, card: Card) -> Candidate:
    """Build the FP16 plan of the engine's bundle as the engine itself was built, and load it; its file is not kept."""
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from p4q_edge.runtime.artifacts import TensorRTBuild
    from p4q_edge.runtime.benchmark import load_candidate
    from p4q_edge.runtime.builders import BuildOptions, build_engine
    from p4q_edge.runtime.evaluation import find_bundle

    if not isinstance(card.build, TensorRTBuild):
        raise UsageError(
            f"--against fp16: expected a TensorRT engine, got {request.engine}; ONNX Runtime computes in FP32 on a "
            "CPU. Use --against fp32"
        )
    bundle = find_bundle(request.engine, card)
    if bundle is None:
        raise UsageError(
            f"--against fp16 builds from the bundle, and there is no {request.engine.with_suffix('.p4q')}; "
            "copy it beside the engine"
        )
    options = BuildOptions(tensorrt=replace(card.build.options, precision="fp16"))
    logger.info("building the FP16 plan of %s to compare with", bundle.path)
    with TemporaryDirectory() as folder:
        plan = Path(folder) / "fp16.plan"
        build_engine(bundle.path, plan, options=options)
        return load_candidate(plan, name="fp16", device=request.device)


def _document(request: BenchRequest, card: Card, measured: Measured) -> BenchDocument:
    import msgspec

    from p4q_edge.runtime.cli.documents import BenchDocument
    from p4q_edge.runtime.machine import provenance

    return BenchDocument(
        **msgspec.structs.asdict(measured),
        kind=KIND,
        engine=str(request.engine),
        engine_sha256=card.engine_sha256,
        engine_size_bytes=card.engine_size_bytes,
        backend=card.backend,
        precision=card.precision,
        threads=request.threads,
        valid=measured.valid,
        versions=provenance.versions(),
        machine=provenance.this_machine(),
        git_commit=provenance.git_commit(),
        created=provenance.now(),
    )


def _text(measured: Measured) -> str:
    from p4q_edge.runtime.evaluation.report import columns
    from p4q_edge.runtime.evaluation.report import formatting as words

    rows = [
        (
            row.name,
            row.library,
            row.scope,
            str(row.batch),
            str(row.latency.n),
            *(words.milliseconds(v) for v in (row.latency.p50_ms, row.latency.p90_ms, row.latency.p99_ms)),
            f"{1000 * row.batch / row.latency.mean_ms:.1f}",
            words.ratio(row.advantage) if row.advantage else "-",
        )
        for row in measured.rows
    ]
    header = ("engine", "library", "scope", "batch", "runs", "p50", "p90", "p99", "images/s", "first is faster by")
    lines = columns(header, rows)
    lines += [f"{name}: loaded in {words.milliseconds(ms)}" for name, ms in measured.load_ms.items() if ms is not None]
    if measured.memory.peak_host_bytes:
        lines.append(f"peak memory with the engine alone: {words.megabytes(measured.memory.peak_host_bytes)}")
    if measured.memory.device_bytes:
        lines.append(f"GPU memory of this process: {words.megabytes(measured.memory.device_bytes)}")
    lines += [
        f"{row.name}, batch {row.batch}: {1000 * row.joules_per_image:.2f} mJ an image by {row.sensor} "
        f"({row.mean_watts:.2f} W, n = {row.images}){', INVALID' if row.invalid else ''}"
        for row in measured.energy
    ]
    unobserved = dict.fromkeys(name for item in measured.watches for name in item.watch.unobserved)
    lines += [f"not observable on this machine: {', '.join(unobserved)}"] if unobserved else []
    reasons = dict.fromkeys(reason for row in measured.rows for reason in row.invalid)
    return "\n".join([*lines, *(f"INVALID: {reason}" for reason in reasons)])


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
