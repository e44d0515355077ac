"""What a TensorRT build takes from its options on one device."""

from __future__ import annotations

from pathlib import Path

from p4q_edge.runtime.artifacts import TensorRTOptions
from p4q_edge.runtime.engines.cuda import DeviceFacts
from p4q_edge.runtime.engines.tensorrt import multiplies_fp8
from p4q_edge.runtime.errors import EnvironmentNotAbleError, UsageError

TIMING_CACHES = "timing-*.cache"
"""What names of timing caches have in common."""
JETSON_WORKSPACE_SHARE = 4
"""A build on a GPU that shares the CPU's memory may take a quarter of it: more gets the builder killed."""


def check_fp8(options: TensorRTOptions, facts: DeviceFacts) -> None:
    """Refuse FP8 on a GPU that does not multiply such numbers, and in a plan for several kinds of GPUs.

    Raises:
        EnvironmentNotAbleError: the GPU is too old; names what can be built for it.
        UsageError: a plan for older GPUs too was asked for.
    """
    if not multiplies_fp8(facts.compute_capability):
        raise EnvironmentNotAbleError(
            f"the bundle is quantized to FP8 (E4M3), which GPUs multiply from compute capability 8.9 on (Ada, Hopper, "
            f"Blackwell), and {facts.name} has {facts.compute_capability}. Export with the recipe int8 for it, or add "
            "--precision fp16."
        )
    if options.hardware_compatibility == "ampere_plus":
        raise UsageError(
            "hardware compatibility ampere_plus is for GPUs from compute capability 8.0 on, and FP8 needs 8.9. Leave "
            "it out, or take same_compute_capability."
        )


def workspace_bytes(options: TensorRTOptions, facts: DeviceFacts) -> int | None:
    """Return the builder's workspace limit in bytes, or None to leave TensorRT's own."""
    if options.workspace_mib is not None:
        return options.workspace_mib << 20
    return facts.total_memory_bytes // JETSON_WORKSPACE_SHARE if facts.integrated else None


def timing_cache_path(engine: Path, *, tensorrt_version: str, facts: DeviceFacts) -> Path:
    """Return where the timing cache of this TensorRT version and GPU lives, beside the engine."""
    gpu = "".join(character if character.isalnum() else "-" for character in facts.name.lower()).strip("-")
    return engine.parent / f"timing-trt{tensorrt_version}-sm{facts.compute_capability.replace('.', '')}-{gpu}.cache"


def check_hardware_compatibility(options: TensorRTOptions, facts: DeviceFacts) -> None:
    """Raise where a plan for several GPUs was asked for on a Jetson, whose plans never leave it."""
    if options.hardware_compatibility != "none" and facts.integrated:
        raise UsageError(
            f"hardware compatibility {options.hardware_compatibility} is for desktop GPUs; {facts.name} shares its "
            "memory with the CPU (Jetson), and TensorRT documents no such plans there. Copy the bundle and build on "
            "each device: `p4q-edge build MODEL.p4q --engine out.plan`."
        )
