"""Try a library in a process of its own, which prints what it found as JSON.

A library that was built for another driver may end the process instead of raising, so `p4q-edge doctor` never
imports one into its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_TIMEOUT_S = 120
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


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
    command = [sys.executable, "-m", "p4q_edge.runtime.machine.library_probe", name]
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
    driver = ctypes.CDLL("libcuda.so.1")

    def call(function: str, *arguments: Any) -> None:
        code = getattr(driver, function)(*arguments)
        if code != 0:
            raise OSError(f"{function} of the CUDA driver returned {code}")

    call("cuInit", 0)
    version, count = ctypes.c_int(), ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(version))
    call("cuDeviceGetCount", ctypes.byref(count))
    devices = []
    for index in range(count.value):
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
        major, minor = ctypes.c_int(), ctypes.c_int()
        call("cuDeviceGetName", name, len(name), index)
        call("cuDeviceTotalMem_v2", ctypes.byref(memory), index)
        call("cuDeviceGetAttribute", ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, index)
        call("cuDeviceGetAttribute", ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, index)
        devices.append(
            {
                "name": name.value.decode(errors="replace"),
                "compute_capability": f"{major.value}.{minor.value}",
                "memory_bytes": memory.value,
            }
        )
    if not devices:
        raise OSError("the CUDA driver sees no device")
    return {"cuda": f"{version.value // 1000}.{version.value % 1000 // 10}", "devices": devices}


def _cuda_bindings() -> dict[str, Any]:
    import importlib.metadata

    from cuda.bindings import runtime

    error, count = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaSuccess:
        raise OSError(f"cudaGetDeviceCount returned {error.name}")
    return {"version": importlib.metadata.version("cuda-bindings"), "device_count": count}


def _pycuda() -> dict[str, Any]:
    import pycuda
    import pycuda.driver

    pycuda.driver.init()
    return {"version": pycuda.VERSION_TEXT, "device_count": pycuda.driver.Device.count()}


def _tensorrt() -> dict[str, Any]:
    # Before a device has been counted, TensorRT's runtime returns an object that later ends the process.
    _cuda()
    with contextlib.suppress(ImportError):
        # The CUDA runtime can refuse a driver that is too old for it, although the driver itself works.
        _cuda_bindings()
    import tensorrt

    tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
    return {"version": tensorrt.__version__}


def _onnxruntime() -> dict[str, Any]:
    import onnxruntime

    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


PROBES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "cuda": _cuda,
    "cuda-bindings": _cuda_bindings,
    "pycuda": _pycuda,
    "tensorrt": _tensorrt,
    "onnxruntime": _onnxruntime,
}


def main(arguments: list[str]) -> int:
    """Try the one library named in `arguments` and print its facts, or its problem on stderr."""
    (name,) = arguments
    try:
        facts = PROBES[name]()
    except (ImportError, OSError, RuntimeError, TypeError) as error:
        # TensorRT's factories raise TypeError where they could not make the object.
        sys.stderr.write(f"{type(error).__name__}: {error}\n".replace("\n", " ").strip() + "\n")
        return 1
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
