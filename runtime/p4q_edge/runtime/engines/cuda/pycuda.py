"""The CUDA backend of `pycuda`, for devices that have it. It has no CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

# Never `pycuda.autoinit`: it makes a context of its own, in which pointers of TensorRT and torch are invalid.
import pycuda.driver as driver

from p4q_edge.runtime.engines.cuda.base import Captured, DeviceFacts, no_driver
from p4q_edge.runtime.errors import P4QEdgeError
from p4q_edge.runtime.machine import select_device, version_text

_STREAM_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, for which pycuda has no name
NO_GRAPHS = "pycuda has no CUDA graph API; leave --cuda-backend out for graphs"


class PyCuda:
    """One GPU through pycuda, in the device's primary context."""

    name = "pycuda"

    def __init__(self, device: int) -> None:
        """Check the driver and read the facts of GPU `device`.

        Raises:
            EnvironmentNotAbleError: no driver or no GPU.
            UsageError: fewer GPUs than `device`.
        """
        try:
            driver.init()
            count = driver.Device.count()
        except driver.Error as error:
            raise no_driver(f"cuInit with {error}") from error
        select_device(count, device)
        gpu = driver.Device(device)
        major, minor = gpu.compute_capability()
        self.facts = DeviceFacts(
            index=device,
            name=gpu.name(),
            compute_capability=f"{major}.{minor}",
            total_memory_bytes=gpu.total_memory(),
            integrated=bool(gpu.get_attribute(driver.device_attribute.INTEGRATED)),
            driver_version=version_text(driver.get_driver_version()),
            runtime_version=".".join(str(part) for part in driver.get_version()[:2]),
        )
        self._context = gpu.retain_primary_context()
        # pycuda frees memory when its object dies, so the objects are kept here by address.
        self._device_memory: dict[int, Any] = {}
        self._pinned_memory: dict[int, npt.NDArray[np.uint8]] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device's primary context current, and what was current before it afterwards."""
        with _failures("pushing the primary context"):
            self._context.push()
        try:
            yield
        finally:
            # pop is a static method: it takes the top of this thread's stack, which is the context just pushed.
            driver.Context.pop()

    def memory(self) -> tuple[int, int]:
        """Return the free and the total device memory in bytes."""
        with _failures("reading the free memory"):
            free, total = driver.mem_get_info()
        return free, total

    def create_stream(self) -> Any:
        """Return a new stream that does not wait for the default stream."""
        with _failures("creating a stream"):
            return driver.Stream(_STREAM_NON_BLOCKING)

    def stream_handle(self, stream: Any) -> int:
        """Return the stream as the integer that TensorRT expects."""
        return int(stream.handle)

    def synchronize(self, stream: Any) -> None:
        """Wait until all work of the stream is done."""
        with _failures("waiting for a stream"):
            stream.synchronize()

    def destroy_stream(self, stream: Any) -> None:
        """Release a stream: pycuda does so when the object dies."""

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory."""
        with _failures(f"allocating {size_bytes} bytes of device memory"):
            allocation = driver.mem_alloc(size_bytes)
        self._device_memory[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        """Release device memory."""
        with _failures("freeing device memory"):
            self._device_memory.pop(address).free()

    def allocate_pinned(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Return new page-locked host memory as (size_bytes,) uint8."""
        with _failures(f"allocating {size_bytes} bytes of pinned memory"):
            array: npt.NDArray[np.uint8] = driver.pagelocked_empty((size_bytes,), np.uint8)
        self._pinned_memory[array.ctypes.data] = array
        return array

    def free_pinned(self, array: npt.NDArray[np.uint8]) -> None:
        """Release memory of `allocate_pinned`; no view of it may be used afterwards."""
        with _failures("freeing pinned memory"):
            self._pinned_memory.pop(array.ctypes.data).base.free()  # type: ignore[union-attr]

    def copy_to_device(self, address: int, source: npt.NDArray[Any], stream: Any) -> None:
        """Start a copy of a contiguous pinned array to the device."""
        with _failures("copying to the device"):
            driver.memcpy_htod_async(address, source, stream)

    def copy_to_host(self, target: npt.NDArray[Any], address: int, stream: Any) -> None:
        """Start a copy from the device into a contiguous pinned array."""
        with _failures("copying from the device"):
            driver.memcpy_dtoh_async(target, address, stream)

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Captured:
        """Refuse: pycuda cannot capture."""
        return Captured(graph=None, refusal=NO_GRAPHS)

    def launch(self, graph: Any, stream: Any) -> None:
        """Never called: `capture` gives no graph."""
        raise AssertionError(NO_GRAPHS)

    def destroy_graph(self, graph: Any) -> None:
        """Never called: `capture` gives no graph."""
        raise AssertionError(NO_GRAPHS)

    def create_event(self) -> Any:
        """Return a new event that can be timed."""
        with _failures("creating an event"):
            return driver.Event()

    def record_event(self, event: Any, stream: Any) -> None:
        """Mark the present end of the stream."""
        with _failures("recording an event"):
            event.record(stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Wait for `end` and return the milliseconds between two recorded events."""
        with _failures("timing two events"):
            end.synchronize()
            return float(start.time_till(end))

    def destroy_event(self, event: Any) -> None:
        """Release an event: pycuda does so when the object dies."""


@contextmanager
def _failures(action: str) -> Iterator[None]:
    """Turn pycuda's errors into ours."""
    try:
        yield
    except driver.MemoryError as error:
        raise P4QEdgeError(f"{action} failed: {error}. Free GPU memory or use a smaller batch.") from error
    except driver.Error as error:
        raise P4QEdgeError(f"{action} failed: {error}. Run `p4q-edge doctor`.") from error
