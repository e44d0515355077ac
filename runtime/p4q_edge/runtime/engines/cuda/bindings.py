"""The CUDA backend of NVIDIA's package `cuda.bindings`: the runtime API 12 or 13."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import runtime as cudart

from p4q_edge.runtime.engines.cuda.base import Captured, DeviceFacts, no_driver, old_driver
from p4q_edge.runtime.errors import P4QEdgeError
from p4q_edge.runtime.machine import advice, select_device, version_text


class CudaBindings:
    """One GPU through `cuda.bindings`; the runtime API uses the device's primary context by itself."""

    name = "cuda-bindings"

    def __init__(self, device: int) -> None:
        """Check the driver and read the facts of GPU `device`.

        Raises:
            EnvironmentNotAbleError: no driver, a driver too old for these bindings, or no GPU.
            UsageError: fewer GPUs than `device`.
        """
        try:
            # cuda.bindings loads the driver's library at the first call and raises if there is none.
            status, count = cudart.cudaGetDeviceCount()
        except RuntimeError as error:
            raise no_driver(str(error)) from error
        if status == cudart.cudaError_t.cudaErrorNoDevice:
            count = 0
        elif status == cudart.cudaError_t.cudaErrorInsufficientDriver:
            # The runtime gives this answer without any driver, too; then the version is 0.
            driver = _call(cudart.cudaDriverGetVersion)
            if driver:
                raise old_driver(version_text(driver), version_text(_call(cudart.cudaRuntimeGetVersion)))
            raise no_driver(advice.NO_DRIVER)
        elif status != cudart.cudaError_t.cudaSuccess:
            raise no_driver(f"cudaGetDeviceCount with {_describe(status)}")
        select_device(count, device)
        self.facts = self._read_facts(device)

    def _read_facts(self, device: int) -> DeviceFacts:
        properties = _call(cudart.cudaGetDeviceProperties, device)
        return DeviceFacts(
            index=device,
            name=properties.name.decode().rstrip("\0"),
            compute_capability=f"{properties.major}.{properties.minor}",
            total_memory_bytes=properties.totalGlobalMem,
            integrated=bool(properties.integrated),
            driver_version=version_text(_call(cudart.cudaDriverGetVersion)),
            runtime_version=version_text(_call(cudart.cudaRuntimeGetVersion)),
        )

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current, and what was current before it afterwards."""
        before = _call(cudart.cudaGetDevice)
        _call(cudart.cudaSetDevice, self.facts.index)
        try:
            yield
        finally:
            _call(cudart.cudaSetDevice, before)

    def memory(self) -> tuple[int, int]:
        """Return the free and the total device memory in bytes."""
        free, total = _call(cudart.cudaMemGetInfo)
        return free, total

    def create_stream(self) -> Any:
        """Return a new stream that does not wait for the default stream."""
        return _call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)

    def stream_handle(self, stream: Any) -> int:
        """Return the stream as the integer that TensorRT expects."""
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        """Wait until all work of the stream is done."""
        _call(cudart.cudaStreamSynchronize, stream)

    def destroy_stream(self, stream: Any) -> None:
        """Release a stream."""
        _call(cudart.cudaStreamDestroy, stream)

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory."""
        return int(_call(cudart.cudaMalloc, size_bytes))

    def free(self, address: int) -> None:
        """Release device memory."""
        _call(cudart.cudaFree, address)

    def allocate_pinned(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Return new page-locked host memory as (size_bytes,) uint8."""
        address = _call(cudart.cudaHostAlloc, size_bytes, cudart.cudaHostAllocDefault)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(int(address)))

    def free_pinned(self, array: npt.NDArray[np.uint8]) -> None:
        """Release memory of `allocate_pinned`; no view of it may be used afterwards."""
        _call(cudart.cudaFreeHost, array.ctypes.data)

    def copy_to_device(self, address: int, source: npt.NDArray[Any], stream: Any) -> None:
        """Start a copy of a contiguous pinned array to the device."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _call(cudart.cudaMemcpyAsync, address, source.ctypes.data, source.nbytes, kind, stream)

    def copy_to_host(self, target: npt.NDArray[Any], address: int, stream: Any) -> None:
        """Start a copy from the device into a contiguous pinned array."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call(cudart.cudaMemcpyAsync, target.ctypes.data, address, target.nbytes, kind, stream)

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Captured:
        """Record what `enqueue` puts on the stream instead of running it."""
        # Thread-local: other threads may allocate memory meanwhile, which a global capture would forbid.
        _call(cudart.cudaStreamBeginCapture, stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        refusal = None
        graph = None
        try:
            enqueue()
        except P4QEdgeError as error:
            refusal = str(error)
        finally:
            # A capture that is not ended would leave the stream unusable, whatever `enqueue` raised.
            status, graph = cudart.cudaStreamEndCapture(stream)
        if status != cudart.cudaError_t.cudaSuccess:
            # Reading the last error clears it, or the next call would report it again.
            cudart.cudaGetLastError()
            refusal = refusal or f"cudaStreamEndCapture answers {_describe(status)}"
        if refusal is not None:
            if status == cudart.cudaError_t.cudaSuccess:
                _call(cudart.cudaGraphDestroy, graph)
            return Captured(graph=None, refusal=refusal)
        try:
            return Captured(graph=_call(cudart.cudaGraphInstantiate, graph, 0), refusal=None)
        finally:
            _call(cudart.cudaGraphDestroy, graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """Start a captured graph."""
        _call(cudart.cudaGraphLaunch, graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Release a graph."""
        _call(cudart.cudaGraphExecDestroy, graph)

    def create_event(self) -> Any:
        """Return a new event that can be timed."""
        return _call(cudart.cudaEventCreate)

    def record_event(self, event: Any, stream: Any) -> None:
        """Mark the present end of the stream."""
        _call(cudart.cudaEventRecord, event, stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Wait for `end` and return the milliseconds between two recorded events."""
        _call(cudart.cudaEventSynchronize, end)
        return float(_call(cudart.cudaEventElapsedTime, start, end))

    def destroy_event(self, event: Any) -> None:
        """Release an event."""
        _call(cudart.cudaEventDestroy, event)


def _describe(status: Any) -> str:
    _, text = cudart.cudaGetErrorString(status)
    return f"{status.name} ({text.decode()})"


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the runtime API and return what follows the status: nothing, one value or a tuple."""
    status, *values = function(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        cudart.cudaGetLastError()
        advice = "Free GPU memory or use a smaller batch." if "Memory" in status.name else "Run `p4q-edge doctor`."
        raise P4QEdgeError(f"{function.__name__} failed with {_describe(status)}. {advice}")
    if len(values) == 1:
        return values[0]
    return tuple(values) or None
