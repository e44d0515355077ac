"""The child process that builds and measures: `python -m p4q_edge.runtime.builders.tensorrt.worker`.

A build runs apart because it may be killed for memory or crash inside TensorRT; the parent lives and says what
happened. The request is one JSON line on stdin; events are JSON lines on stdout. When stdin ends, the build stops:
that is how the parent cancels it, and what happens when the parent dies.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from p4q_edge.runtime import errors
from p4q_edge.runtime.artifacts import TensorRTOptions
from p4q_edge.runtime.builders.tensorrt.ahead_of_time import build_ahead, find_gpu
from p4q_edge.runtime.builders.tensorrt.compilation import BuildCancelledError, Emit, Job, prepare_compilation
from p4q_edge.runtime.builders.tensorrt.inspection import inspect_engine
from p4q_edge.runtime.builders.tensorrt.network import use_timing_cache
from p4q_edge.runtime.builders.tensorrt.options import (
    check_fp8,
    check_hardware_compatibility,
    timing_cache_path,
    workspace_bytes,
)
from p4q_edge.runtime.builders.tensorrt.precision_choice import measure_plans
from p4q_edge.runtime.builders.tensorrt.trtexec import trtexec_command
from p4q_edge.runtime.engines.cuda import Cuda, open_cuda
from p4q_edge.runtime.engines.tensorrt import (
    RTX,
    STRONG_TYPING_COMPLETE,
    TENSORRT,
    Library,
    import_library,
    import_tensorrt,
    machine_facts,
    make_builder,
    make_logger,
    problems,
    version_tuple,
)
from p4q_edge.runtime.storage import atomic_write

logger = logging.getLogger(__name__)

CANCELLED = 130
_AHEAD = frozenset({"build-ahead", "find-gpu", "measure-ahead"})
"""Actions for TensorRT for RTX."""


def main() -> int:
    """Serve one request and return the exit code."""
    # TensorRT's libraries may print to stdout, which here carries events only.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    return report_events(sys.stdin, events, cancelled=stdin_ended)


def report_events(requests: TextIO, events: TextIO, *, cancelled: Callable[[], bool]) -> int:
    """Read one request, carry it out and report; return the exit code."""

    def emit(event: Mapping[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    request = json.loads(requests.readline())
    options = TensorRTOptions(**request["options"])
    try:
        ahead = request["action"] in _AHEAD
        result = (_ahead_of_time if ahead else _on_this_gpu)(request, options, emit, cancelled)
        emit({"event": "result", **result})
    except BuildCancelledError:
        return CANCELLED
    except errors.P4QEdgeError as error:
        emit({"event": "error", "kind": type(error).__name__, "message": str(error)})
        return error.exit_code
    return 0


def _ahead_of_time(
    request: Mapping[str, Any], options: TensorRTOptions, emit: Emit, cancelled: Callable[[], bool]
) -> dict[str, Any]:
    """Carry out what TensorRT for RTX is asked for; only a measurement needs a GPU."""
    trt = import_library(RTX)
    if request["action"] == "build-ahead":
        job = _job(request, options, emit, cancelled)
        return build_ahead(trt, job, capabilities=tuple(request["capabilities"]))
    if request["action"] == "find-gpu":
        return dict(find_gpu(trt, tuple(request["capabilities"])))
    return _measured(trt, open_cuda(), request, options, RTX)


def _on_this_gpu(
    request: Mapping[str, Any], options: TensorRTOptions, emit: Emit, cancelled: Callable[[], bool]
) -> dict[str, Any]:
    """Carry out what TensorRT is asked for."""
    # CUDA answers before TensorRT is imported: without a driver its factories crash.
    cuda = open_cuda(options.cuda_backend, device=options.device)
    trt = import_tensorrt(cuda.facts)
    if request["action"] == "build":
        with cuda.current():
            return build(trt, cuda, _job(request, options, emit, cancelled))
    return _measured(trt, cuda, request, options, TENSORRT)


def _measured(
    trt: Any, cuda: Cuda, request: Mapping[str, Any], options: TensorRTOptions, library: Library
) -> dict[str, Any]:
    plans = {name: Path(path) for name, path in request["plans"].items()}
    golden = Path(request["golden"])
    with cuda.current():
        return measure_plans(trt, cuda, plans, golden=golden, batch=options.opt_batch, library=library)


def _job(request: Mapping[str, Any], options: TensorRTOptions, emit: Emit, cancelled: Callable[[], bool]) -> Job:
    model, plan, engine = (Path(request[name]) for name in ("model", "plan", "engine"))
    return Job(
        options=options,
        flavour=request["flavour"],
        model=model,
        plan=plan,
        engine=engine,
        emit=emit,
        cancelled=cancelled,
    )


def stdin_ended() -> bool:
    """Return whether the parent closed our stdin."""
    readable, _, _ = select.select([0], [], [], 0)
    return bool(readable) and os.read(0, 1) == b""


def build(trt: Any, cuda: Cuda, job: Job) -> dict[str, Any]:
    """Build one plan and write it and its timing cache; the GPU is current in this thread.

    Returns:
        `built_with` and `inspection` of the card, `size_bytes` and `seconds`.
    """
    options = job.options
    check_hardware_compatibility(options, cuda.facts)
    if job.flavour == "fp8":
        check_fp8(options, cuda.facts)
    started = time.monotonic()
    typing, built = _build_typed(trt, cuda, job)
    serialized = memoryview(built.plan)
    atomic_write(job.plan, serialized, force=True)
    seconds = time.monotonic() - started
    engine = _deserialize(trt, serialized, version_compatible=options.version_compatible)
    return {
        "built_with": {
            **machine_facts(trt, cuda.facts),
            "precision": job.flavour,
            "typing": typing,
            "batches": ",".join(str(size) for size in options.batches),
            "workspace_bytes": str(workspace_bytes(options, cuda.facts) or "default"),
            "optimization_level": str(options.optimization_level),
            "timing_cache": built.cache,
            "version_compatible": str(options.version_compatible).lower(),
            "hardware_compatibility": options.hardware_compatibility,
            "trtexec": built.trtexec,
        },
        "inspection": inspect_engine(trt, engine),
        "size_bytes": serialized.nbytes,
        "seconds": round(seconds, 1),
    }


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A serialized plan, what came of the timing cache, and the command of trtexec that builds the same."""

    plan: Any
    cache: str
    trtexec: str


