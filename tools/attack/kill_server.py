"""Runs `p4q-edge` in children that end themselves with SIGKILL, at a boundary of a write or after a time.

Everything is imported once and each command is a fork of that, so that a kill meets the work and not the imports. A
boundary is before and after each call of the system that changes a folder or reaches the disk, and before, in the
middle of and after each write to a file.

Started by `kill.py`; reads requests and answers them as lines of JSON.
"""

from __future__ import annotations

import builtins
import ctypes
import importlib
import io
import json
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "truncate", "ftruncate", "link", "symlink")
ORPHANS_S = 20.0
_PR_SET_CHILD_SUBREAPER = 36


class Boundaries:
    """Counts boundaries and ends this process at the chosen one."""

    def __init__(self, at: int) -> None:
        self._at, self.passed = at, 0

    def reach(self) -> None:
        """Be at the next boundary."""
        if self.passed == self._at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def around(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function with a boundary before and after it."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.reach()
            result = own(*arguments, **keywords)
            self.reach()
            return result

        return call

    def install(self) -> None:
        """Put boundaries around the calls of this process."""
        for name in CALLS:
            setattr(os, name, self.around(getattr(os, name)))
        own = io.open

        def opened(file: Any, mode: str = "r", buffering: int = -1, *others: Any, **keywords: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wxa+"):
                return own(file, mode, buffering, *others, **keywords)
            raw = _Torn(file, mode.replace("b", "").replace("t", ""), self)
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *others, **keywords)

        io.open = builtins.open = opened


class _Torn(io.FileIO):
    """A file whose writes have a boundary before them, after half of the bytes, and behind."""

    def __init__(self, file: Any, mode: str, boundaries: Boundaries) -> None:
        super().__init__(file, mode)
        self._boundaries = boundaries

    def write(self, data: Any, /) -> int:
        whole = memoryview(data).cast("B")
        half = len(whole) // 2
        self._boundaries.reach()
        written = super().write(whole[:half])
        self._boundaries.reach()
        if written == half:
            written += super().write(whole[half:])
        self._boundaries.reach()
        return written


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run one command in a child.

    Args:
        request: `arguments` of `p4q-edge`; `cache`, its folder; `at`, the boundary, -1 for none; `seconds`, after
            which it is killed, or None; `errors`, the file that its stderr goes to.

    Returns:
        `code`, negative for the signal that ended it; `boundaries` that it passed; `orphans`, whether something that
        it started still ran long after; `seconds` that it took.
    """
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reading)
        _work(request, writing)
    os.close(writing)
    code = _wait(child, request["seconds"])
    took = time.monotonic() - started
    with os.fdopen(reading) as stream:
        passed = int(stream.read() or -1)
    return {"code": code, "boundaries": passed, "orphans": not _all_ended(), "seconds": took}


def _work(request: dict[str, Any], writing: int) -> None:
    os.set_inheritable(writing, False)
    os.environ["P4Q_EDGE_CACHE"] = request["cache"]
    os.chdir(Path(request["cache"]).parent)
    for number, path in ((1, os.devnull), (2, request["errors"])):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, number)
    from p4q_edge.runtime.cli.main import main

    boundaries = Boundaries(request["at"])
    boundaries.install()
    code = 1
    try:
        code = main(request["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os.write(writing, str(boundaries.passed).encode())
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, seconds: float | None) -> int:
    """Wait for the child, which is killed after a time; return its code."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is not None and time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    if end is not None:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _all_ended() -> bool:
    """Return whether what the command started ends by itself; this process inherits it from a killed parent."""
    end = time.monotonic() + ORPHANS_S
    while time.monotonic() < end:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        time.sleep(0.005)
    return False


def _import_all(package: str, *, without: tuple[str, ...] = ()) -> None:
    """Import the modules of a package, which each command would import for itself after its fork."""
    import numpy  # noqa: F401
    import onnxruntime  # noqa: F401
    import PIL.Image
    import PIL.PngImagePlugin  # noqa: F401

    left_out = tuple(f"{package}.{name}" for name in without)
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if not module.name.startswith(left_out):
            importlib.import_module(module.name)


def _warm_up() -> None:
    """Trace the smallest module: most of the time of an export goes to what the tracer imports then."""
    import torch

    from p4q_edge.graph.trace import trace_float_graph

    class Smallest(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            found = image.float().mean((2, 3))
            return found, found + 1, found + 2

    trace_float_graph(Smallest(), (8, 8))


def main() -> int:
    """Import what commands need, say so, and serve until stdin ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _import_all("p4q_edge.runtime", without=("http", "serving", "engines", "builders.tensorrt", "hub"))
    _import_all("p4q_edge.runtime.engines.onnxruntime")
    if "toolkit" in sys.argv[1:]:
        import sklearn.datasets  # noqa: F401

        for room in ("cli", "stages", "evaluation", "learning", "graph"):
            _import_all(f"p4q_edge.{room}")
        _warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
