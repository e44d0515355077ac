"""`Cuda` over host memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from p4q_edge.runtime.engines.cuda.base import Captured, DeviceFacts
from p4q_edge.runtime.errors import P4QEdgeError


class RecordingCuda:
    """`Cuda` over host memory: streams run at once, captures are replayed, every call is recorded."""

    name = "recording"

    def __init__(self, **facts: Any) -> None:
        known = {
            "index": 0,
            "name": "Orin",
            "compute_capability": "8.7",
            "total_memory_bytes": 8 << 30,
            "integrated": True,
            "driver_version": "12.6",
            "runtime_version": "12.6",
        }
        self.facts = DeviceFacts(**{**known, **facts})
        self.calls: list[str] = []
        self.memory_by_address: dict[int, np.ndarray] = {}
        self.pinned: list[int] = []
        self.open_streams = 0
        self.open_events = 0
        self.open_graphs = 0
        self.current_depth = 0
        self.capturing: list[Callable[[], None]] | None = None
        self.refuse_capture: str | None = None
        self.fail_at: tuple[str, int] | None = None
        self._next_address = 4096

    def _call(self, name: str) -> None:
        assert self.current_depth > 0, f"{name} without a current device"
        self.calls.append(name)
        if self.fail_at is not None and self.fail_at[0] == name and self.calls.count(name) == self.fail_at[1]:
            raise P4QEdgeError(f"{name} failed with cudaErrorMemoryAllocation")

    def on_stream(self, work: Callable[[], None]) -> None:
        if self.capturing is not None:
            self.capturing.append(work)
        else:
            work()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self.current_depth += 1
        try:
            yield
        finally:
            self.current_depth -= 1

    def memory(self) -> tuple[int, int]:
        return 6 << 30, 8 << 30

    def create_stream(self) -> str:
        self._call("create_stream")
        self.open_streams += 1
        return "stream"

    def stream_handle(self, stream: str) -> int:
        return 77

    def synchronize(self, stream: str) -> None:
        self._call("synchronize")

    def destroy_stream(self, stream: str) -> None:
        self._call("destroy_stream")
        self.open_streams -= 1

    def allocate(self, size_bytes: int) -> int:
        self._call("allocate")
        self._next_address += 1 << 20
        self.memory_by_address[self._next_address] = np.zeros(size_bytes, np.uint8)
        return self._next_address

    def free(self, address: int) -> None:
        self._call("free")
        del self.memory_by_address[address]

    def allocate_pinned(self, size_bytes: int) -> np.ndarray:
        self._call("allocate_pinned")
        array = np.zeros(size_bytes, np.uint8)
        self.pinned.append(array.ctypes.data)
        return array

    def free_pinned(self, array: np.ndarray) -> None:
        self._call("free_pinned")
        self.pinned.remove(array.ctypes.data)

    def copy_to_device(self, address: int, source: np.ndarray, stream: str) -> None:
        self._call("copy_to_device")
        assert source.flags.c_contiguous

        def copy() -> None:
            self.memory_by_address[address][: source.nbytes] = source.view(np.uint8).reshape(-1)

        self.on_stream(copy)

    def copy_to_host(self, target: np.ndarray, address: int, stream: str) -> None:
        self._call("copy_to_host")
        flat = target.reshape(-1).view(np.uint8)
        assert np.shares_memory(flat, target)

        def copy() -> None:
            flat[:] = self.memory_by_address[address][: flat.size]

        self.on_stream(copy)

    def capture(self, stream: str, enqueue: Callable[[], None]) -> Captured:
        self._call("capture")
        if self.refuse_capture is not None:
            return Captured(graph=None, refusal=self.refuse_capture)
        self.capturing = []
        try:
            enqueue()
            work = self.capturing
        except P4QEdgeError as error:
            return Captured(graph=None, refusal=str(error))
        finally:
            self.capturing = None
        self.open_graphs += 1
        return Captured(graph=work, refusal=None)

    def launch(self, graph: list[Callable[[], None]], stream: str) -> None:
        self._call("launch")
        for work in graph:
            work()

    def destroy_graph(self, graph: Any) -> None:
        self._call("destroy_graph")
        self.open_graphs -= 1

    def create_event(self) -> object:
        self._call("create_event")
        self.open_events += 1
        return object()

    def record_event(self, event: object, stream: str) -> None:
        self._call("record_event")

    def elapsed_ms(self, start: object, end: object) -> float:
        self._call("elapsed_ms")
        return 1.25

    def destroy_event(self, event: object) -> None:
        self._call("destroy_event")
        self.open_events -= 1

    @property
    def leaks(self) -> dict[str, int]:
        """What is still allocated."""
        held = {
            "device": len(self.memory_by_address),
            "pinned": len(self.pinned),
            "streams": self.open_streams,
            "events": self.open_events,
            "graphs": self.open_graphs,
        }
        return {name: count for name, count in held.items() if count}
