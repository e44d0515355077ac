"""Running the TensorRT worker as a child process: events, cancelling, and what its death means."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from p4q_edge.runtime import errors
from p4q_edge.runtime.artifacts import TensorRTOptions
from p4q_edge.runtime.builders.tensorrt.progress import Progress
from p4q_edge.runtime.choices import PlanFlavour
from p4q_edge.runtime.machine import child_command

logger = logging.getLogger(__name__)

GRACE_S = 15.0
"""TensorRT asks whether to go on between two steps; one step can take seconds."""
_STDERR_LINES = 5
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
WORKER = tuple(child_command("p4q_edge.runtime.builders.tensorrt.worker"))

ShowProgress = Callable[[Progress], None]


def plan_request(
    folder: Path, flavour: PlanFlavour, *, action: str, options: TensorRTOptions, engine: Path
) -> dict[str, Any]:
    """Return the request for the plan `<flavour>.plan` of the `model.onnx` in a folder.

    Args:
        folder: where both are.
        flavour: of the plan.
        action: the worker's word for how it is built.
        options: of the build.
        engine: what the plan becomes; caches are kept by its name.
    """
    return {
        "action": action,
        "options": asdict(options),
        "flavour": flavour,
        "model": str(folder / "model.onnx"),
        "plan": str(folder / f"{flavour}.plan"),
        "engine": str(engine),
    }


def run_worker(
    request: Mapping[str, Any],
    *,
    task: str,
    progress: ShowProgress | None = None,
    command: Sequence[str] = WORKER,
    memory: Callable[[], str] | None = None,
) -> dict[str, Any]:
    """Send a request to a new worker and return its result.

    Args:
        request: one JSON object.
        task: what it does, in words, for progress and errors.
        progress: is shown every progress event.
        command: how the worker is started.
        memory: describes the machine's memory, for the error of a killed worker.

    Raises:
        KeyboardInterrupt: Ctrl-C; the worker has ended by then.
        EnvironmentNotAbleError: the worker was killed, as happens when memory runs out.
        P4QEdgeError: the worker crashed, or the error that it reported.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as messages:
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, text=True, start_new_session=True
        )
        try:
            last = _converse(worker, request, task=task, progress=progress)
        finally:
            # Its stdout has ended, or something was raised here, Ctrl-C above all: the worker must end as well.
            _stop(worker)
        code = worker.returncode
        messages.seek(0)
        said = [line.rstrip() for line in messages if line.strip()]
    for line in said:
        logger.debug("%s", line)
    if code == 0 and last.get("event") == "result":
        return {name: value for name, value in last.items() if name != "event"}
    raise _error(code, last, task=task, said=said[-_STDERR_LINES:], memory=memory or _memory)


def _converse(
    worker: subprocess.Popen[str], request: Mapping[str, Any], *, task: str, progress: ShowProgress | None
) -> dict[str, Any]:
    """Send the request, pass progress on and return the last other event."""
    stdin, stdout = _pipes(worker)
    try:
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
    except BrokenPipeError:
        # The worker died at once; its exit code, read by the caller, says why.
        return {}
    last: dict[str, Any] = {}
    for line in stdout:
        if not line.endswith("\n"):
            # The worker died while it wrote; its exit code says why.
            break
        event = json.loads(line)
        if event["event"] != "progress":
            last = event
        elif progress is not None:
            progress(Progress(task=task, phase=event["phase"], fraction=event["fraction"]))
    return last


def _pipes(worker: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    return worker.stdin, worker.stdout


def _stop(worker: subprocess.Popen[str]) -> None:
    """End the worker: by closing its stdin, and by force if it does not answer."""
    stdin, stdout = _pipes(worker)
    try:
        stdin.close()
    except BrokenPipeError:
        logger.debug("the builder had ended before it was told to stop")
    try:
        worker.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
    stdout.close()


def _error(
    code: int, last: Mapping[str, Any], *, task: str, said: list[str], memory: Callable[[], str]
) -> errors.P4QEdgeError:
    """Return the error that an exit code and a last event mean."""
    if last.get("event") == "error":
        kind = getattr(errors, last["kind"])
        error: errors.P4QEdgeError = kind(last["message"])
        return error
    if code in _KILLED:
        return errors.EnvironmentNotAbleError(
            f"{task}: the builder was killed by the system, as happens when memory runs out ({memory()}). "
            "Give a smaller --workspace-mib or --max-batch, close the desktop and other programs, or add swap; then "
            "build again."
        )
    tail = " | ".join(said) or "it said nothing"
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return errors.P4QEdgeError(
        f"{task}: the builder ended with {name}: {tail}. Run `p4q-edge doctor`, and report this if it stays."
    )


def _memory(path: Path = Path("/proc/meminfo")) -> str:
    """Return total and available memory and swap in words."""
    if not path.is_file():
        return "memory unknown"
    kib = {}
    for line in path.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    parts = (("MemTotal", "memory"), ("MemAvailable", "available now"), ("SwapTotal", "swap"))
    return ", ".join(f"{label} {kib.get(name, 0) >> 10} MiB" for name, label in parts)
