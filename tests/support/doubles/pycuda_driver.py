"""`pycuda.driver` over host memory; its names are compared with the real library in tests/compiler/contract."""

from __future__ import annotations

import ctypes
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class Allocation:
    def __init__(self, log: list[str], size: int) -> None:
        self._log = log
        self._buffer = ctypes.create_string_buffer(size)

    def __int__(self) -> int:
        return ctypes.addressof(self._buffer)

    def free(self) -> None:
        self._log.append("free")


class Pinned(np.ndarray):
    """A pinned array; `base` is what pycuda frees."""

    @property
    def base(self) -> Any:
        return SimpleNamespace(free=lambda: Driver.log.append("free pinned"))


class Driver(ModuleType):
    """`pycuda.driver` over host memory."""

    log: list[str]
    Error = type("Error", (Exception,), {})
    MemoryError = type("MemoryError", (Error,), {})
    device_attribute = SimpleNamespace(INTEGRATED="integrated")

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        Driver.log = []
        self.fail: Exception | None = None
        self.count = 1
        driver = self

        class Context:
            def push(self) -> None:
                driver._act("push")

            @staticmethod
            def pop() -> None:
                Driver.log.append("pop")

        class Device:
            def __init__(self, index: int) -> None:
                self.index = index

            count = staticmethod(lambda: driver.count)

            def compute_capability(self) -> tuple[int, int]:
                return 8, 7

            def name(self) -> str:
                return "Orin"

            def total_memory(self) -> int:
                return 8 << 30

            def get_attribute(self, attribute: str) -> int:
                return int(attribute == "integrated")

            def retain_primary_context(self) -> Context:
                Driver.log.append("retain")
                return Context()

        class Stream:
            handle = 66

            def __init__(self, flags: int) -> None:
                assert flags == 1

            def synchronize(self) -> None:
                driver._act("synchronize")

        class Event:
            def record(self, stream: Stream) -> None:
                driver._act("record")

            def synchronize(self) -> None:
                driver._act("event synchronize")

            def time_till(self, end: Event) -> float:
                return 2.5

        self.Context, self.Device, self.Stream, self.Event = Context, Device, Stream, Event

    def _act(self, what: str) -> None:
        Driver.log.append(what)
        if self.fail is not None:
            raise self.fail

    def init(self) -> None:
        self._act("init")

    def get_driver_version(self) -> int:
        return 12060

    def get_version(self) -> tuple[int, int, int]:
        return 12, 6, 0

    def mem_get_info(self) -> tuple[int, int]:
        return 3, 8

    def mem_alloc(self, size: int) -> Allocation:
        self._act("mem_alloc")
        return Allocation(Driver.log, size)

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        self._act("pagelocked_empty")
        return np.zeros(shape, dtype).view(Pinned)

    def memcpy_htod_async(self, dest: int, src: np.ndarray, stream: Any) -> None:
        self._act("htod")
        ctypes.memmove(dest, src.ctypes.data, src.nbytes)

    def memcpy_dtoh_async(self, dest: np.ndarray, src: int, stream: Any) -> None:
        self._act("dtoh")
        ctypes.memmove(dest.ctypes.data, src, dest.nbytes)
