"""From an ONNX model to the better of two TensorRT plans, in child processes, without torch."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from p4q_edge.runtime.artifacts import (
    Golden,
    PlanChoice,
    PlanInspection,
    PlanMachine,
    PlanRow,
    TensorRTOptions,
    read_golden,
)
from p4q_edge.runtime.builders.dry_run import BatchProfile, TensorRTDryRun
from p4q_edge.runtime.builders.tensorrt.options import (
    TIMING_CACHES,
    check_hardware_compatibility,
    timing_cache_path,
    workspace_bytes,
)
from p4q_edge.runtime.builders.tensorrt.precision_choice import choose, gate_problem, golden_of, table
from p4q_edge.runtime.builders.tensorrt.worker_process import ShowProgress, run_worker
from p4q_edge.runtime.choices import PlanFlavour
from p4q_edge.runtime.engines.cuda import open_cuda
from p4q_edge.runtime.engines.tensorrt import import_tensorrt, machine_facts
from p4q_edge.runtime.machine import advice
from p4q_edge.runtime.statistics import Estimate
from p4q_edge.runtime.storage import load_tensors, remove_leftovers, require_writable, sha256_file, temporary_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanResult:
    """A built plan and what its card records.

    Attributes:
        plan: the engine, under a temporary name in its folder, until it takes its place together with its card.
        sha256: its digest.
        size_bytes: its size.
        built_with: versions, GPU, platform and how it was built.
        inspection: what the plan runs and what was measured.
        choice: which was kept, and why.
        golden: the samples that the kept plan is checked with when it is loaded. For INT8 they are the bundle's. FP16
            does not quantize activations and differs from that reference for the better, so it is checked against
            what it computed here, after it passed its own gate.
        outputs: what the kept plan computed on the golden images.
    """

    plan: Path
    sha256: str
    size_bytes: int
    built_with: PlanMachine
    inspection: PlanInspection
    choice: PlanChoice
    golden: Golden
    outputs: Mapping[str, Any]


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
            for flavour in options.flavours(convolutions=bool(samples.on_cpu))
        }
        rows, ratios = _measure(folder, tuple(built), samples, options=options)
        version = next(iter(built.values()))["built_with"]["tensorrt"]
        choice = choose(rows, ratios, prefer=options.prefer, doubt=advice.wrong_transformers(version))
        logger.info("%s", table(rows, choice))
        outputs, _ = load_tensors((folder / f"{choice.kept}.safetensors").read_bytes(), source="the plan's outputs")
        require_writable(engine, force=force)
        plan = temporary_path(engine)
        (folder / f"{choice.kept}.plan").replace(plan)
        for cache in folder.glob(TIMING_CACHES):
            cache.replace(engine.with_name(cache.name))
    return PlanResult(
        plan=plan,
        sha256=sha256_file(plan),
        size_bytes=plan.stat().st_size,
        built_with=msgspec.convert(built[choice.kept]["built_with"], PlanMachine),
        inspection=_inspection(built, rows, ratios, choice),
        choice=choice,
        golden=_as_reference(samples, outputs) if choice.kept == "fp16" else golden_of(choice.kept, samples),
        outputs=outputs,
    )


def _build(
    folder: Path, flavour: str, *, engine: Path, options: TensorRTOptions, progress: ShowProgress | None
) -> dict[str, Any]:
    """Return the worker's result for one plan, which is then in `folder`."""
    request = {
        "action": "build",
        "options": asdict(options),
        "flavour": flavour,
        "model": str(folder / "model.onnx"),
        "plan": str(folder / f"{flavour}.plan"),
        "engine": str(engine),
    }
    return run_worker(request, task=f"{flavour.upper()} plan", progress=progress)


def _measure(
    folder: Path, flavours: tuple[PlanFlavour, ...], samples: Golden, *, options: TensorRTOptions
) -> tuple[dict[PlanFlavour, PlanRow], dict[PlanFlavour, Estimate]]:
    """Return the measured plans by precision, and how much faster each is than FP16 where that was built too."""
    request = {
        "action": "measure",
        "options": asdict(options),
        "plans": {flavour: str(folder / f"{flavour}.plan") for flavour in flavours},
        "golden": str(folder / "golden.safetensors"),
    }
    measured = run_worker(request, task="measuring")
    rows: dict[PlanFlavour, PlanRow] = {
        row["precision"]: PlanRow(**row, problem=gate_problem(row, samples, min_cosine=options.accuracy_gate))
        for row in measured["rows"].values()
    }
    return rows, msgspec.convert(measured["ratios"], dict[PlanFlavour, Estimate])


def _inspection(
    built: Mapping[PlanFlavour, Mapping[str, Any]],
    rows: dict[PlanFlavour, PlanRow],
    ratios: dict[PlanFlavour, Estimate],
    choice: PlanChoice,
) -> PlanInspection:
    """Return what the card records of the kept plan's kernels and of the measurement that chose it."""
    return msgspec.structs.replace(
        msgspec.convert(built[choice.kept]["inspection"], PlanInspection),
        rows=rows,
        choice=choice,
        ratio=ratios.get("int8"),
        ratios=ratios,
        build_seconds={flavour: result["seconds"] for flavour, result in built.items()},
    )


def _as_reference(samples: Golden, outputs: Mapping[str, Any]) -> Golden:
    """Return golden samples whose reference is what an accepted plan computed."""
    return replace(samples, **{name: outputs[name] for name in ("features", "embedding", "logits")}, on_cpu={})


def describe_plan(
    model_bytes: int, *, engine: Path, options: TensorRTOptions, convolutions: bool = False
) -> TensorRTDryRun:
    """Return what `build_plan` would do on this device, without building.

    Args:
        model_bytes: size of the ONNX model.
        engine: the plan that would be made.
        options: how it would be built.
        convolutions: whether the model has quantized ones.

    Raises:
        EnvironmentNotAbleError: no GPU, no CUDA backend or no TensorRT.
        UsageError: the options do not fit this device.
    """
    cuda = open_cuda(options.cuda_backend, device=options.device)
    trt = import_tensorrt(cuda.facts)
    check_hardware_compatibility(options, cuda.facts)
    with cuda.current():
        free, total = cuda.memory()
    cache = timing_cache_path(engine, tensorrt_version=trt.__version__, facts=cuda.facts)
    return TensorRTDryRun(
        engine=str(engine),
        exists=engine.exists(),
        plans=options.flavours(convolutions=convolutions),
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
