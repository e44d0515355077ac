"""The command of NVIDIA's `trtexec` that builds the same plan, for people who would rather see that than trust us."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import get_args

from p4q_edge.runtime.artifacts import TensorRTOptions
from p4q_edge.runtime.choices import QuantizedFlavour

MODEL = "model.onnx"
PLAN = "trtexec.plan"
_LEVELS = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}


def trtexec_command(
    options: TensorRTOptions,
    *,
    flavour: str,
    shape: Sequence[int],
    strong: bool,
    workspace: int | None,
    timing_cache: str,
) -> str:
    """Return the command that builds from the bundle's FP16 graph what this build built; "" where there is none.

    Args:
        options: of the build.
        flavour: of the plan. Only for `int8`, `int4` and `fp8` there is a command: the others skip Q/DQ pairs of the
            parsed network.
        shape: of the graph's input, (N, 3, H, W), N -1 where it is dynamic.
        strong: whether every precision came from the graph.
        workspace: limit of the builder's scratch memory in bytes, or None.
        timing_cache: name of the file with kernel times, without which another run may choose other kernels.
    """
    if flavour not in get_args(QuantizedFlavour):
        return ""
    arguments = [f"--onnx={MODEL}", *(["--stronglyTyped"] if strong else ["--int8", "--fp16"])]
    if shape[0] == -1:
        sample = "x".join(str(size) for size in shape[1:])
        arguments += [
            f"--{name}Shapes=image:{batch}x{sample}"
            for name, batch in zip(("min", "opt", "max"), options.batches, strict=True)
        ]
    if workspace is not None:
        # In bytes: without a suffix it would be MiB, to which a share of the memory need not round.
        arguments.append(f"--memPoolSize=workspace:{workspace}B")
    arguments.append(f"--builderOptimizationLevel={options.optimization_level}")
    arguments.append("--profilingVerbosity=detailed")
    if options.version_compatible:
        arguments.append("--versionCompatible")
    if options.hardware_compatibility in _LEVELS:
        arguments.append(f"--hardwareCompatibilityLevel={_LEVELS[options.hardware_compatibility]}")
    if options.timing_cache:
        arguments.append(f"--timingCacheFile={timing_cache}")
    arguments += [f"--device={options.device}", "--skipInference", f"--saveEngine={PLAN}"]
    return shlex.join(["trtexec", *arguments])
