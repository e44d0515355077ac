"""Proving a CPU engine in a child process: its deadline, and what its death means."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from p4q_edge.runtime import errors
from p4q_edge.runtime.artifacts import CpuInspection, Golden
from p4q_edge.runtime.builders.candidates import Candidates, CpuCandidate
from p4q_edge.runtime.builders.cpu import CpuModel, ProofSetting, ProvedModel
from p4q_edge.runtime.builders.cpu_worker import GOLDEN, MODEL, OPTIMIZED, OUTPUTS
from p4q_edge.runtime.machine import child_command
from p4q_edge.runtime.statistics import Estimate
from p4q_edge.runtime.storage import load_tensors, scratch_folder

logger = logging.getLogger(__name__)

WORKER = tuple(child_command("p4q_edge.runtime.builders.cpu_worker"))


def prove_apart(
    candidates: Candidates,
    golden: Golden,
    setting: ProofSetting,
    *,
    deadline_s: float,
    command: Sequence[str] = WORKER,
) -> ProvedModel:
    """Do what `prove` does in a process of its own, which is killed at the deadline and when this one ends.

    Raises:
        P4QEdgeError: it did not end in time, or crashed; or the error that it met.
    """
    with scratch_folder() as folder:
        for profile, model in candidates.models.items():
            (folder / MODEL.format(profile=profile)).write_bytes(model)
        (folder / GOLDEN).write_bytes(golden.to_bytes())
        request = {
            "folder": str(folder),
            "candidates": msgspec.to_builtins(candidates.tried),
            "setting": msgspec.to_builtins(setting),
            "parent": os.getpid(),
        }
        try:
            answer = _ask(request, name=setting.name, deadline_s=deadline_s, command=command)
        except _WorkerCrashedError as error:
            # Of several libraries one that crashes is out, and the others are still measured.
            candidates = _without_openvino(candidates, error)
            request["candidates"] = msgspec.to_builtins(candidates.tried)
            answer = _ask(request, name=setting.name, deadline_s=deadline_s, command=command)
        optimized = (folder / OPTIMIZED).read_bytes()
        outputs, _ = load_tensors((folder / OUTPUTS).read_bytes(), source="the outputs of the golden samples")
    kept = msgspec.convert(answer["candidate"], CpuCandidate)
    inspection = msgspec.convert(answer["inspection"], CpuInspection)
    for reason in inspection.not_measured:  # of what could not be run there
        logger.warning("left out: %s", reason)
    not_measured = (*candidates.not_measured, *inspection.not_measured)
    inspection = msgspec.structs.replace(inspection, not_measured=not_measured)
    _tell(kept, inspection)
    return ProvedModel(
        built=CpuModel(candidate=kept, model=candidates.models[kept.profile], optimized=optimized),
        outputs=outputs,
        input_shape=tuple(answer["input_shape"]),
        inspection=inspection,
    )


class _WorkerCrashedError(errors.P4QEdgeError):
    """Native code in the worker ended it."""


def _without_openvino(candidates: Candidates, error: _WorkerCrashedError) -> Candidates:
    """Return the candidates of ONNX Runtime alone, where there are both.

    Raises:
        P4QEdgeError: there is nothing else to try.
    """
    others = tuple(one for one in candidates.tried if one.backend != "openvino")
    if not others or len(others) == len(candidates.tried):
        raise error
    logger.warning("OpenVINO is left out: %s", error)
    return replace(candidates, tried=others, not_measured=(*candidates.not_measured, "OpenVINO: it crashed"))


def _tell(kept: CpuCandidate, inspection: CpuInspection) -> None:
    """Log what is kept of several candidates, and why."""
    if not inspection.rows:
        return
    for name, row in inspection.rows.items():
        if row.problem is not None:
            logger.warning("%s is not kept: %s", name, row.problem)
    logger.info(
        "%s is kept: %s%s",
        kept.name,
        ", ".join(_against(*other) for other in inspection.faster_than.items()) or "nothing was left to compare with",
        "".join(f"; not measured: {reason}" for reason in inspection.not_measured),
    )


def _against(name: str, faster: Estimate) -> str:
    """Return how much faster than another what is kept is; of those that are equally fast the first is kept."""
    equal = "" if faster.value > 1 else " (counts as equally fast)"
    return f"{faster.value:.2f} times as fast as {name!r}{equal}"


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
    if "candidate" in answer:
        return answer
    if "error" in answer:
        known: type[errors.P4QEdgeError] = getattr(errors, answer["error"])
        raise known(answer["message"])
    code = worker.returncode
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    tail = " | ".join(said[-5:]) or "it said nothing"
    kind = _WorkerCrashedError if code < 0 else errors.P4QEdgeError
    raise kind(
        f"{name}: the process that runs its golden samples ended with {how}: {tail}. The memory may be too small, or "
        "the bundle broken: run `p4q-edge doctor`, then export the bundle again."
    )
