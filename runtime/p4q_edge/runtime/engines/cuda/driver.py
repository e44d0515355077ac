"""The default CUDA backend: the driver's own library, which needs nothing installed and no CUDA version to fit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_float, c_size_t, c_uint64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.engines.cuda.base import Captured, DeviceFacts
from p4q_edge.runtime.errors import P4QEdgeError
from p4q_edge.runtime.machine import open_driver, select_device, version_text

_STREAM_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1


class DriverCuda:
    """One GPU through the driver, in the device's primary context, which libraries on CUDA's runtime use as well."""

    name = "driver"

    def __init__(self, device: int) -> None:
        """Check the driver, read the facts of GPU `device` and keep its primary context.

        Raises:
            EnvironmentNotAbleError: no driver, a driver too old, or no GPU.
            UsageError: fewer GPUs than `device`.
        """
        self._driver = open_driver()
        devices = self._driver.devices()
        select_device(devices, device)
        found, version = devices[device], version_text(self._driver.version())
        self.facts = DeviceFacts(
            index=device,
            name=found["name"],
            compute_capability=found["compute_capability"],
            total_memory_bytes=found["memory_bytes"],
            integrated=found["integrated"],
            driver_version=version,
            # The driver is its own runtime.
            runtime_version=version,
        )
        # Never released, as CUDA's runtime does it: TensorRT's objects may die later than this one.
        self._context = self._driver.value("cuDevicePrimaryCtxRetain", c_void_p, device)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device's primary context current, and what was current before it afterwards."""
        self._driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._driver.value("cuCtxPopCurrent_v2", c_void_p)

    def memory(self) -> tuple[int, int]:
        """Return the free and the total device memory in bytes."""
        total = c_size_t()
        free = self._driver.value("cuMemGetInfo_v2", c_size_t, ctypes.byref(total))
        return int(free), total.value

    def create_stream(self) -> Any:
        """Return a new stream that does not wait for the default stream."""
        return self._driver.value("cuStreamCreate", c_void_p, _STREAM_NON_BLOCKING)

    def stream_handle(self, stream: Any) -> int:
        """Return the stream as the integer that TensorRT expects."""
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        """Wait until all work of the stream is done."""
        self._driver.call("cuStreamSynchronize", stream)

    def destroy_stream(self, stream: Any) -> None:
        """Release a stream."""
        self._driver.call("cuStreamDestroy_v2", stream)

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory."""
        return int(self._driver.value("cuMemAlloc_v2", c_uint64, size_bytes))

    def free(self, address: int) -> None:
        """Release device memory."""
        self._driver.call("cuMemFree_v2", address)

    def allocate_pinned(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Return new page-locked host memory as (size_bytes,) uint8."""
        address = self._driver.value("cuMemHostAlloc", c_void_p, size_bytes, 0)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def free_pinned(self, array: npt.NDArray[np.uint8]) -> None:
        """Release memory of `allocate_pinned`; no view of it may be used afterwards."""
        self._driver.call("cuMemFreeHost", array.ctypes.data)

    def copy_to_device(self, address: int, source: npt.NDArray[Any], stream: Any) -> None:
        """Start a copy of a contiguous pinned array to the device."""
        self._driver.call("cuMemcpyHtoDAsync_v2", address, source.ctypes.data, source.nbytes, stream)

    def copy_to_host(self, target: npt.NDArray[Any], address: int, stream: Any) -> None:
        """Start a copy from the device into a contiguous pinned array."""
        self._driver.call("cuMemcpyDtoHAsync_v2", target.ctypes.data, address, target.nbytes, stream)

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Captured:
        """Record what `enqueue` puts on the stream instead of running it."""
        # Thread-local: other threads may allocate memory meanwhile, which a global capture would forbid.
        self._driver.call("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)
        template = c_void_p()
        try:
            refusal = self._record(stream, enqueue, template)
            if refusal is not None:
                return Captured(graph=None, refusal=refusal)
            graph = self._driver.value("cuGraphInstantiateWithFlags", c_void_p, template, 0)
            return Captured(graph=graph, refusal=None)
        finally:
            if template.value:
                self._driver.call("cuGraphDestroy", template)

    def _record(self, stream: Any, enqueue: Callable[[], None], template: c_void_p) -> str | None:
        """Fill `template` with what `enqueue` puts on the capturing stream; return why that is impossible, or None."""
        refusal = None
        try:
            enqueue()
        except P4QEdgeError as error:
            refusal = str(error)
        finally:
            # A capture that is not ended would leave the stream unusable, whatever `enqueue` raised.
            status = self._driver.status("cuStreamEndCapture", stream, ctypes.byref(template))
        if status and refusal is None:
            refusal = f"cuStreamEndCapture answers {self._driver.describe(status)}"
        return refusal

    def launch(self, graph: Any, stream: Any) -> None:
        """Start a captured graph."""
        self._driver.call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Release a graph."""
        self._driver.call("cuGraphExecDestroy", graph)

    def create_event(self) -> Any:
        """Return a new event that can be timed."""
        return self._driver.value("cuEventCreate", c_void_p, 0)

    def record_event(self, event: Any, stream: Any) -> None:
        """Mark the present end of the stream."""
        self._driver.call("cuEventRecord", event, stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Wait for `end` and return the milliseconds between two recorded events."""
        self._driver.call("cuEventSynchronize", end)
        return float(self._driver.value("cuEventElapsedTime", c_float, start, end))

    def destroy_event(self, event: Any) -> None:
        """Release an event."""
        self._driver.call("cuEventDestroy_v2", event)
