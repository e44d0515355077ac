"""From an ONNX model to the better of two TensorRT plans, in child processes, without torch."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from p4q_edge.runtime.artifacts import Bundle, PlanMachine, TensorRTOptions, read_golden
from p4q_edge.runtime.builders.dry_run import BatchProfile, TensorRTDryRun
from p4q_edge.runtime.builders.tensorrt.contest import Contest, Contestants, hold_contest
from p4q_edge.runtime.builders.tensorrt.narrow_weights import flavour_of
from p4q_edge.runtime.builders.tensorrt.options import (
    TIMING_CACHES,
    check_fp8,
    check_hardware_compatibility,
    timing_cache_path,
    workspace_bytes,
)
from p4q_edge.runtime.builders.tensorrt.worker_process import ShowProgress, plan_request, run_worker
from p4q_edge.runtime.choices import PlanFlavour, QuantizedFlavour
from p4q_edge.runtime.engines.cuda import open_cuda
from p4q_edge.runtime.engines.tensorrt import (
    INT4_READ,
    STRONG_TYPING_COMPLETE,
    import_tensorrt,
    machine_facts,
    version_tuple,
)
from p4q_edge.runtime.errors import EnvironmentNotAbleError
from p4q_edge.runtime.machine import advice
from p4q_edge.runtime.storage import remove_leftovers, require_writable, sha256_file, temporary_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanResult:
    """A built plan and what its card records.

    Attributes:
        plan: the engine, under a temporary name in its folder, until it takes its place together with its card.
        sha256: its digest.
        size_bytes: its size.
        built_with: versions, GPU, platform and how it was built.
        contest: what was measured, and what was chosen by it.
    """

    plan: Path
    sha256: str
    size_bytes: int
    built_with: PlanMachine
    contest: Contest


def refuse_old_parser(bundle: Bundle) -> None:
    """Refuse INT4 weights and FP8 where the installed TensorRT does not read them.

    Raises:
        EnvironmentNotAbleError: names what reads them, and what to export for this TensorRT.
    """
    flavour = bundle.manifest.precision.plan_flavour
    if flavour == "int8":
        return
    # CUDA is asked only by those that go on; the version is known without.
    import tensorrt

    version = version_tuple(tensorrt.__version__)
    if flavour == "fp8" and version < STRONG_TYPING_COMPLETE:
        raise EnvironmentNotAbleError(
            f"{bundle.path} is quantized to FP8 (E4M3), which needs strong typing, and TensorRT {tensorrt.__version__} "
            f"types not every layer strongly: {'.'.join(map(str, STRONG_TYPING_COMPLETE))} or later does, on GPUs of "
            "compute capability 8.9 and later. JetPack 6 has 10.3, and its Orin 8.7: for these export with the recipe "
            "int8."
        )
    if flavour == "int4" and version < INT4_READ:
        raise EnvironmentNotAbleError(
            f"{bundle.path} has INT4 weights in blocks, in a graph of opset 21, and TensorRT {tensorrt.__version__} "
            "reads older ones: that of JetPack 6 stops at opset 20. TensorRT "
            f"{'.'.join(map(str, INT4_READ))} or later reads it, as JetPack 7.2 has it; for this one export with the "
            "recipe int8, or w4a8, whose 4-bit weights INT8 kernels carry."
        )


def build_plan(
    model: bytes,
    *,
    engine: Path,
    options: TensorRTOptions,
    golden: bytes,
    force: bool = False,
    progress: ShowProgress | None = None,
) -> PlanResult:
    """Build INT8 and FP16 plans (or the one asked for), measure both here, and keep the better for `engine`.

    `model` is the complete ONNX model with FP16 remainder, `golden` the samples (safetensors) that gate the plans.
    Only the plan, under a temporary name beside the engine, and the timing cache stay; nothing is left
    of a build that fails or is interrupted.

    Raises:
        UsageError: the engine exists and `force` is false, or the options do not fit this device.
        EnvironmentNotAbleError: no GPU, no CUDA backend, no TensorRT, or too little memory.
        ArtifactError: TensorRT refuses the model.
        QualityGateError: no plan computes what the reference computes.
    """
    require_writable(engine, force=force)
    samples = read_golden(golden, source="the golden samples of the bundle")
    engine.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(engine.parent)
    # In the engine's folder, so that the kept plan only needs a rename.
    with tempfile.TemporaryDirectory(dir=engine.parent, prefix=f".p4q-build.{os.getpid()}-", suffix=".tmp") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model)
        (folder / "golden.safetensors").write_bytes(golden)
        built = {
            flavour: _build(folder, flavour, engine=engine, options=options, progress=progress)
            for flavour in options.flavours(convolutions=bool(samples.on_cpu), quantized=flavour_of(model))
        }
        doubt = advice.wrong_transformers(next(iter(built.values()))["built_with"]["tensorrt"])
        plans = Contestants(folder=folder, built=built, samples=samples, doubt=doubt)
        contest = hold_contest(plans, options, run_worker)
        kept = contest.choice.kept
        require_writable(engine, force=force)
        plan = temporary_path(engine)
        (folder / f"{kept}.plan").replace(plan)
        for cache in folder.glob(TIMING_CACHES):
            cache.replace(engine.with_name(cache.name))
    return PlanResult(
        plan=plan,
        sha256=sha256_file(plan),
        size_bytes=plan.stat().st_size,
        built_with=msgspec.convert(built[kept]["built_with"], PlanMachine),
        contest=contest,
    )


def _build(
    folder: Path, flavour: PlanFlavour, *, engine: Path, options: TensorRTOptions, progress: ShowProgress | None
) -> dict[str, Any]:
    """Return the worker's result for one plan, which is then in `folder`."""
    request = plan_request(folder, flavour, action="build", options=options, engine=engine)
    return run_worker(request, task=f"{flavour.upper()} plan", progress=progress)


