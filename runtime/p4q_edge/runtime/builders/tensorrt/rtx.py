"""From an ONNX model to an engine of TensorRT for RTX, in a child process, on any machine.

Experimental: these engines were compiled, and their kernels read, on machines without a GPU; none was run on an RTX
GPU. NVIDIA's support matrix names INT8 as weight-only there (INT8 WoQ GEMM), while the compiler does make products of
INT8 with INT8.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from p4q_edge.runtime.artifacts import PlanInspection, RtxMachine, RtxOptions
from p4q_edge.runtime.builders.dry_run import BatchProfile, RtxDryRun
from p4q_edge.runtime.builders.tensorrt.worker_process import ShowProgress, run_worker
from p4q_edge.runtime.engines.tensorrt import RTX, import_library
from p4q_edge.runtime.storage import remove_leftovers, require_writable, temporary_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RtxResult:
    """A compiled engine, under a temporary name in its folder, and what its card records."""

    plan: Path
    built_with: RtxMachine
    inspection: PlanInspection


def build_rtx(
    model: bytes, *, engine: Path, options: RtxOptions, force: bool = False, progress: ShowProgress | None = None
) -> RtxResult:
    """Compile the INT8 model ahead of time. It is not run: the golden samples prove it where it is first loaded.

    Args:
        model: the complete ONNX model with FP16 remainder.
        engine: the engine to make.
        options: how.
        force: replace an existing one.
        progress: is shown how far it is.

    Raises:
        UsageError: the engine exists and `force` is false, or the library does not compile for a capability.
        EnvironmentNotAbleError: the library is not installed, or there is too little memory.
        ArtifactError: the library refuses the model.
    """
    require_writable(engine, force=force)
    engine.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(engine.parent)
    with tempfile.TemporaryDirectory(dir=engine.parent, prefix=f".p4q-build.{os.getpid()}-", suffix=".tmp") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model)
        request = {
            "action": "build-ahead",
            "options": asdict(options.as_tensorrt()),
            "capabilities": options.capabilities,
            "flavour": "int8",
            "model": str(folder / "model.onnx"),
            "plan": str(folder / "int8.plan"),
            "engine": str(engine),
        }
        built = run_worker(request, task="INT8 engine for RTX", progress=progress)
        require_writable(engine, force=force)
        plan = temporary_path(engine)
        (folder / "int8.plan").replace(plan)
    inspection = {**built["inspection"], "build_seconds": {"int8": built["seconds"]}}
    return RtxResult(
        plan=plan,
        built_with=msgspec.convert(built["built_with"], RtxMachine),
        inspection=msgspec.convert(inspection, PlanInspection),
    )


def describe_rtx(model_bytes: int, *, engine: Path, options: RtxOptions) -> RtxDryRun:
    """Return what `build_rtx` would do, without building.

    Raises:
        EnvironmentNotAbleError: the library is not installed.
    """
    return RtxDryRun(
        engine=str(engine),
        exists=engine.exists(),
        batches=BatchProfile(min=options.min_batch, opt=options.opt_batch, max=options.max_batch),
        compute_capabilities=tuple(options.capabilities) or ("8.0+",),
        optimization_level=options.optimization_level,
        model_bytes=model_bytes,
        tensorrt_rtx=import_library(RTX).__version__,
    )
