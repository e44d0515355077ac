"""The backend of cuda.bindings against a double of its library: calls, errors, captures and cleanup."""

from __future__ import annotations

import numpy as np
import pytest

from p4q_edge.runtime.engines.cuda.device import open_cuda
from p4q_edge.runtime.errors import EnvironmentNotAbleError, P4QEdgeError, UsageError

from doubles.cuda_runtime import Cudart, Status


def test_the_backend_reads_the_facts_of_the_gpu(cudart: Cudart) -> None:
    cuda = open_cuda("cuda-bindings", device=1)
    assert cuda.name == "cuda-bindings"
    assert cudart.names[0] == "cudaGetDeviceCount"
    facts = cuda.facts
    assert (facts.index, facts.name, facts.compute_capability, facts.integrated) == (1, "Orin", "8.7", True)
    assert (facts.driver_version, facts.runtime_version, facts.total_memory_bytes) == ("12.6", "12.9", 8 << 30)


def test_a_round_trip_uses_pinned_memory_and_releases_all(cudart: Cudart) -> None:
    cuda = open_cuda("cuda-bindings")
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
    cuda = open_cuda("cuda-bindings")
    with pytest.raises(KeyError), cuda.current():
        raise KeyError
    assert cudart.device == 1


def test_a_failed_call_is_named_with_cudas_words_and_cleared(cudart: Cudart) -> None:
    cuda = open_cuda("cuda-bindings")
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
    cuda = open_cuda("cuda-bindings")
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
    cuda = open_cuda("cuda-bindings")
    cudart.fail["cudaStreamEndCapture"] = Status.cudaErrorStreamCaptureUnsupported
    captured = cuda.capture(55, lambda: None)
    assert captured.graph is None
    assert captured.refusal == "cudaStreamEndCapture answers cudaErrorStreamCaptureUnsupported (in words)"
    assert cudart.names[-2:] == ["cudaStreamEndCapture", "cudaGetLastError"]


def test_work_that_refuses_to_be_captured_gives_its_reason(cudart: Cudart) -> None:
    cuda = open_cuda("cuda-bindings")

    def enqueue() -> None:
        raise P4QEdgeError("TensorRT cannot run the engine: loops")

    captured = cuda.capture(55, enqueue)
    assert (captured.graph, captured.refusal) == (None, "TensorRT cannot run the engine: loops")
    assert cudart.names[-2:] == ["cudaStreamEndCapture", "cudaGraphDestroy"]
    cudart.fail["cudaStreamEndCapture"] = Status.cudaErrorStreamCaptureUnsupported
    assert cuda.capture(55, enqueue).refusal == "TensorRT cannot run the engine: loops"


def test_a_programming_error_in_a_capture_still_ends_it(cudart: Cudart) -> None:
    cuda = open_cuda("cuda-bindings")

    def enqueue() -> None:
        raise TypeError("wrong")

    with pytest.raises(TypeError, match="wrong"):
        cuda.capture(55, enqueue)
    assert cudart.names[-1] == "cudaStreamEndCapture"


def test_a_graph_that_cannot_be_instantiated_is_an_error(cudart: Cudart) -> None:
    cuda = open_cuda("cuda-bindings")
    cudart.fail["cudaGraphInstantiate"] = Status.cudaErrorMemoryAllocation
    with pytest.raises(P4QEdgeError, match="cudaGraphInstantiate failed"):
        cuda.capture(55, lambda: None)
    assert cudart.names[-1] == "cudaGraphDestroy"


def test_a_driver_that_is_too_old_and_none_at_all_are_told_apart(cudart: Cudart) -> None:
    """Both give error 35: JetPack 6 has a driver for CUDA 12.6, and cuda-bindings 12.9 bring the runtime 12.9."""
    cudart.fail["cudaGetDeviceCount"] = Status.cudaErrorInsufficientDriver
    with pytest.raises(
        EnvironmentNotAbleError,
        match=r"driver is too old: the library brings CUDA 12\.9, the driver runs 12\.6\. Leave --cuda-backend out.*"
        r"`sudo apt install cuda-compat-12-9",
    ):
        open_cuda("cuda-bindings")
    cudart.driver_version = 0
    with pytest.raises(
        EnvironmentNotAbleError, match="CUDA answers no CUDA driver is installed. Run `p4q-edge doctor`"
    ):
        open_cuda("cuda-bindings")
    cudart.raise_at_count = RuntimeError("Failed to dlopen libcuda.so.1")
    with pytest.raises(EnvironmentNotAbleError, match=r"CUDA answers Failed to dlopen libcuda\.so\.1"):
        open_cuda("cuda-bindings")


def test_without_a_gpu_the_error_offers_the_cpu(cudart: Cudart) -> None:
    cudart.fail["cudaGetDeviceCount"] = Status.cudaErrorNoDevice
    with pytest.raises(EnvironmentNotAbleError, match=r"expected a GPU, and CUDA finds none\. .*out\.onnx"):
        open_cuda("cuda-bindings")
    cudart.fail.clear()
    with pytest.raises(UsageError, match="expected a GPU index of 0 to 1, got 2"):
        open_cuda("cuda-bindings", device=2)
