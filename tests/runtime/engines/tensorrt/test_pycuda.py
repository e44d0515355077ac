"""The backend of pycuda against a double of its library, and which backend is taken."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from p4q_edge.runtime.engines.cuda.device import open_cuda
from p4q_edge.runtime.errors import EnvironmentNotAbleError, P4QEdgeError, UsageError
from p4q_edge.runtime.machine.cuda_driver import version_text

from doubles.pycuda_driver import Driver


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
    assert captured.refusal == "pycuda has no CUDA graph API; leave --cuda-backend out for graphs"
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


@pytest.mark.parametrize(("backend", "module"), [("cuda-bindings", "bindings"), ("pycuda", "pycuda")])
def test_a_package_that_is_asked_for_and_missing_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, backend: Any, module: str
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings" if backend == "cuda-bindings" else "pycuda", None)
    monkeypatch.delitem(sys.modules, f"p4q_edge.runtime.engines.cuda.{module}", raising=False)
    with pytest.raises(
        EnvironmentNotAbleError,
        match=rf"expected the Python package {backend}, .* Leave that option out, .*, or run: pip install {backend}$",
    ):
        open_cuda(backend)


def test_another_backend_is_refused() -> None:
    with pytest.raises(UsageError, match="CUDA backend of auto, driver, cuda-bindings, pycuda, got 'torch'"):
        open_cuda("torch")  # type: ignore[arg-type]


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
