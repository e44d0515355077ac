"""`cuda.bindings.runtime` over host memory; its names are compared with the real library in tests/compiler/contract."""
# ruff: noqa: N815 the double has CUDA's own names

from __future__ import annotations

import ctypes
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

Status = IntEnum(
    "Status",
    {
        "cudaSuccess": 0,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
        "cudaErrorNoDevice": 100,
        "cudaErrorIllegalAddress": 700,
        "cudaErrorStreamCaptureUnsupported": 900,
    },
)


class Cudart(ModuleType):
    """`cuda.bindings.runtime` over host memory."""

    cudaError_t = Status
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread-local")
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.calls: list[tuple[Any, ...]] = []
        self.fail: dict[str, Status] = {}
        self.count = 2
        self.device = 1
        self.driver_version = 12060
        self.buffers: dict[int, Any] = {}
        self.raise_at_count: RuntimeError | None = None

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            status = self.fail.get(name, Status.cudaSuccess)
            answer = getattr(type(self), f"_{name}", None)
            values = answer(self, *arguments) if answer is not None else ()
            return (status, *(values if status == Status.cudaSuccess else [None] * len(values)))

        call.__name__ = name
        return call

    def _cudaGetDeviceCount(self) -> tuple[int]:
        if self.raise_at_count is not None:
            raise self.raise_at_count
        return (self.count,)

    def _cudaGetDevice(self) -> tuple[int]:
        return (self.device,)

    def _cudaSetDevice(self, device: int) -> tuple[()]:
        self.device = device
        return ()

    def _cudaGetDeviceProperties(self, device: int) -> tuple[Any]:
        properties = SimpleNamespace(name=b"Orin\0\0", major=8, minor=7, totalGlobalMem=8 << 30, integrated=1)
        return (properties,)

    def _cudaDriverGetVersion(self) -> tuple[int]:
        return (self.driver_version,)

    def _cudaRuntimeGetVersion(self) -> tuple[int]:
        return (12090,)

    def _cudaMemGetInfo(self) -> tuple[int, int]:
        return (3, 8)

    def _cudaStreamCreateWithFlags(self, flags: int) -> tuple[int]:
        assert flags == 1
        return (55,)

    def _buffer(self, size: int) -> tuple[int]:
        buffer = ctypes.create_string_buffer(size)
        self.buffers[ctypes.addressof(buffer)] = buffer
        return (ctypes.addressof(buffer),)

    def _cudaMalloc(self, size: int) -> tuple[int]:
        return self._buffer(size)

    def _cudaHostAlloc(self, size: int, flags: int) -> tuple[int]:
        return self._buffer(size)

    def _cudaFree(self, address: int) -> tuple[()]:
        del self.buffers[address]
        return ()

    _cudaFreeHost = _cudaFree

    def _cudaMemcpyAsync(self, target: int, source: int, count: int, kind: int, stream: int) -> tuple[()]:
        ctypes.memmove(target, source, count)
        return ()

    def _cudaStreamEndCapture(self, stream: int) -> tuple[str]:
        return ("graph",)

    def _cudaGraphInstantiate(self, graph: str, flags: int) -> tuple[str]:
        assert (graph, flags) == ("graph", 0)
        return ("executable",)

    def _cudaEventCreate(self) -> tuple[str]:
        return ("event",)

    def _cudaEventElapsedTime(self, start: str, end: str) -> tuple[float]:
        return (1.5,)

    def cudaGetErrorString(self, status: Status) -> tuple[Status, bytes]:
        return Status.cudaSuccess, b"in words"

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]
