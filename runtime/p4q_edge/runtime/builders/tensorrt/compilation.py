"""One compilation: from the bytes of an ONNX model to a serialized engine, reporting and stopping on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p4q_edge.runtime import errors
from p4q_edge.runtime.artifacts import TensorRTOptions
from p4q_edge.runtime.builders.tensorrt.narrow_weights import flavour_of, with_fp16_weights
from p4q_edge.runtime.builders.tensorrt.network import make_config, parse_network, remove_quantization
from p4q_edge.runtime.builders.tensorrt.progress import PhaseTree, make_monitor
from p4q_edge.runtime.engines.tensorrt import TENSORRT, problems

REPORT_EVERY_S = 0.2

Emit = Callable[[Mapping[str, Any]], None]


class BuildCancelledError(Exception):
    """The parent asked to stop. It never leaves the worker."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One plan to build and whom to tell."""

    options: TensorRTOptions
    flavour: str
    """`int8`, `int8-linears`, `int4`, `fp8` or `fp16`."""
    model: Path
    """The complete ONNX model."""
    plan: Path
    """Where to write the plan."""
    engine: Path
    """The final engine, which has the timing cache of earlier builds beside it."""
    emit: Emit
    cancelled: Callable[[], bool]
    title: str = TENSORRT.title
    """What messages call the library."""


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """A parsed network with its configuration; `run` compiles it.

    Attributes:
        kept: what owns weights that TensorRT reads until the plan is serialized: the parser and new constants.
    """

    job: Job
    log: Any
    builder: Any
    network: Any
    config: Any
    kept: tuple[Any, ...]
    workspace: int | None

    def run(self, trt: Any) -> Any:
        """Return the serialized plan.

        Raises:
            BuildCancelledError: the parent asked to stop.
            P4QEdgeError: TensorRT built none; the message has its reasons.
        """
        # The binding keeps no reference to the monitor's Python part, so a local one does.
        monitor = make_monitor(trt, report=_reporter(self.job.emit), cancelled=self.job.cancelled)
        self.config.progress_monitor = monitor
        plan = self.builder.build_serialized_network(self.network, self.config)
        if plan is None:
            if self.job.cancelled():
                raise BuildCancelledError
            raise errors.P4QEdgeError(self._failure(f"{self.job.title} {trt.__version__}"))
        return plan

    def _failure(self, title: str) -> str:
        reasons = problems(self.log)
        out_of_memory = "memory" in reasons.lower()
        limit = f"{self.workspace >> 20} MiB" if self.workspace else "TensorRT's default"
        advice = (
            f"The GPU ran out of memory with a workspace of {limit}: close other programs, or give a smaller "
            "--workspace-mib or --max-batch."
            if out_of_memory
            else "Try --optimization-level 2, and report this with the messages if it stays."
        )
        return f"{title} built no plan: {reasons}. {advice}"


def prepare_compilation(
    trt: Any, job: Job, *, builder: Any, log: Any, strong: bool = True, workspace: int | None = None
) -> Compilation:
    """Parse a job's model and configure its compilation.

    Raises:
        ArtifactError: the parser refuses the model.
        UsageError: the options do not fit the model or the library.
    """
    model = job.model.read_bytes()
    quantized = flavour_of(model)
    if quantized != "int8":
        if not strong:
            raise errors.UsageError(f"{quantized.upper()} weights need strong typing. Leave --typing weak out.")
        model = with_fp16_weights(model) if job.flavour == "fp16" else model
    network, parser = parse_network(trt, builder, log, model, strong=strong)
    kept: tuple[Any, ...] = (parser,)
    if job.flavour != quantized:
        kept += tuple(remove_quantization(trt, network, only_convolutions=job.flavour == "int8-linears"))
    allowed = ("FP16",) if job.flavour == "fp16" else ("INT8", "FP16")
    config = make_config(trt, builder, network, job.options, workspace=workspace, weak_flags=() if strong else allowed)
    return Compilation(
        job=job,
        log=log,
        builder=builder,
        network=network,
        config=config,
        kept=kept,
        workspace=workspace,
    )


def _reporter(emit: Emit) -> Callable[[PhaseTree], None]:
    last = 0.0

    def report(tree: PhaseTree) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_EVERY_S:
            last = now
            emit({"event": "progress", "phase": tree.phase, "fraction": tree.fraction})

    return report