def _build_typed(trt: Any, cuda: Cuda, job: Job) -> tuple[str, BuiltPlan]:
    """Build with strong typing, and where that fails on an old TensorRT once more with weak typing."""
    version = version_tuple(trt.__version__)
    if job.options.typing == "weak":
        if version >= (11, 0):
            raise errors.UsageError(
                f"TensorRT {trt.__version__} has no weak typing; it left with version 11. Use --typing strong."
            )
        return "weak", _build_once(trt, cuda, job, strong=False)
    try:
        return "strong", _build_once(trt, cuda, job, strong=True)
    except errors.P4QEdgeError as error:
        complete = version >= STRONG_TYPING_COMPLETE
        if complete or job.options.typing == "strong" or isinstance(error, errors.UsageError):
            raise
        logger.warning("TensorRT %s: %s Trying again with weak typing.", trt.__version__, error)
        return f"weak after strong failed: {error}", _build_once(trt, cuda, job, strong=False)


def _build_once(trt: Any, cuda: Cuda, job: Job, *, strong: bool) -> BuiltPlan:
    log = make_logger(trt)
    builder = make_builder(trt, log, cuda.facts)
    workspace = workspace_bytes(job.options, cuda.facts)
    compilation = prepare_compilation(trt, job, builder=builder, log=log, strong=strong, workspace=workspace)
    kept_cache = timing_cache_path(job.engine, tensorrt_version=trt.__version__, facts=cuda.facts)
    # Written beside the plan: the parent moves both to the engine once everything is done.
    new_cache = job.plan.with_name(kept_cache.name)
    known = new_cache if new_cache.is_file() else kept_cache
    cache = use_timing_cache(compilation.config, known if job.options.timing_cache else None)
    plan = compilation.run(trt)
    if job.options.timing_cache:
        atomic_write(new_cache, memoryview(compilation.config.get_timing_cache().serialize()), force=True)
    command = trtexec_command(
        job.options,
        flavour=job.flavour,
        shape=tuple(compilation.network.get_input(0).shape),
        strong=strong,
        workspace=workspace,
        timing_cache=new_cache.name,
    )
    return BuiltPlan(plan=plan, cache=cache, trtexec=command)


def _deserialize(trt: Any, plan: Any, *, version_compatible: bool) -> Any:
    log = make_logger(trt)
    runtime = trt.Runtime(log)
    if version_compatible:
        # Such a plan carries code that the loader runs; this one was built by this process a moment ago.
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise errors.P4QEdgeError(f"TensorRT cannot load the plan it just built: {problems(log)}. Report this.")
    return engine


if __name__ == "__main__":
    sys.exit(main())
