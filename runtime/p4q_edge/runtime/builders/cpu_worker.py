"""The child process that first runs a CPU engine, started by `cpu_worker_process`.

A graph may come from a stranger: here it can take neither the builder's time nor its memory, and dies alone. The
request is one JSON line on stdin, arrays and models are files in a folder of the parent's, the answer is one JSON line
on stdout.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from p4q_edge.runtime import errors
from p4q_edge.runtime.artifacts import read_golden
from p4q_edge.runtime.builders.candidates import Candidates, CpuCandidate
from p4q_edge.runtime.builders.cpu import ProofSetting, prove_candidates
from p4q_edge.runtime.choices import CpuProfile
from p4q_edge.runtime.machine import end_with_parent
from p4q_edge.runtime.storage import save_tensors

GOLDEN, OPTIMIZED, OUTPUTS = "golden.safetensors", "optimized.onnx", "outputs.safetensors"
MODEL = "{profile}.onnx"
_BASE_BYTES, _BYTES_A_BYTE, _BYTES_A_THREAD = 1 << 30, 16, 16 << 20


def main() -> int:
    """Serve one request and return the exit code."""
    # Libraries may print to stdout, which here carries the answer only.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    end_with_parent(request["parent"])
    try:
        answer = answer_request(request)
    except errors.P4QEdgeError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        name = request["setting"]["name"]
        message = f"{name} needs more memory than a model of its size may. Build it from another bundle."
        answer = {"error": errors.CorruptArtifactError.__name__, "message": message}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    return 0


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """Prove the models of a request, leave the results in its folder, and return the answer."""
    folder = Path(request["folder"])
    tried = msgspec.convert(request["candidates"], tuple[CpuCandidate, ...])
    profiles: set[CpuProfile] = {candidate.profile for candidate in tried}
    models = {profile: (folder / MODEL.format(profile=profile)).read_bytes() for profile in profiles}
    _limit_memory(max(map(len, models.values())))
    golden = read_golden((folder / GOLDEN).read_bytes(), source="the golden samples of the bundle")
    setting = msgspec.convert(request["setting"], ProofSetting)
    proved = prove_candidates(Candidates(tried=tried, models=models), golden, setting)
    (folder / OPTIMIZED).write_bytes(proved.built.optimized)
    outputs = {name: np.asarray(values, np.float32) for name, values in proved.outputs.items()}
    (folder / OUTPUTS).write_bytes(save_tensors(outputs, {}))
    return {
        "candidate": msgspec.to_builtins(proved.built.candidate),
        "input_shape": proved.input_shape,
        "inspection": msgspec.to_builtins(proved.inspection),
    }


def _limit_memory(model_bytes: int) -> None:
    """Bound what this process may allocate, far above what a model of this size needs; Linux only."""
    if sys.platform != "linux":
        return
    import resource

    most = _BASE_BYTES + _BYTES_A_BYTE * model_bytes + _BYTES_A_THREAD * (os.cpu_count() or 1)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard < 0 else min(most, hard), hard))


if __name__ == "__main__":
    sys.exit(main())
