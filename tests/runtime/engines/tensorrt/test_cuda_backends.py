"""Both CUDA backends against doubles of their libraries: calls, errors, captures and cleanup.

The names of the doubles are checked against the real libraries in tests/compiler/contract.
"""
# ruff: noqa: N815 the doubles have CUDA's own names

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from p4q_edge.runtime.engines.cuda.base import version_text
from p4q_edge.runtime.engines.cuda.device import open_cuda
from p4q_edge.runtime.errors import EnvironmentNotAbleError, P4QEdgeError, UsageError

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
        return (12060,)

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


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cudart]:
    runtime = Cudart()
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = runtime  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    yield from _reimported(monkeypatch, "bindings", runtime)


def _reimported(monkeypatch: pytest.MonkeyPatch, name: str, double: Any) -> Iterator[Any]:
    """Make the backend import the double now and the real library afterwards."""
    module = f"p4q_edge.runtime.engines.cuda.{name}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    yield double
    sys.modules.pop(module, None)


def test_the_default_backend_reads_the_facts_of_the_gpu(cudart: Cudart) -> None:
    cuda = open_cuda(device=1)
    assert cuda.name == "cuda-bindings"
    assert cudart.names[0] == "cudaGetDeviceCount"
    facts = cuda.facts
    assert (facts.index, facts.name, facts.compute_capability, facts.integrated) == (1, "Orin", "8.7", True)
    assert (facts.driver_version, facts.runtime_version, facts.total_memory_bytes) == ("12.6", "12.9", 8 << 30)


def test_a_round_trip_uses_pinned_memory_and_releases_all(cudart: Cudart) -> None:
    cuda = open_cuda()
    with cuda.current():
        assert cudart.device == 0
        assert cuda.memory() == (3, 8)
        stream = cuda.create_stream()
        assert cuda.stream_handle(stream) == 55
        host, address = cuda.allocate_pinned(12), cuda.allocate(12)
        assert (host.shape, host.dtype) == ((12,), np.uint8)
        values = host.view(np.float32)
        values[:] = [1, 2, 3]
        cuda.copy_to_device(address, values, stream)
        values[:] = 0
        cuda.copy_to_host(values, address, stream)
        cuda.synchronize(stream)
        assert values.tolist() == [1, 2, 3]
        start, end = cuda.create_event(), cuda.create_event()
        cuda.record_event(start, stream)
        cuda.record_event(end, stream)
        assert cuda.elapsed_ms(start, end) == 1.5
        for event in (start, end):
            cuda.destroy_event(event)
        cuda.free_pinned(host)
        cuda.free(address)
        cuda.destroy_stream(stream)
    assert cudart.device == 1  # what was current before
    assert cudart.buffers == {}
    copies = [call for call in cudart.calls if call[0] == "cudaMemcpyAsync"]
    assert [(count, kind, stream) for *_, count, kind, stream in copies] == [(12, 1, 55), (12, 2, 55)]


def test_the_device_that_was_current_returns_after_an_error(cudart: Cudart) -> None:
    cuda = open_cuda()
    with pytest.raises(KeyError), cuda.current():
        raise KeyError
    assert cudart.device == 1


def test_a_failed_call_is_named_with_cudas_words_and_cleared(cudart: Cudart) -> None:
    cuda = open_cuda()
    cudart.fail["cudaMalloc"] = Status.cudaErrorMemoryAllocation
    with pytest.raises(
        P4QEdgeError,
        match=r"cudaMalloc failed with cudaErrorMemoryAllocation \(in words\)\. Free GPU memory or use a smaller batch",
    ):
        cuda.allocate(8)
    assert cudart.names[-1] == "cudaGetLastError"
    cudart.fail["cudaStreamSynchronize"] = Status.cudaErrorIllegalAddress
    with pytest.raises(P4QEdgeError, match=r"cudaStreamSynchronize failed with cudaErrorIllegalAddress .* doctor"):
        cuda.synchronize(55)


