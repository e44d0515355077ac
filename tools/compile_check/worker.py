"""Compile one ONNX file for one compute capability and print what the compiler said, as JSON.

Runs in a process of its own, where the compiler's log is read.
"""

import json
import sys

import tensorrt_rtx_bindings as trt

# The compiler lists the fused kernels in its verbose log, one to a line, when profiling is detailed.
KERNEL_MARK = "LayerType: "


class Recorder(trt.ILogger):
    """Keeps the kernel list and everything from warning upwards."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.kernels: list[str] = []
        self.warnings: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if KERNEL_MARK in message:
            self.kernels += [line for line in message.splitlines() if line.startswith("Name: ")]
        # That there is no driver is expected here.
        if severity <= trt.ILogger.Severity.WARNING and "CUDA" not in message:
            self.warnings.append(message)


def compile_file(path: str, batch: int, capability: str) -> dict[str, object]:
    """Parse and build with a profile of 1 to `batch` images, for a capability such as `SM86`."""
    recorder = Recorder()
    builder = trt.Builder(recorder)
    # Strong typing is the only kind from version 11 on; its bit is 0 there.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, recorder)
    result: dict[str, object] = {"parsed": False, "built": False, "kernels": [], "warnings": recorder.warnings}
    if not parser.parse_from_file(path):
        result["errors"] = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        return result
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes = [[n if d < 0 else d for d in tensor.shape] for n in (1, batch, batch)]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    result.update(parsed=True, built=plan is not None, kernels=recorder.kernels)
    result["plan_bytes"] = 0 if plan is None else plan.nbytes
    return result


if __name__ == "__main__":
    print(json.dumps(compile_file(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
