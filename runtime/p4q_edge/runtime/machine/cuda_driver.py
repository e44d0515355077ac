"""NVIDIA's driver library through ctypes. Every driver brings it, so that a Jetson needs no CUDA package of Python."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

from p4q_edge.runtime.errors import EnvironmentNotAbleError, P4QEdgeError, UsageError
from p4q_edge.runtime.machine.advice import NO_DRIVER, OLD_DRIVER, ON_THE_CPU

LIBRARY = "libcuda.so.1"
OLDEST_DRIVER = 11040
"""CUDA 11.4, whose driver is the first with every function below."""

_DEVICE, _HANDLE, _ADDRESS = c_int, c_void_p, c_uint64
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(_DEVICE), c_int),
    "cuDeviceGetName": (c_char_p, c_int, _DEVICE),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), _DEVICE),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, _DEVICE),
    "cuDevicePrimaryCtxRetain": (POINTER(_HANDLE), _DEVICE),
    "cuCtxPushCurrent_v2": (_HANDLE,),
    "cuCtxPopCurrent_v2": (POINTER(_HANDLE),),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(_ADDRESS), c_size_t),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostAlloc": (POINTER(_HANDLE), c_size_t, c_uint),
    "cuMemFreeHost": (_HANDLE,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _HANDLE, c_size_t, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (_HANDLE, _ADDRESS, c_size_t, _HANDLE),
    "cuStreamCreate": (POINTER(_HANDLE), c_uint),
    "cuStreamSynchronize": (_HANDLE,),
    "cuStreamDestroy_v2": (_HANDLE,),
    "cuStreamBeginCapture_v2": (_HANDLE, c_int),
    "cuStreamEndCapture": (_HANDLE, POINTER(_HANDLE)),
    "cuGraphInstantiateWithFlags": (POINTER(_HANDLE), _HANDLE, c_ulonglong),
    "cuGraphDestroy": (_HANDLE,),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuEventCreate": (POINTER(_HANDLE), c_uint),
    "cuEventRecord": (_HANDLE, _HANDLE),
    "cuEventSynchronize": (_HANDLE,),
    "cuEventElapsedTime": (POINTER(c_float), _HANDLE, _HANDLE),
    "cuEventDestroy_v2": (_HANDLE,),
}
"""Types of the arguments, as in NVIDIA's cuda.h of 11.4 to 13; every function returns a CUresult."""

_SUCCESS, _OUT_OF_MEMORY, _NO_DEVICE = 0, 2, 100
_INTEGRATED, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 18, 75, 76  # CUdevice_attribute


class CudaDriver:
    """The driver's functions; `call` raises where one fails."""

    def __init__(self, library: Any) -> None:
        """Declare the functions of a loaded library.

        Raises:
            AttributeError: it lacks one.
        """
        self._functions = {}
        for name, types in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, c_int
            self._functions[name] = function

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function and return its CUresult."""
        return int(self._functions[name](*arguments))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises:
            P4QEdgeError: it failed; the message has its name and CUDA's own error.
        """
        status = self.status(name, *arguments)
        if status != _SUCCESS:
            advice = "Free GPU memory or use a smaller batch." if status == _OUT_OF_MEMORY else "Run `p4q-edge doctor`."
            raise P4QEdgeError(f"{name} failed with {self.describe(status)}. {advice}")

    def value(self, name: str, kind: Any, *arguments: Any) -> Any:
        """Call a function whose first argument receives a value of a ctypes `kind`, and return the value."""
        found = kind()
        self.call(name, ctypes.byref(found), *arguments)
        return found.value

    def describe(self, status: int) -> str:
        """Return the name of a CUresult and what it means."""
        texts = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = c_char_p()
            self.status(name, status, ctypes.byref(text))
            texts.append((text.value or b"").decode(errors="replace"))
        name, meaning = texts
        return f"{name or f'CUresult {status}'} ({meaning})" if meaning else name or f"CUresult {status}"

    def version(self) -> int:
        """Return the newest CUDA that the driver runs, as 12060."""
        return int(self.value("cuDriverGetVersion", c_int))

    def devices(self) -> list[dict[str, Any]]:
        """Return `name`, `compute_capability` (as `8.7`), `memory_bytes` and `integrated` of every GPU."""
        count = self.value("cuDeviceGetCount", c_int)
        return [self._device(self.value("cuDeviceGet", _DEVICE, index)) for index in range(count)]

    def _device(self, device: int) -> dict[str, Any]:
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, len(name), device)
        major, minor, integrated = (
            self.value("cuDeviceGetAttribute", c_int, attribute, device)
            for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _INTEGRATED)
        )
        return {
            "name": name.value.decode(errors="replace"),
            "compute_capability": f"{major}.{minor}",
            "memory_bytes": self.value("cuDeviceTotalMem_v2", c_size_t, device),
            "integrated": bool(integrated),
        }


def open_driver() -> CudaDriver:
    """Load and initialize the driver's library.

    Raises:
        EnvironmentNotAbleError: there is no driver, or it is too old, or it does not start; the message tells which.
    """
    try:
        loaded = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise EnvironmentNotAbleError(f"{NO_DRIVER} ({error}). {ON_THE_CPU}") from error
    try:
        driver = CudaDriver(loaded)
    except AttributeError as error:
        raise EnvironmentNotAbleError(
            f"{OLD_DRIVER}: it lacks a function of CUDA {version_text(OLDEST_DRIVER)} ({error}). {ON_THE_CPU}"
        ) from error
    version = driver.version()
    if not version:
        # The stub for linking and a container without GPU have a library and nothing behind it.
        raise EnvironmentNotAbleError(
            f"{NO_DRIVER} ({LIBRARY} is there and knows of none: a container without --runtime nvidia?). {ON_THE_CPU}"
        )
    if version < OLDEST_DRIVER:
        raise EnvironmentNotAbleError(
            f"{OLD_DRIVER}: expected one for CUDA {version_text(OLDEST_DRIVER)} or newer, it is for CUDA "
            f"{version_text(version)}. {ON_THE_CPU}"
        )
    status = driver.status("cuInit", 0)
    if status == _NO_DEVICE:
        raise EnvironmentNotAbleError(
            f"expected a GPU, and the driver for CUDA {version_text(version)} finds none. {ON_THE_CPU}"
        )
    if status != _SUCCESS:
        raise EnvironmentNotAbleError(
            f"the CUDA driver (for CUDA {version_text(version)}) does not start: {driver.describe(status)}. After an "
            f"update of the driver restart the machine. {ON_THE_CPU}"
        )
    return driver


def select_device(devices: Sequence[object] | int, device: int) -> None:
    """Raise unless there is a GPU of this index among `devices` (or as many).

    Raises:
        EnvironmentNotAbleError: there is no GPU.
        UsageError: there are fewer.
    """
    count = devices if isinstance(devices, int) else len(devices)
    if count == 0:
        raise EnvironmentNotAbleError(f"expected a GPU, and CUDA finds none. {ON_THE_CPU}")
    if not 0 <= device < count:
        raise UsageError(f"expected a GPU index of 0 to {count - 1}, got {device}.")


def version_text(number: int) -> str:
    """Return CUDA's version number (12060) as text (12.6)."""
    return f"{number // 1000}.{number % 1000 // 10}"
