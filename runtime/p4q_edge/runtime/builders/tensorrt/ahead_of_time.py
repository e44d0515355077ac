"""Engines of TensorRT for RTX: compiled on any machine, without a GPU, for named compute capabilities."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from p4q_edge.runtime.builders.tensorrt.compilation import Job, prepare_compilation
from p4q_edge.runtime.builders.tensorrt.inspection import summarize_inspection
from p4q_edge.runtime.builders.tensorrt.kernel_list import MARK, read_kernel_list
from p4q_edge.runtime.engines.cuda import open_cuda
from p4q_edge.runtime.engines.tensorrt import RTX, covers_gpu, known_capabilities, make_logger, platform_name
from p4q_edge.runtime.errors import EnvironmentNotAbleError, UsageError
from p4q_edge.runtime.machine import advice
from p4q_edge.runtime.storage import atomic_write

DEFAULT = "8.0+"
"""What NVIDIA documents of an engine for which no capability was named: 8.0, 8.6, 8.9, 12.0 and later."""


def build_ahead(trt: Any, job: Job, *, capabilities: tuple[str, ...]) -> dict[str, Any]:
    """Compile one engine and write it. Nothing is run: that needs the GPU for which it is.

    Args:
        trt: the library's module.
        job: what to compile.
        capabilities: of the GPUs that it is for, as `8.6`; none: `DEFAULT`.

    Returns:
        `built_with` and `inspection` of the card, `size_bytes` and `seconds`.

    Raises:
        UsageError: the library cannot compile for a capability.
        ArtifactError, P4QEdgeError: it refuses the model, or fails.
    """
    started = time.monotonic()
    log = make_logger(trt, keep=MARK)
    compilation = prepare_compilation(trt, replace(job, title=RTX.title), builder=trt.Builder(log), log=log)
    set_capabilities(trt, compilation.config, capabilities)
    serialized = memoryview(compilation.run(trt))
    atomic_write(job.plan, serialized, force=True)
    return {
        "built_with": {
            RTX.key: trt.__version__,
            "platform": platform_name(),
            "compute_capability": ",".join(capabilities) or DEFAULT,
            "precision": job.flavour,
            "batches": ",".join(str(size) for size in job.options.batches),
            "optimization_level": str(job.options.optimization_level),
        },
        "inspection": summarize_inspection(
            {"Layers": read_kernel_list("\n".join(log.kept)), "I/O Tensors": _tensors(compilation.network)}
        ),
        "size_bytes": serialized.nbytes,
        "seconds": round(time.monotonic() - started, 1),
    }


def set_capabilities(trt: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    """Make a configuration compile for GPUs of these compute capabilities, as `8.6`; for `DEFAULT` where none is named.

    Raises:
        UsageError: the library does not know one.
    """
    known = known_capabilities(trt)
    unknown = [name for name in capabilities if name not in known]
    if unknown:
        raise UsageError(
            f"expected compute capabilities of {', '.join(sorted(known, key=float))}, got {', '.join(unknown)}. "
            f"These are what {RTX.title} {trt.__version__} compiles for; leave --capability out for all from 8.0 on."
        )
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
        config.set_compute_capability(known[name], index)


def find_gpu(trt: Any, capabilities: tuple[str, ...]) -> dict[str, str]:
    """Return the GPU that is here and that an engine for these capabilities runs on.

    Returns:
        `gpu`, its name, "" where there is none, and `missing`: then why.
    """
    try:
        facts = open_cuda().facts
    except EnvironmentNotAbleError as error:
        return {"gpu": "", "missing": advice.without_doctor(str(error))}
    here, built = facts.compute_capability, ",".join(capabilities) or DEFAULT
    if here in known_capabilities(trt) and covers_gpu(built, here):
        return {"gpu": facts.name, "missing": ""}
    return {"gpu": "", "missing": f"{facts.name} (compute capability {here}) is none of the GPUs that it is for"}


def _tensors(network: Any) -> list[dict[str, str]]:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    return [{"Name": tensor.name, "Datatype": tensor.dtype.name} for tensor in tensors]