def describe_plan(
    model_bytes: int,
    *,
    engine: Path,
    options: TensorRTOptions,
    convolutions: bool = False,
    quantized: QuantizedFlavour = "int8",
) -> TensorRTDryRun:
    """Return what `build_plan` would do on this device, without building.

    Args:
        model_bytes: size of the ONNX model.
        engine: the plan that would be made.
        options: how it would be built.
        convolutions: whether the model has quantized ones.
        quantized: what its linears are quantized to.

    Raises:
        EnvironmentNotAbleError: no GPU, no CUDA backend or no TensorRT.
        UsageError: the options do not fit this device.
    """
    cuda = open_cuda(options.cuda_backend, device=options.device)
    trt = import_tensorrt(cuda.facts)
    check_hardware_compatibility(options, cuda.facts)
    plans = options.flavours(convolutions=convolutions, quantized=quantized)
    if "fp8" in plans:
        check_fp8(options, cuda.facts)
    with cuda.current():
        free, total = cuda.memory()
    cache = timing_cache_path(engine, tensorrt_version=trt.__version__, facts=cuda.facts)
    return TensorRTDryRun(
        engine=str(engine),
        exists=engine.exists(),
        plans=plans,
        keeps=f"the better by {options.prefer}" if options.precision == "auto" else options.precision,
        accuracy_gate=f"golden cosine of at least {options.accuracy_gate}",
        batches=BatchProfile(min=options.min_batch, opt=options.opt_batch, max=options.max_batch),
        typing=options.typing,
        workspace_bytes=workspace_bytes(options, cuda.facts),
        optimization_level=options.optimization_level,
        timing_cache=str(cache) if options.timing_cache else None,
        timing_cache_exists=options.timing_cache and cache.is_file(),
        model_bytes=model_bytes,
        gpu_memory_free_bytes=free,
        gpu_memory_total_bytes=total,
        disk_free_bytes=shutil.disk_usage(engine.parent if engine.parent.exists() else Path()).free,
        cuda_backend=cuda.name,
        device=machine_facts(trt, cuda.facts),
    )
