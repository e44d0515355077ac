"""The CUDA layer on a real GPU: allocation, pinned copies, streams, events, graphs, cleanup after an exception.

Where there is no GPU these tests are skipped, and pytest counts them.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from p4q_edge.runtime.errors import P4QEdgeError

pytestmark = pytest.mark.gpu

MIB = 1 << 20


def test_pinned_copies_come_back_as_they_went(gpu: Any) -> None:
    stream = gpu.create_stream()
    host, back, address = gpu.allocate_pinned(4 * MIB), gpu.allocate_pinned(4 * MIB), gpu.allocate(4 * MIB)
    host[:] = np.random.default_rng(0).integers(0, 256, host.size, dtype=np.uint8)
    gpu.copy_to_device(address, host, stream)
    gpu.copy_to_host(back, address, stream)
    gpu.synchronize(stream)
    assert np.array_equal(host, back)
    for array in (host, back):
        gpu.free_pinned(array)
    gpu.free(address)
    gpu.destroy_stream(stream)


def test_memory_is_given_back(gpu: Any) -> None:
    free, total = gpu.memory()
    address = gpu.allocate(256 * MIB)
    assert gpu.memory()[0] <= free - 200 * MIB
    gpu.free(address)
    assert gpu.memory() == (free, total)


def test_events_measure_a_copy(gpu: Any) -> None:
    stream, start, end = gpu.create_stream(), gpu.create_event(), gpu.create_event()
    host, address = gpu.allocate_pinned(64 * MIB), gpu.allocate(64 * MIB)
    gpu.record_event(start, stream)
    gpu.copy_to_device(address, host, stream)
    gpu.record_event(end, stream)
    assert gpu.elapsed_ms(start, end) > 0
    for event in (start, end):
        gpu.destroy_event(event)
    gpu.free_pinned(host)
    gpu.free(address)
    gpu.destroy_stream(stream)


def test_a_graph_replays_with_the_data_of_the_moment(gpu: Any) -> None:
    stream = gpu.create_stream()
    host, back, address = gpu.allocate_pinned(MIB), gpu.allocate_pinned(MIB), gpu.allocate(MIB)

    def copies() -> None:
        gpu.copy_to_device(address, host, stream)
        gpu.copy_to_host(back, address, stream)

    captured = gpu.capture(stream, copies)
    assert captured.refusal is None
    for value in (1, 2, 3):
        host[:] = value
        back[:] = 0
        gpu.launch(captured.graph, stream)
        gpu.synchronize(stream)
        assert (back == value).all()
    gpu.destroy_graph(captured.graph)
    for array in (host, back):
        gpu.free_pinned(array)
    gpu.free(address)
    gpu.destroy_stream(stream)


def test_a_refused_capture_leaves_a_usable_stream(gpu: Any) -> None:
    stream = gpu.create_stream()
    # Waiting for a stream is forbidden while it is captured.
    captured = gpu.capture(stream, lambda: gpu.synchronize(stream))
    assert captured.graph is None
    assert "capture" in str(captured.refusal).lower()  # each library spells the error's name in its own way
    host, address = gpu.allocate_pinned(16), gpu.allocate(16)
    gpu.copy_to_device(address, host, stream)
    gpu.synchronize(stream)
    gpu.free_pinned(host)
    gpu.free(address)
    gpu.destroy_stream(stream)


def test_too_much_memory_is_an_error_and_the_gpu_goes_on(gpu: Any) -> None:
    _, total = gpu.memory()
    with pytest.raises(P4QEdgeError, match=r"(cuMemAlloc|cudaMalloc).* failed with .*(OUT_OF_MEMORY|MemoryAllocation)"):
        gpu.allocate(4 * total)
    gpu.free(gpu.allocate(MIB))


def test_two_threads_work_on_streams_of_their_own(gpu: Any) -> None:
    results: dict[int, bool] = {}

    def work(value: int) -> None:
        with gpu.current():
            stream = gpu.create_stream()
            host, back, address = gpu.allocate_pinned(MIB), gpu.allocate_pinned(MIB), gpu.allocate(MIB)
            host[:] = value
            for _ in range(20):
                gpu.copy_to_device(address, host, stream)
                gpu.copy_to_host(back, address, stream)
                gpu.synchronize(stream)
            results[value] = bool((back == value).all())
            for array in (host, back):
                gpu.free_pinned(array)
            gpu.free(address)
            gpu.destroy_stream(stream)

    threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {1: True, 2: True}