def test_a_capture_is_thread_local_instantiated_and_its_template_released(cudart: Cudart) -> None:
    cuda = open_cuda()
    cudart.calls.clear()
    captured = cuda.capture(55, lambda: cudart.calls.append(("enqueue",)))
    assert (captured.graph, captured.refusal) == ("executable", None)
    assert cudart.calls == [
        ("cudaStreamBeginCapture", 55, "thread-local"),
        ("enqueue",),
        ("cudaStreamEndCapture", 55),
        ("cudaGraphInstantiate", "graph", 0),
        ("cudaGraphDestroy", "graph"),
    ]
    cuda.launch(captured.graph, 55)
    cuda.destroy_graph(captured.graph)
    assert cudart.calls[-2:] == [("cudaGraphLaunch", "executable", 55), ("cudaGraphExecDestroy", "executable")]


def test_a_capture_that_cuda_refuses_gives_its_reason_and_a_clean_stream(cudart: Cudart) -> None:
    cuda = open_cuda()
    cudart.fail["cudaStreamEndCapture"] = Status.cudaErrorStreamCaptureUnsupported
    captured = cuda.capture(55, lambda: None)
    assert captured.graph is None
    assert captured.refusal == "cudaStreamEndCapture answers cudaErrorStreamCaptureUnsupported (in words)"
    assert cudart.names[-2:] == ["cudaStreamEndCapture", "cudaGetLastError"]


def test_work_that_refuses_to_be_captured_gives_its_reason(cudart: Cudart) -> None:
    cuda = open_cuda()

    def enqueue() -> None:
        raise P4QEdgeError("TensorRT cannot run the engine: loops")

    captured = cuda.capture(55, enqueue)
    assert (captured.graph, captured.refusal) == (None, "TensorRT cannot run the engine: loops")
    assert cudart.names[-2:] == ["cudaStreamEndCapture", "cudaGraphDestroy"]
    cudart.fail["cudaStreamEndCapture"] = Status.cudaErrorStreamCaptureUnsupported
    assert cuda.capture(55, enqueue).refusal == "TensorRT cannot run the engine: loops"


def test_a_programming_error_in_a_capture_still_ends_it(cudart: Cudart) -> None:
    cuda = open_cuda()

    def enqueue() -> None:
        raise TypeError("wrong")

    with pytest.raises(TypeError, match="wrong"):
        cuda.capture(55, enqueue)
    assert cudart.names[-1] == "cudaStreamEndCapture"


def test_a_graph_that_cannot_be_instantiated_is_an_error(cudart: Cudart) -> None:
    cuda = open_cuda()
    cudart.fail["cudaGraphInstantiate"] = Status.cudaErrorMemoryAllocation
    with pytest.raises(P4QEdgeError, match="cudaGraphInstantiate failed"):
        cuda.capture(55, lambda: None)
    assert cudart.names[-1] == "cudaGraphDestroy"


def test_without_a_driver_the_error_says_so(cudart: Cudart) -> None:
    cudart.fail["cudaGetDeviceCount"] = Status.cudaErrorInsufficientDriver
    with pytest.raises(
        EnvironmentNotAbleError,
        match=r"CUDA answers cudaGetDeviceCount with cudaErrorInsufficientDriver \(in words\)\. Run `p4q-edge doctor`",
    ):
        open_cuda()
    cudart.raise_at_count = RuntimeError("Failed to dlopen libcuda.so.1")
    with pytest.raises(EnvironmentNotAbleError, match=r"CUDA answers Failed to dlopen libcuda\.so\.1"):
        open_cuda()


def test_without_a_gpu_the_error_offers_the_cpu(cudart: Cudart) -> None:
    cudart.fail["cudaGetDeviceCount"] = Status.cudaErrorNoDevice
    with pytest.raises(EnvironmentNotAbleError, match=r"expected a GPU, and CUDA finds none\. .*out\.onnx"):
        open_cuda()
    cudart.fail.clear()
    with pytest.raises(UsageError, match="expected a GPU index of 0 to 1, got 2"):
        open_cuda(device=2)


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


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    double = Driver()
    package = ModuleType("pycuda")
    package.driver = double  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", double)
    yield from _reimported(monkeypatch, "pycuda", double)


