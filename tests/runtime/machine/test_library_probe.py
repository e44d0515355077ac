"""Libraries tried in a process of their own, and what each probe asks of its library."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import types
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from p4q_edge.runtime.machine import library_probe as probe
from p4q_edge.runtime.machine.library_probe import PROBES, Probe, run_probe


def test_a_library_that_works() -> None:
    found = run_probe("onnxruntime")
    assert found.works
    assert "CPUExecutionProvider" in found.facts["providers"]
    assert found.facts == PROBES["onnxruntime"]()


def test_a_library_that_is_not_there() -> None:
    found = run_probe("pycuda")
    assert found == Probe(problem="ModuleNotFoundError: No module named 'pycuda'")
    assert not found.works


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the child process be this shell script."""

    def install(script: str) -> None:
        path = tmp_path / "child"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return install


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("""echo banner; echo '{"version": "10.3"}'""", Probe(facts={"version": "10.3"})),
        ("kill -SEGV $$", Probe(problem="ended by signal 11")),
        ("echo first >&2; echo last >&2; exit 1", Probe(problem="last")),
        ("exit 7", Probe(problem="exit code 7")),
        ("exit 0", Probe(problem="exit code 0")),
    ],
)
def test_what_the_child_says(child: Any, script: str, expected: Probe) -> None:
    child(script)
    assert run_probe("tensorrt") == expected


def test_a_child_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: Any, timeout: float, **kwargs: Any) -> None:
        raise subprocess.TimeoutExpired(cmd="probe", timeout=timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert run_probe("tensorrt").problem == "no answer within 120 s"


class FakeDriver:
    """The calls of libcuda that the probe makes; `fails` names one that returns an error."""

    def __init__(self, *, devices: int = 1, fails: str = "") -> None:
        self.devices = devices
        self.fails = fails

    def __getattr__(self, function: str) -> Any:
        def call(*arguments: Any) -> int:
            if function == self.fails:
                return 100
            match = {
                "cuDriverGetVersion": 12060,
                "cuDeviceGetCount": self.devices,
                "cuDeviceTotalMem_v2": 8 << 30,
                "cuDeviceGetAttribute": {75: 8, 76: 7}.get(arguments[1] if len(arguments) > 1 else 0),
            }
            if function == "cuDeviceGetName":
                arguments[0].value = b"Orin"
            elif function != "cuInit":
                arguments[0]._obj.value = match[function]
            return 0

        return call


def test_the_driver_is_asked_without_any_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    assert probe.main(["cuda"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "cuda": "12.6",
        "devices": [{"name": "Orin", "compute_capability": "8.7", "memory_bytes": 8 << 30}],
    }


@pytest.mark.parametrize(
    ("driver", "problem"),
    [
        (FakeDriver(fails="cuInit"), "OSError: cuInit of the CUDA driver returned 100\n"),
        (FakeDriver(devices=0), "OSError: the CUDA driver sees no device\n"),
    ],
)
def test_a_driver_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], driver: FakeDriver, problem: str
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert probe.main(["cuda"]) == 1
    assert capsys.readouterr() == ("", problem)


# The two results of cudaGetDeviceCount that matter.
CudaError = IntEnum("CudaError", {"cudaSuccess": 0, "cudaErrorInsufficientDriver": 35})


def fake_cuda(monkeypatch: pytest.MonkeyPatch, *, error: CudaError) -> None:
    runtime = types.ModuleType("cuda.bindings.runtime")
    runtime.cudaError_t = CudaError  # type: ignore[attr-defined]
    runtime.cudaGetDeviceCount = lambda: (error, 1)  # type: ignore[attr-defined]
    bindings = types.ModuleType("cuda.bindings")
    bindings.runtime = runtime  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "12.9.10")


def fake_tensorrt(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    module = types.ModuleType("tensorrt")
    module.__version__ = "10.3.0"  # type: ignore[attr-defined]
    module.Logger = types.SimpleNamespace(ERROR=1)  # type: ignore[attr-defined]

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None:
            calls.append("Logger")

    module.Logger = Logger  # type: ignore[attr-defined]
    module.Runtime = lambda logger: calls.append("Runtime")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)


def test_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, error=CudaError.cudaSuccess)
    assert PROBES["cuda-bindings"]() == {"version": "12.9.10", "device_count": 1}


def test_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = types.ModuleType("pycuda.driver")
    driver.init = lambda: None  # type: ignore[attr-defined]
    driver.Device = types.SimpleNamespace(count=lambda: 2)  # type: ignore[attr-defined]
    package = types.ModuleType("pycuda")
    package.driver = driver  # type: ignore[attr-defined]
    package.VERSION_TEXT = "2026.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    assert PROBES["pycuda"]() == {"version": "2026.1", "device_count": 2}


def test_tensorrt_starts_after_devices_were_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    fake_cuda(monkeypatch, error=CudaError.cudaSuccess)
    fake_tensorrt(monkeypatch, calls)
    assert PROBES["tensorrt"]() == {"version": "10.3.0"}
    assert calls == ["Logger", "Runtime"]


@pytest.mark.parametrize("refusing", ["driver", "runtime"])
def test_tensorrt_is_not_called_without_a_device(monkeypatch: pytest.MonkeyPatch, refusing: str) -> None:
    calls: list[str] = []
    monkeypatch.setattr(
        ctypes, "CDLL", lambda name: FakeDriver(fails="cuDeviceGetCount" if refusing == "driver" else "")
    )
    fake_cuda(monkeypatch, error=CudaError.cudaErrorInsufficientDriver)
    fake_tensorrt(monkeypatch, calls)
    with pytest.raises(OSError, match="returned"):
        PROBES["tensorrt"]()
    assert calls == []
