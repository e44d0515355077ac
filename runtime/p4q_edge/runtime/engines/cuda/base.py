"""The one place through which the runtime reaches CUDA: what it needs of a backend, and which backend it gets.

Two backends implement `Cuda`: NVIDIA's `cuda.bindings` (the default; it has CUDA graphs) and `pycuda` (for devices that
have it already). Both use the device's primary context, so that they share the GPU with torch and with TensorRT, and
neither changes anything but the calling thread's current device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from p4q_edge.runtime.errors import EnvironmentNotAbleError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Backend = Literal["auto", "cuda-bindings", "pycuda"]
BACKENDS: tuple[Backend, ...] = ("auto", "cuda-bindings", "pycuda")


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


def select_device(count: int, device: int) -> None:
    """Raise unless there is a GPU of this index among `count`."""
    if count == 0:
        raise EnvironmentNotAbleError(
            "expected a GPU, and CUDA finds none. Run `p4q-edge doctor`, or build for the CPU: "
            "`p4q-edge build MODEL.p4q --engine out.onnx`."
        )
    if not 0 <= device < count:
        raise UsageError(f"expected a GPU index of 0 to {count - 1}, got {device}.")


def no_driver(detail: str) -> EnvironmentNotAbleError:
    """Return the error for a machine on which CUDA does not answer."""
    return EnvironmentNotAbleError(
        f"expected a CUDA driver and a GPU, and CUDA answers {detail}. Run `p4q-edge doctor`, or build for the CPU: "
        "`p4q-edge build MODEL.p4q --engine out.onnx`."
    )


def version_text(number: int) -> str:
    """Return CUDA's version number (12060) as text (12.6)."""
    return f"{number // 1000}.{number % 1000 // 10}"
