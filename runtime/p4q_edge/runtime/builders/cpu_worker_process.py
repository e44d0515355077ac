"""Proving a CPU engine in a child process: its deadline, and what its death means."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from p4q_edge.runtime import errors
from p4q_edge.runtime.artifacts import CpuInspection, Golden
from p4q_edge.runtime.builders.cpu_worker import GOLDEN, MODEL, OPTIMIZED, OUTPUTS
from p4q_edge.runtime.builders.onnxruntime import CpuModel, ProvedModel
from p4q_edge.runtime.choices import CpuProfile
from p4q_edge.runtime.machine import child_command
from p4q_edge.runtime.storage import load_tensors, scratch_folder

logger = logging.getLogger(__name__)

WORKER = tuple(child_command("p4q_edge.runtime.builders.cpu_worker"))


def prove_apart(
    models: Mapping[CpuProfile, bytes],
    golden: Golden,
    *,
    threads: int | None,
    name: str,
    deadline_s: float,
    command: Sequence[str] = WORKER,
) -> ProvedModel:
    """Do what `prove` does in a process of its own, which is killed at the deadline and when this one ends.

    Raises:
        P4QEdgeError: it did not end in time, or crashed; or the error that it met.
    """
    with scratch_folder() as folder:
        for profile, model in models.items():
            (folder / MODEL.format(profile=profile)).write_bytes(model)
        (folder / GOLDEN).write_bytes(golden.to_bytes())
        request = {
            "folder": str(folder),
            "profiles": [*models],
            "threads": threads,
            "name": name,
            "parent": os.getpid(),
        }
        answer = _ask(request, name=name, deadline_s=deadline_s, command=command)
        optimized = (folder / OPTIMIZED).read_bytes()
        outputs, _ = load_tensors((folder / OUTPUTS).read_bytes(), source="the outputs of the golden samples")
    profile = answer["profile"]
    inspection = msgspec.convert(answer["inspection"], CpuInspection)
    ratio = inspection.float_over_exact_time
    if ratio is not None:
        logger.info("INT8 is %.2f times as fast as FP32 here, n = %d: %s is kept", ratio.value, ratio.n, profile)
    return ProvedModel(
        built=CpuModel(profile=profile, model=models[profile], optimized=optimized),
        outputs=outputs,
        input_shape=tuple(answer["input_shape"]),
        inspection=inspection,
    )


def _ask(request: Mapping[str, Any], *, name: str, deadline_s: float, command: Sequence[str]) -> dict[str, Any]:
    """Send a request to a new worker and return its answer."""
    # Its own temporary files lie in the folder as well, which is removed when it is killed.
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": request["folder"]},
        start_new_session=True,
    ) as worker:
        try:
            out, err = worker.communicate(json.dumps(request).encode() + b"\n", timeout=deadline_s)
        except subprocess.TimeoutExpired as error:
            raise errors.P4QEdgeError(
                f"{name}: its golden samples did not end within {deadline_s:g} s and were stopped. If this machine is "
                "that slow, give more time with --deadline SECONDS; otherwise do not use this bundle."
            ) from error
        finally:
            # Ctrl-C above all: native code does not listen to it, so that the worker is not asked.
            worker.kill()
    said = [line for line in err.decode(errors="replace").splitlines() if line.strip()]
    for line in said:
        logger.debug("%s", line)
    answer: dict[str, Any] = json.loads(out) if out.endswith(b"\n") else {}
    if "profile" in answer:
        return answer
    if "error" in answer:
        kind: type[errors.P4QEdgeError] = getattr(errors, answer["error"])
        raise kind(answer["message"])
    code = worker.returncode
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    tail = " | ".join(said[-5:]) or "it said nothing"
    raise errors.P4QEdgeError(
        f"{name}: the process that runs its golden samples ended with {how}: {tail}. The memory may be too small, or "
        "the bundle broken: run `p4q-edge doctor`, then export the bundle again."
    )
