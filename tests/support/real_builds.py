"""Builds of the worker's own function on NVIDIA's real parser and compiler, and the kernels that its log names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from p4q_edge.runtime.builders.tensorrt.inspection import summarize_inspection
from p4q_edge.runtime.builders.tensorrt.kernel_list import read_kernel_list

# Drives the worker's own function; only CUDA, of which there is none, and the log, which here keeps all, are replaced.
BUILD = """
import json
from pathlib import Path
import tensorrt as trt
from p4q_edge.runtime.builders.tensorrt import compilation, worker
from p4q_edge.runtime.engines.cuda.base import DeviceFacts
from p4q_edge.runtime.artifacts.tensorrt_options import TensorRTOptions
from p4q_edge.runtime.errors import P4QEdgeError
layers, said = [], []
class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.problems = []
    def log(self, severity, msg):
        if severity <= trt.ILogger.WARNING:
            said.append(msg)
        if severity <= trt.ILogger.ERROR:
            self.problems.append(msg)
        if "LayerType: " in msg:
            layers.extend(line for line in msg.split("\\n") if line.startswith("Name: "))
worker.make_logger = lambda trt: Log()
compilation.REPORT_EVERY_S = 0
class Cuda:
    facts = DeviceFacts(index=0, name="none", compute_capability="8.6", total_memory_bytes=8 << 30, integrated=False,
                        driver_version="13.0", runtime_version="13.0")
request = json.loads(sys.argv[1])
events = []
job = worker.Job(options=TensorRTOptions(timing_cache=False, **request["options"]), flavour=request["flavour"],
                 model=Path(request["model"]), plan=Path("plan"), engine=Path("engine"), emit=events.append,
                 cancelled=lambda: len(events) >= request["cancel_after"])
outcome = {}
try:
    typing, built = worker._build_typed(trt, Cuda, job)
    outcome = {"typing": typing, "size": memoryview(built.plan).nbytes, "cache": built.cache, "trtexec": built.trtexec}
except worker.BuildCancelledError:
    outcome = {"cancelled": True}
except P4QEdgeError as error:
    outcome = {"error": type(error).__name__, "message": str(error)}
print(json.dumps({**outcome, "layers": layers, "events": events, "said": said}))
"""


def build(
    real_builder: Any, folder: Path, model: bytes, *, flavour: str = "int8", cancel_after: int = 10**9, **options: Any
) -> dict[str, Any]:
    (folder / "model.onnx").write_bytes(model)
    request = {
        "model": str(folder / "model.onnx"),
        "flavour": flavour,
        "cancel_after": cancel_after,
        "options": {"max_batch": 4, **options},
    }
    answer: dict[str, Any] = json.loads(real_builder(BUILD, json.dumps(request)).splitlines()[-1])
    return answer


def inspected(outcome: dict[str, Any]) -> dict[str, Any]:
    """Return the log's layers as the inspector's JSON would have them, summarized."""
    return summarize_inspection({"Layers": read_kernel_list("\n".join(outcome["layers"])), "I/O Tensors": []})
