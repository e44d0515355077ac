"""The parent's side of the builder process, with real processes: events, cancelling, and how a child can die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from p4q_edge.runtime.artifacts.tensorrt_options import TensorRTOptions
from p4q_edge.runtime.builders.tensorrt import worker_process as tensorrt_child
from p4q_edge.runtime.builders.tensorrt.progress import Progress
from p4q_edge.runtime.builders.tensorrt.worker_process import run_worker
from p4q_edge.runtime.errors import ArtifactError, EnvironmentNotAbleError, P4QEdgeError

MEMORY = "memory 7620 MiB, available now 900 MiB, swap 0 MiB"


def _child(code: str) -> list[str]:
    prelude = "import json, os, signal, sys, time\nrequest = json.loads(sys.stdin.readline())\n"
    emit = "def emit(**event):\n    print(json.dumps(event), flush=True)\n"
    return [sys.executable, "-c", prelude + emit + code]


def test_progress_is_shown_and_the_result_returned() -> None:
    shown: list[Progress] = []
    result = run_worker(
        {"action": "build"},
        task="INT8 plan",
        progress=shown.append,
        command=_child(
            "emit(event='progress', phase='Timing', fraction=0.5)\nemit(event='result', asked=request['action'])"
        ),
    )
    assert result == {"asked": "build"}
    assert shown == [Progress(task="INT8 plan", phase="Timing", fraction=0.5)]


def test_progress_without_a_listener_is_ignored() -> None:
    command = _child("emit(event='progress', phase='', fraction=0)\nemit(event='result')")
    assert run_worker({}, task="INT8 plan", command=command) == {}


def test_the_childs_error_is_raised_with_its_class() -> None:
    command = _child("emit(event='error', kind='ArtifactError', message='TensorRT cannot parse')\nsys.exit(4)")
    with pytest.raises(ArtifactError, match="TensorRT cannot parse"):
        run_worker({}, task="INT8 plan", command=command)


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(137)"])
def test_a_killed_child_means_too_little_memory(death: str) -> None:
    with pytest.raises(
        EnvironmentNotAbleError,
        match=rf"INT8 plan: the builder was killed by the system, as happens when memory runs out \({MEMORY}\)\. "
        "Give a smaller --workspace-mib or --max-batch, close the desktop",
    ):
        run_worker({}, task="INT8 plan", command=_child(death), memory=lambda: MEMORY)


def test_a_crash_is_named_with_what_the_child_said_last() -> None:
    command = _child("print('[TRT] corrupt', file=sys.stderr, flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(P4QEdgeError, match=r"INT8 plan: the builder ended with SIGSEGV: \[TRT\] corrupt\. Run"):
        run_worker({}, task="INT8 plan", command=command)


def test_a_child_without_a_result_is_an_error_even_if_it_says_zero() -> None:
    with pytest.raises(P4QEdgeError, match="the builder ended with exit code 0: it said nothing"):
        run_worker({}, task="INT8 plan", command=_child("pass"))


def test_a_child_that_dies_while_it_writes_is_judged_by_its_exit_code() -> None:
    command = _child('sys.stdout.write(\'{"event": "res\'); sys.stdout.flush(); os._exit(9)')
    with pytest.raises(P4QEdgeError, match="the builder ended with exit code 9"):
        run_worker({}, task="INT8 plan", command=command)


def test_a_child_that_never_reads_its_request_is_judged_by_its_exit_code() -> None:
    command = [sys.executable, "-c", "import os; os.close(0); os._exit(3)"]
    with pytest.raises(P4QEdgeError, match="the builder ended with exit code 3"):
        run_worker({"model": "x" * 1_000_000}, task="INT8 plan", command=command)


def test_ctrl_c_tells_the_child_through_its_stdin_and_waits(tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    command = _child(
        "emit(event='progress', phase='', fraction=0)\n"
        f"sys.stdin.read()\nopen({str(stopped)!r}, 'w').close()\nsys.exit(130)"
    )

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_worker({}, task="INT8 plan", command=command, progress=interrupt)
    assert stopped.exists()


def test_a_child_that_does_not_stop_is_killed(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(tensorrt_child, "GRACE_S", 0.2)
    pid = tmp_path / "pid"
    command = _child(
        f"open({str(pid)!r}, 'w').write(str(os.getpid()))\nemit(event='progress', phase='', fraction=0)\ntime.sleep(60)"
    )

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_worker({}, task="INT8 plan", command=command, progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text(encoding="ascii")), 0)


def test_a_real_sigint_in_the_parent_ends_both(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = _child("emit(event='progress', phase='', fraction=0)\nsys.stdin.read()\nsys.exit(130)")
    program = (
        "import pathlib\n"
        "from p4q_edge.runtime.builders.tensorrt.worker_process import run_worker\n"
        f"ready = pathlib.Path({str(ready)!r})\n"
        f"run_worker({{}}, task='INT8 plan', command={child!r}, progress=lambda _: ready.touch())"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    # The parent writes the file itself, from within the loop that the signal must end.
    while not ready.exists() and parent.poll() is None:
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)
    _, said = parent.communicate(timeout=240)
    assert "KeyboardInterrupt" in said
    assert parent.returncode in (130, -signal.SIGINT)


def test_memory_is_described_from_meminfo(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    assert tensorrt_child._memory(path) == "memory unknown"
    path.write_text("MemTotal: 7802880 kB\nMemAvailable: 921600 kB\nSwapTotal: 0 kB\n", encoding="ascii")
    assert tensorrt_child._memory(path) == MEMORY


def test_the_real_worker_starts_and_says_what_it_lacks() -> None:
    """The command that `build` starts, for real: without a GPU it lacks CUDA, with one TensorRT or the model."""
    request = {"action": "build", "options": asdict(TensorRTOptions()), "flavour": "int8"}
    request |= {"model": "/nonexistent", "plan": "/nonexistent", "engine": "/nonexistent"}
    with pytest.raises(P4QEdgeError, match="CUDA|tensorrt|nonexistent"):
        run_worker(request, task="INT8 plan")
