"""From an ONNX model to an engine of TensorRT for RTX, in child processes, on any machine.

Experimental: these engines were compiled, and their kernels read, on machines without a GPU; none was run on an RTX
GPU. NVIDIA's support matrix names INT8 as weight-only there (INT8 WoQ GEMM), while the compiler does make products of
INT8 with INT8.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from p4q_edge.runtime.artifacts import PlanChoice, PlanInspection, RtxMachine, RtxOptions, read_golden
from p4q_edge.runtime.builders.dry_run import BatchProfile, RtxDryRun
from p4q_edge.runtime.builders.tensorrt.contest import Contest, Contestants, hold_contest
from p4q_edge.runtime.builders.tensorrt.narrow_weights import flavour_of
from p4q_edge.runtime.builders.tensorrt.worker_process import ShowProgress, plan_request, run_worker
from p4q_edge.runtime.choices import PlanFlavour, QuantizedFlavour
from p4q_edge.runtime.engines.tensorrt import RTX, import_library, multiplies_fp8
from p4q_edge.runtime.errors import EnvironmentNotAbleError, UsageError
from p4q_edge.runtime.storage import remove_leftovers, require_writable, temporary_path


@dataclass(frozen=True, kw_only=True, eq=False)
class RtxResult:
    """A compiled engine, under a temporary name in its folder, and what its card records.

    Attributes:
        contest: what was measured, where a GPU is here that it is for; None where it was only compiled.
    """

    plan: Path
    built_with: RtxMachine
    inspection: PlanInspection
    contest: Contest | None


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is built: the GPU that it is measured on, or why it is not, the flavours, and the GPUs that it is for."""

    gpu: str
    missing: str
    flavours: tuple[PlanFlavour, ...]
    capabilities: tuple[str, ...]


def build_rtx(
    model: bytes,
    *,
    engine: Path,
    options: RtxOptions,
    golden: bytes,
    force: bool = False,
    progress: ShowProgress | None = None,
) -> RtxResult:
    """Compile ahead of time: INT8, INT4 or FP8 beside FP16, measured on a GPU that is here, or alone and then not run.

    What is not run is proved by the golden samples where it is first loaded.

    Args:
        model: the complete ONNX model with FP16 remainder.
        engine: the engine to make.
        options: how.
        golden: the samples (safetensors) that gate what is measured.
        force: replace an existing one.
        progress: is shown how far it is.

    Raises:
        UsageError: the engine exists and `force` is false, or the library does not compile for a capability.
        EnvironmentNotAbleError: the library is not installed, there is too little memory, or FP16 was asked for and no
            GPU is here that could prove it.
        ArtifactError: the library refuses the model.
        QualityGateError: nothing that was measured computes what the reference computes.
    """
    require_writable(engine, force=force)
    samples = read_golden(golden, source="the golden samples of the bundle")
    plan = _planned(options, convolutions=bool(samples.on_cpu), quantized=flavour_of(model))
    options = replace(options, capabilities=plan.capabilities)
    engine.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(engine.parent)
    with tempfile.TemporaryDirectory(dir=engine.parent, prefix=f".p4q-build.{os.getpid()}-", suffix=".tmp") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model)
        (folder / "golden.safetensors").write_bytes(golden)
        built = {
            flavour: _build(folder, flavour, engine=engine, options=options, progress=progress)
            for flavour in plan.flavours
        }
        contest = None
        if plan.gpu:
            contestants = Contestants(folder=folder, built=built, samples=samples, action="measure-ahead")
            contest = hold_contest(contestants, options.as_tensorrt(), run_worker)
        kept = plan.flavours[0] if contest is None else contest.choice.kept
        require_writable(engine, force=force)
        path = temporary_path(engine)
        (folder / f"{kept}.plan").replace(path)
    return RtxResult(
        plan=path,
        built_with=msgspec.convert({**built[kept]["built_with"], "gpu": plan.gpu}, RtxMachine),
        inspection=_unmeasured(built[kept], kept, plan.missing) if contest is None else contest.inspection,
        contest=contest,
    )


FP8_CAPABILITIES = ("8.9", "12.0", "12.1")
"""Those from 8.9 on that the compiler knows: an engine of FP8 cannot be for all from 8.0 on."""