def test_pycuda_uses_the_primary_context_around_each_use(driver: Driver) -> None:
    cuda = open_cuda("pycuda")
    assert (cuda.name, cuda.facts.compute_capability) == ("pycuda", "8.7")
    assert (cuda.facts.driver_version, cuda.facts.runtime_version, cuda.facts.integrated) == ("12.6", "12.6", True)
    assert driver.log == ["init", "retain"]
    with cuda.current():
        stream = cuda.create_stream()
        assert cuda.stream_handle(stream) == 66
        assert cuda.memory() == (3, 8)
        host, address = cuda.allocate_pinned(8), cuda.allocate(8)
        host[:] = 7
        cuda.copy_to_device(address, host, stream)
        host[:] = 0
        cuda.copy_to_host(host, address, stream)
        cuda.synchronize(stream)
        assert host.tolist() == [7] * 8
        start, end = cuda.create_event(), cuda.create_event()
        cuda.record_event(start, stream)
        assert cuda.elapsed_ms(start, end) == 2.5
        cuda.destroy_event(start)
        cuda.free_pinned(host)
        cuda.free(address)
        cuda.destroy_stream(stream)
    assert driver.log[2] == "push"
    assert driver.log[-3:] == ["free pinned", "free", "pop"]


def test_pycuda_refuses_to_capture_and_says_what_could(driver: Driver) -> None:
    cuda = open_cuda("pycuda")
    captured = cuda.capture("stream", lambda: pytest.fail("was run"))
    assert captured.graph is None
    assert captured.refusal == "pycuda has no CUDA graph API; install cuda-bindings for graphs"
    for misuse in (lambda: cuda.launch("graph", "stream"), lambda: cuda.destroy_graph("graph")):
        with pytest.raises(AssertionError):
            misuse()


def test_pycudas_errors_become_ours_and_the_context_is_popped(driver: Driver) -> None:
    cuda = open_cuda("pycuda")
    with cuda.current():
        driver.fail = driver.MemoryError("cuMemAlloc failed: out of memory")
        with pytest.raises(P4QEdgeError, match="allocating 8 bytes of device memory failed: .*Free GPU memory"):
            cuda.allocate(8)
        driver.fail = driver.Error("launch failure")
        with pytest.raises(P4QEdgeError, match="waiting for a stream failed: launch failure. Run `p4q-edge doctor`"):
            cuda.synchronize(cuda.create_stream())
    assert driver.log[-1] == "pop"
    driver.log.clear()
    with pytest.raises(P4QEdgeError, match="pushing the primary context failed"), cuda.current():
        pass
    assert driver.log == ["push"]


def test_pycuda_without_a_driver_or_gpu(driver: Driver) -> None:
    driver.fail = driver.Error("cuInit failed: no CUDA-capable device is detected")
    with pytest.raises(EnvironmentNotAbleError, match="CUDA answers cuInit with cuInit failed: no CUDA-capable"):
        open_cuda("pycuda")
    driver.fail, driver.count = None, 0
    with pytest.raises(EnvironmentNotAbleError, match="CUDA finds none"):
        open_cuda("pycuda")


def test_auto_takes_pycuda_where_cuda_bindings_is_missing(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    _remove_cuda_bindings(monkeypatch)
    assert open_cuda().name == "pycuda"


def test_without_any_backend_both_reasons_and_the_command_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    _remove_cuda_bindings(monkeypatch)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "p4q_edge.runtime.engines.cuda.pycuda", raising=False)
    with pytest.raises(
        EnvironmentNotAbleError, match=r"none can be imported \(cuda\.bindings: .*; pycuda: .*\)\. .*cuda-bindings==12"
    ):
        open_cuda()
    for asked, other in (("cuda-bindings", "pycuda: "), ("pycuda", "cuda.bindings: ")):
        with pytest.raises(EnvironmentNotAbleError, match="none can be imported") as caught:
            open_cuda(asked)  # type: ignore[arg-type]
        assert other not in str(caught.value)
    with pytest.raises(UsageError, match="CUDA backend of auto, cuda-bindings, pycuda, got 'torch'"):
        open_cuda("torch")  # type: ignore[arg-type]


def _remove_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.delitem(sys.modules, "p4q_edge.runtime.engines.cuda.bindings", raising=False)


@pytest.mark.parametrize(("number", "text"), [(12060, "12.6"), (13020, "13.2"), (0, "0.0")])
def test_versions_are_read_as_cuda_writes_them(number: int, text: str) -> None:
    assert version_text(number) == text


def test_importing_the_layer_loads_no_cuda_and_no_tensorrt() -> None:
    program = (
        "import sys, p4q_edge.runtime.builders.tensorrt.builder, p4q_edge.runtime.engines.tensorrt\n"
        "print(sorted({'cuda', 'pycuda', 'tensorrt'} & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
