"""The default CUDA backend over a driver library of host memory: every call goes through ctypes and comes back."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from p4q_edge.runtime.engines.cuda.device import open_cuda
from p4q_edge.runtime.engines.cuda.driver import DriverCuda
from p4q_edge.runtime.errors import EnvironmentNotAbleError, P4QEdgeError, UsageError

from doubles.libcuda import LibCuda


@pytest.fixture
def cuda(libcuda: LibCuda) -> DriverCuda:
    return DriverCuda(1)


def test_it_is_the_default_and_reads_the_facts_of_the_gpu(libcuda: LibCuda) -> None:
    opened = open_cuda(device=1)
    assert opened.name == "driver"
    assert opened.facts == open_cuda("driver", device=1).facts
    facts = opened.facts
    assert (facts.index, facts.name, facts.compute_capability, facts.integrated) == (1, "Orin", "8.7", True)
    assert (facts.driver_version, facts.runtime_version, facts.total_memory_bytes) == ("12.6", "12.6", 8 << 30)
    assert open_cuda().facts.compute_capability == "11.0"
    with pytest.raises(UsageError, match="expected a GPU index of 0 to 1, got 2"):
        open_cuda(device=2)


def test_a_round_trip_uses_pinned_memory_and_releases_all(libcuda: LibCuda, cuda: DriverCuda) -> None:
    with cuda.current():
        assert libcuda.context == 1001
        assert cuda.memory() == ((8 << 30) - 5, 8 << 30)
        stream = cuda.create_stream()
        assert cuda.stream_handle(stream) == 55
        host, back, address = cuda.allocate_pinned(12), cuda.allocate_pinned(12), cuda.allocate(12)
        assert address > 1 << 32, "an address has 64 bits"
        assert (host.shape, host.dtype) == ((12,), np.uint8)
        host.view(np.float32)[:] = [1, 2, 3]
        cuda.copy_to_device(address, host, stream)
        cuda.copy_to_host(back, address, stream)
        cuda.synchronize(stream)
        assert back.view(np.float32).tolist() == [1, 2, 3]
        start, end = cuda.create_event(), cuda.create_event()
        cuda.record_event(start, stream)
        cuda.record_event(end, stream)
        assert cuda.elapsed_ms(start, end) == 1.5
        for event in (start, end):
            cuda.destroy_event(event)
        for array in (host, back):
            cuda.free_pinned(array)
        cuda.free(address)
        cuda.destroy_stream(stream)
    assert (libcuda.unreleased, libcuda.depth) == (0, 0)


def test_a_graph_replays_with_the_data_of_the_moment(libcuda: LibCuda, cuda: DriverCuda) -> None:
    with cuda.current():
        stream = cuda.create_stream()
        host, back, address = cuda.allocate_pinned(8), cuda.allocate_pinned(8), cuda.allocate(8)

        def copies() -> None:
            cuda.copy_to_device(address, host, stream)
            cuda.copy_to_host(back, address, stream)

        captured = cuda.capture(stream, copies)
        assert captured.refusal is None
        for value in (1, 2, 3):
            host[:], back[:] = value, 0
            cuda.launch(captured.graph, stream)
            cuda.synchronize(stream)
            assert (back == value).all()
        cuda.destroy_graph(captured.graph)
        for array in (host, back):
            cuda.free_pinned(array)
        cuda.free(address)
        cuda.destroy_stream(stream)
    assert libcuda.unreleased == 0


def _refuse() -> None:
    raise P4QEdgeError("TensorRT cannot run the engine: loops")


@pytest.mark.parametrize(
    ("failing", "enqueue", "refusal"),
    [
        ("", _refuse, "TensorRT cannot run the engine: loops"),
        ("cuStreamEndCapture", _refuse, "TensorRT cannot run the engine: loops"),
        (
            "cuStreamEndCapture",
            lambda: None,
            "cuStreamEndCapture answers CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED (in words)",
        ),
    ],
)
def test_a_capture_that_fails_gives_its_reason_and_leaves_nothing(
    libcuda: LibCuda, cuda: DriverCuda, failing: str, enqueue: Any, refusal: str
) -> None:
    libcuda.fail(failing, 900)
    with cuda.current():
        stream = cuda.create_stream()
        captured = cuda.capture(stream, enqueue)
        assert (captured.graph, captured.refusal) == (None, refusal)
        cuda.synchronize(stream)  # the stream works on
        cuda.destroy_stream(stream)
    assert libcuda.unreleased == 0


def test_work_that_waits_while_it_is_captured_is_refused(libcuda: LibCuda, cuda: DriverCuda) -> None:
    with cuda.current():
        stream = cuda.create_stream()
        captured = cuda.capture(stream, lambda: cuda.synchronize(stream))
        assert "cuStreamSynchronize failed with CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" in str(captured.refusal)
        cuda.destroy_stream(stream)
    assert libcuda.unreleased == 0


def test_a_graph_that_cannot_be_instantiated_is_an_error_and_its_template_goes(
    libcuda: LibCuda, cuda: DriverCuda
) -> None:
    libcuda.fail("cuGraphInstantiateWithFlags", 2)
    with cuda.current():
        stream = cuda.create_stream()
        with pytest.raises(P4QEdgeError, match="cuGraphInstantiateWithFlags failed with CUDA_ERROR_OUT_OF_MEMORY"):
            cuda.capture(stream, lambda: None)
        with pytest.raises(TypeError, match="wrong"):
            cuda.capture(stream, lambda: (_ for _ in ()).throw(TypeError("wrong")))
        cuda.destroy_stream(stream)
    assert libcuda.unreleased == 0


def test_what_was_current_returns_after_an_error(libcuda: LibCuda, cuda: DriverCuda) -> None:
    def fail() -> None:
        with cuda.current():
            assert libcuda.context == 1001
            raise KeyError

    with DriverCuda(0).current():
        with pytest.raises(KeyError):
            fail()
        assert libcuda.context == 1000
    assert libcuda.depth == 0


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            2,
            r"cuMemAlloc_v2 failed with CUDA_ERROR_OUT_OF_MEMORY \(in words\)\. Free GPU memory or use a smaller batch",
        ),
        (700, r"cuMemAlloc_v2 failed with CUDA_ERROR_ILLEGAL_ADDRESS \(in words\)\. Run `p4q-edge doctor`"),
        (999, r"cuMemAlloc_v2 failed with CUresult 999\. "),
    ],
)
def test_a_failed_call_is_named_with_cudas_words(libcuda: LibCuda, cuda: DriverCuda, status: int, message: str) -> None:
    libcuda.fail("cuMemAlloc_v2", status)
    with cuda.current(), pytest.raises(P4QEdgeError, match=message):
        cuda.allocate(8)


def test_without_a_current_device_a_call_is_an_error(libcuda: LibCuda, cuda: DriverCuda) -> None:
    with pytest.raises(P4QEdgeError, match="cuMemAlloc_v2 failed with CUDA_ERROR_INVALID_CONTEXT"):
        cuda.allocate(8)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda double: double.driver(0), "no CUDA driver is installed (libcuda.so.1 is there and knows of none"),
        (
            lambda double: double.driver(11020),
            "the CUDA driver is too old: expected one for CUDA 11.4 or newer, it is for CUDA 11.2. Run `p4q-edge",
        ),
        (
            lambda double: double.driver(12060, devices=0),
            "expected a GPU, and the driver for CUDA 12.6 finds none. Run `p4q-edge doctor`, or build for the CPU",
        ),
        (
            lambda double: double.fail("cuInit", 803),
            "the CUDA driver (for CUDA 12.6) does not start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (in words). After",
        ),
    ],
)
def test_no_driver_an_old_one_and_no_gpu_are_told_apart(libcuda: LibCuda, prepare: Any, message: str) -> None:
    prepare(libcuda)
    expected = message.replace("libcuda.so.1", str(libcuda.path))
    with pytest.raises(EnvironmentNotAbleError, match=re.escape(expected)):
        open_cuda()


def test_without_the_library_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p4q_edge.runtime.machine.cuda_driver.LIBRARY", "libnowhere.so.1")
    with pytest.raises(EnvironmentNotAbleError, match=r"no CUDA driver is installed \(libnowhere\.so\.1: cannot open"):
        open_cuda()


def test_a_library_without_a_function_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p4q_edge.runtime.machine.cuda_driver.LIBRARY", "libc.so.6")
    with pytest.raises(EnvironmentNotAbleError, match=r"the CUDA driver is too old: it lacks a function of CUDA 11\.4"):
        open_cuda()