def _capabilities(options: RtxOptions, flavours: tuple[PlanFlavour, ...]) -> tuple[str, ...]:
    """Return the compute capabilities that are compiled for.

    Raises:
        UsageError: GPUs of one do not multiply FP8.
    """
    if "fp8" not in flavours:
        return options.capabilities
    if old := [name for name in options.capabilities if not multiplies_fp8(name)]:
        raise UsageError(
            f"--capability {', '.join(old)}: the bundle is quantized to FP8 (E4M3), which GPUs multiply from 8.9 on "
            "(Ada, Blackwell). Leave it out for these; for older ones export with the recipe int8, or add "
            "--precision fp16 where such a GPU is."
        )
    return options.capabilities or FP8_CAPABILITIES


def _planned(options: RtxOptions, *, convolutions: bool, quantized: QuantizedFlavour) -> _Plan:
    """Return what is built here.

    Raises:
        UsageError: the precision that was asked for is not the model's, or GPUs do not multiply it.
        EnvironmentNotAbleError: FP16 was asked for, and there is no GPU that could prove it.
    """
    flavours = options.as_tensorrt().flavours(convolutions=convolutions, quantized=quantized)
    capabilities = _capabilities(options, flavours)
    if options.precision == quantized:
        return _Plan(gpu="", missing="", flavours=flavours, capabilities=capabilities)
    request = {"action": "find-gpu", "options": asdict(options.as_tensorrt()), "capabilities": capabilities}
    found = run_worker(request, task="looking for a GPU")
    if found["gpu"]:
        return _Plan(gpu=found["gpu"], missing="", flavours=flavours, capabilities=capabilities)
    if options.precision == "fp16":
        raise EnvironmentNotAbleError(
            f"an FP16 engine is proved by what it computes on its GPU when it is built, and {found['missing']}. Build "
            f"it there, or leave out --precision fp16 for an {quantized.upper()} engine, which is proved where it "
            "is loaded."
        )
    return _Plan(gpu="", missing=found["missing"], flavours=flavours[:1], capabilities=capabilities)


def _build(
    folder: Path, flavour: PlanFlavour, *, engine: Path, options: RtxOptions, progress: ShowProgress | None
) -> dict[str, Any]:
    """Return the worker's result for one engine, which is then in `folder`."""
    request = plan_request(folder, flavour, action="build-ahead", options=options.as_tensorrt(), engine=engine)
    request["capabilities"] = options.capabilities
    return run_worker(request, task=f"{flavour.upper()} engine for RTX", progress=progress)


def _unmeasured(built: Mapping[str, Any], flavour: PlanFlavour, missing: str) -> PlanInspection:
    """Return what the card records of a quantized engine that was only compiled."""
    why = f"not measured, and FP16 not built: {missing}" if missing else "the only one that was asked for; not measured"
    return msgspec.structs.replace(
        msgspec.convert(built["inspection"], PlanInspection),
        choice=PlanChoice(kept=flavour, reason=why),
        build_seconds={flavour: built["seconds"]},
    )


def describe_rtx(
    model_bytes: int,
    *,
    engine: Path,
    options: RtxOptions,
    convolutions: bool = False,
    quantized: QuantizedFlavour = "int8",
) -> RtxDryRun:
    """Return what `build_rtx` would do, without building.

    Raises:
        EnvironmentNotAbleError: the library is not installed, or no GPU is here that FP16 needs.
    """
    version = import_library(RTX).__version__
    plan = _planned(options, convolutions=convolutions, quantized=quantized)
    best = f"the better by {options.prefer}, measured on {plan.gpu}"
    alone = f"{plan.flavours[0]}{f': {plan.missing}' if plan.missing else ''}"
    return RtxDryRun(
        engine=str(engine),
        exists=engine.exists(),
        plans=plan.flavours,
        keeps=best if len(plan.flavours) > 1 else alone,
        batches=BatchProfile(min=options.min_batch, opt=options.opt_batch, max=options.max_batch),
        compute_capabilities=plan.capabilities or ("8.0+",),
        optimization_level=options.optimization_level,
        model_bytes=model_bytes,
        tensorrt_rtx=version,
    )
