"""The one place through which the runtime reaches CUDA: what it needs of a backend, and which backend it gets.

Three backends implement `Cuda`: the driver's own library (the default; it needs no package), NVIDIA's `cuda.bindings`
and `pycuda` (for devices that have it already; it has no CUDA graphs). All use the device's primary context, so that
they share the GPU with torch and with TensorRT, and none changes anything but the calling thread's current device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, get_args

from p4q_edge.runtime.choices import CudaBackend
from p4q_edge.runtime.errors import EnvironmentNotAbleError
from p4q_edge.runtime.machine import advice

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BACKENDS: tuple[CudaBackend, ...] = get_args(CudaBackend)


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What is known of one GPU before any other library touches it."""

    index: int
    name: str
    compute_capability: str
    """As `8.7`."""
    total_memory_bytes: int
    integrated: bool
    """True where the GPU shares the memory of the CPU, as on every Jetson."""
    driver_version: str
    """The newest CUDA version that the driver can run, as `12.6`."""
    runtime_version: str
    """The CUDA version of the backend, as `13.0`."""


@dataclass(frozen=True, kw_only=True)
class Captured:
    """The outcome of a stream capture: a graph that can be launched, or the reason why there is none."""

    graph: Any | None
    refusal: str | None


class Cuda(Protocol):
    """What the TensorRT runtime needs of CUDA.

    Device memory is an integer address. Streams, events and graphs are opaque and belong to the backend that made
    them. Every failed call raises `P4QEdgeError` naming the call and CUDA's own error.
    """

    name: str
    facts: DeviceFacts

    def current(self) -> AbstractContextManager[None]:
        """Make the device current in the calling thread for the duration of a `with` block."""

    def memory(self) -> tuple[int, int]:
        """Return the free and the total device memory in bytes."""

    def create_stream(self) -> Any:
        """Return a new stream that does not wait for the default stream."""

    def stream_handle(self, stream: Any) -> int:
        """Return the stream as the integer that TensorRT expects."""

    def synchronize(self, stream: Any) -> None:
        """Wait until all work of the stream is done."""

    def destroy_stream(self, stream: Any) -> None:
        """Release a stream."""

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory."""

    def free(self, address: int) -> None:
        """Release device memory."""

    def allocate_pinned(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Return new page-locked host memory as (size_bytes,) uint8."""

    def free_pinned(self, array: npt.NDArray[np.uint8]) -> None:
        """Release memory of `allocate_pinned`; no view of it may be used afterwards."""

    def copy_to_device(self, address: int, source: npt.NDArray[Any], stream: Any) -> None:
        """Start a copy of a contiguous pinned array to the device."""

    def copy_to_host(self, target: npt.NDArray[Any], address: int, stream: Any) -> None:
        """Start a copy from the device into a contiguous pinned array."""

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Captured:
        """Record what `enqueue` puts on the stream instead of running it.

        Work that cannot be captured gives a refusal; the stream is usable afterwards either way.
        """

    def launch(self, graph: Any, stream: Any) -> None:
        """Start a captured graph."""

    def destroy_graph(self, graph: Any) -> None:
        """Release a graph."""

    def create_event(self) -> Any:
        """Return a new event that can be timed."""

    def record_event(self, event: Any, stream: Any) -> None:
        """Mark the present end of the stream."""

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Wait for `end` and return the milliseconds between two recorded events."""

    def destroy_event(self, event: Any) -> None:
        """Release an event."""


def no_driver(detail: str) -> EnvironmentNotAbleError:
    """Return the error for a machine on which CUDA does not answer."""
    return EnvironmentNotAbleError(f"expected a CUDA driver and a GPU, and CUDA answers {detail}. {advice.ON_THE_CPU}")


def old_driver(driver_version: str, runtime_version: str) -> EnvironmentNotAbleError:
    """Return the error for a driver that is too old for a library with a CUDA runtime of its own."""
    return EnvironmentNotAbleError(
        f"{advice.OLD_DRIVER}: the library brings CUDA {runtime_version}, the driver runs {driver_version}. Leave "
        f"--cuda-backend out: the driver's own library needs no CUDA package. Or install a newer driver; on a Jetson "
        f"`{advice.newer_driver(jetson=True)}`"
    )
