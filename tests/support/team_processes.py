"""Two processes as torchrun starts them, and what they wrote."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 300
# One thread each, as torchrun sets it: features are compared bit by bit.
PLAIN = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


@dataclass(frozen=True)
class Ended:
    """An ended process."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Lines with which p4q-edge ends."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


def start_pair(arguments: Sequence[str]) -> tuple[Ended, Ended]:
    """Run Python with arguments in two processes that have torchrun's variables, without its watching."""
    first, second = start_team(arguments, 2)
    return first, second


def start_team(arguments: Sequence[str], size: int) -> list[Ended]:
    """The same in as many processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**PLAIN, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    return [Ended(code=p.returncode, out=out, err=err) for p, (out, err) in _communicate(processes)]


def _communicate(processes: list[subprocess.Popen[str]]) -> list[tuple[subprocess.Popen[str], tuple[str, str]]]:
    try:
        return [(process, process.communicate(timeout=TIMEOUT_S)) for process in processes]
    finally:
        for process in processes:
            process.kill()


def alone(arguments: Sequence[str]) -> Ended:
    """Run p4q-edge in one process."""
    command = [sys.executable, "-m", "p4q_edge", *arguments]
    ended = subprocess.run(command, env=PLAIN, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return Ended(code=ended.returncode, out=ended.stdout, err=ended.stderr)


def torchrun(
    arguments: Sequence[str], *, killed: int | None = None, when: Callable[[], bool] = lambda: False
) -> tuple[Ended, float]:
    """Run p4q-edge in two processes of torchrun; return what came of it, and the seconds since one was killed.

    Args:
        arguments: of p4q-edge.
        killed: rank of the process that is killed, None kills none.
        when: says so.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "p4q_edge"]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, *arguments], env=PLAIN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        if killed is not None:
            while not when() and process.poll() is None and time.monotonic() < started + TIMEOUT_S:
                time.sleep(0.02)
            os.kill(_worker(process.pid, killed), signal.SIGKILL)
            started = time.monotonic()
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    return Ended(code=process.returncode, out=out, err=err), time.monotonic() - started


def _worker(parent: int, rank: int) -> int:
    """The process of a rank below torchrun's."""
    for task in Path(f"/proc/{parent}/task").iterdir():
        for word in (task / "children").read_text().split():
            if f"RANK={rank}".encode() in Path(f"/proc/{word}/environ").read_bytes().split(b"\0"):
                return int(word)
    raise AssertionError(f"torchrun has no process of rank {rank}")
