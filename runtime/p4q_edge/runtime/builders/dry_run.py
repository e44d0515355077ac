"""What `p4q-edge build --dry-run` says: what a build would do here."""

from __future__ import annotations

import msgspec

from p4q_edge.runtime.choices import CpuChoice, PlanFlavour, Typing


class CpuDryRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a build for a CPU would do.

    Attributes:
        exists: whether the engine is there already.
        cpu_profile: what was asked for.
        model_bytes: size of the graph with its weights.
        unsigned_kernels: whether this processor needs the kernels that do not saturate.
        candidates: what would be tried; of several the fastest is kept.
        not_measured: what `auto` cannot try here, and why.
        onnxruntime, openvino: version of the library that was named; null for the other one.
        cpu: this processor.
    """

    engine: str
    exists: bool
    backend: str = "onnxruntime"
    cpu_profile: CpuChoice
    candidates: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()
    model_bytes: int
    unsigned_kernels: bool
    onnxruntime: str | None = None
    openvino: str | None = None
    cpu: str


class BatchProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Smallest, tuned and largest batch."""

    min: int
    opt: int
    max: int


class TensorRTDryRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a build for TensorRT would do.

    Attributes:
        exists: whether the engine is there already.
        plans: what would be built, in this order.
        keeps: which of them.
        accuracy_gate: in words.
        workspace_bytes: of the builder; null leaves TensorRT's own limit.
        timing_cache: path of the kept kernel times; null where none are kept.
        model_bytes: size of the graph with its weights.
        device: the GPU, library and platform.
    """

    engine: str
    exists: bool
    plans: tuple[PlanFlavour, ...]
    keeps: str
    accuracy_gate: str
    batches: BatchProfile
    typing: Typing
    workspace_bytes: int | None
    optimization_level: int
    timing_cache: str | None
    timing_cache_exists: bool
    model_bytes: int
    gpu_memory_free_bytes: int
    gpu_memory_total_bytes: int
    disk_free_bytes: int
    cuda_backend: str
    device: dict[str, str]


class RtxDryRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a build for TensorRT for RTX would do.

    Attributes:
        exists: whether the engine is there already.
        plans: what would be built.
        keeps: which of them, and why there is only one.
        compute_capabilities: of the GPUs that it would be for.
        model_bytes: size of the graph with its weights.
        tensorrt_rtx: version of the library.
    """

    engine: str
    exists: bool
    backend: str = "tensorrt-rtx"
    experimental: bool = True
    plans: tuple[PlanFlavour, ...]
    keeps: str
    batches: BatchProfile
    compute_capabilities: tuple[str, ...]
    optimization_level: int
    model_bytes: int
    tensorrt_rtx: str
