"""Try a library in a process of its own, which prints what it found as JSON.

A library that was built for another driver may end the process instead of raising, so `p4q-edge doctor` never
imports one into its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from p4q_edge.runtime.errors import EnvironmentNotAbleError, P4QEdgeError
from p4q_edge.runtime.machine.advice import refused_by_driver
from p4q_edge.runtime.machine.child import child_command
from p4q_edge.runtime.machine.cuda_driver import open_driver, select_device, version_text
from p4q_edge.runtime.machine.unreported import import_openvino_unreported

_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What trying a library gave: facts, or the problem that it met."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def works(self) -> bool:
        """Whether the library can be used."""
        return self.problem is None


def run_probe(name: str) -> Probe:
    """Try the library `name` (a key of `PROBES`) in a child process; its death is a problem like any other."""
    command = child_command("p4q_edge.runtime.machine.library_probe", name)
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Probe(problem=f"no answer within {_TIMEOUT_S} s")
    lines = child.stdout.splitlines()
    if child.returncode == 0 and lines:
        # The last line is ours; libraries may have printed before it.
        return Probe(facts=json.loads(lines[-1]))
    if child.returncode < 0:
        return Probe(problem=f"ended by signal {-child.returncode}")
    errors = child.stderr.strip().splitlines()
    return Probe(problem=errors[-1] if errors else f"exit code {child.returncode}")


def _cuda() -> dict[str, Any]:
    """Ask the driver itself, which needs no Python package."""
    driver = open_driver()
    devices = driver.devices()
    select_device(devices, 0)
    return {"cuda": version_text(driver.version()), "devices": devices}


def _tensorrt() -> dict[str, Any]:
    # Before a device has been counted, TensorRT's runtime returns an object that later ends the process.
    driver = _cuda()["cuda"]
    import tensorrt

    log = tensorrt.Logger(tensorrt.Logger.ERROR)
    try:
        # Its runtime starts on a driver that is too old for it, and fails later; its builder does not.
        tensorrt.Builder(log)
    except TypeError as error:
        raise EnvironmentNotAbleError(refused_by_driver(tensorrt.__version__, driver=driver)) from error
    return {"version": tensorrt.__version__}


def _tensorrt_rtx() -> dict[str, Any]:
    # It compiles without a GPU and without a driver, so neither is asked.
    import tensorrt_rtx_bindings

    tensorrt_rtx_bindings.Builder(tensorrt_rtx_bindings.Logger(tensorrt_rtx_bindings.Logger.ERROR))
    return {"version": tensorrt_rtx_bindings.__version__}


def _onnxruntime() -> dict[str, Any]:
    import onnxruntime

    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


def _openvino() -> dict[str, Any]:
    openvino: Any = import_openvino_unreported()
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {"version": openvino.get_version(), "capabilities": [str(one) for one in capabilities]}


PROBES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "cuda": _cuda,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the one library named in `arguments` (the process's own) and print its facts, or its problem on stderr."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    try:
        facts = PROBES[name]()
    except P4QEdgeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (ImportError, OSError, RuntimeError, TypeError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n".replace("\n", " ").strip() + "\n")
        return 1
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
