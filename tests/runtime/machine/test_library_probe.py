"""Libraries tried in a process of their own, and what each probe asks of its library."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from p4q_edge.runtime.errors import EnvironmentNotAbleError
from p4q_edge.runtime.machine import advice
from p4q_edge.runtime.machine import library_probe as probe
from p4q_edge.runtime.machine.library_probe import PROBES, Probe, run_probe

from doubles.libcuda import LibCuda


def test_a_library_that_works() -> None:
    found = run_probe("onnxruntime")
    assert found.works
    assert "CPUExecutionProvider" in found.facts["providers"]
    assert found.facts == PROBES["onnxruntime"]()


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(probe.PROBES, "nothing", lambda: __import__("no_such_library"))
    assert probe.main(["nothing"]) == 1
    assert capsys.readouterr() == ("", "ModuleNotFoundError: No module named 'no_such_library'\n")
    assert not Probe(problem="ModuleNotFoundError").works


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


def test_the_driver_is_asked_without_any_package(libcuda: LibCuda, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["cuda"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "cuda": "12.6",
        "devices": [
            {"name": "Thor", "compute_capability": "11.0", "memory_bytes": 128 << 30, "integrated": True},
            {"name": "Orin", "compute_capability": "8.7", "memory_bytes": 8 << 30, "integrated": True},
        ],
    }


def test_a_child_finds_the_driver_where_the_system_keeps_it(
    libcuda_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libcuda_library.parent))
    assert [device["name"] for device in run_probe("cuda").facts["devices"]] == ["Thor", "Orin"]


@pytest.mark.parametrize(
    ("version", "devices", "problem"),
    [(0, 1, advice.NO_DRIVER), (11000, 1, advice.OLD_DRIVER), (12060, 0, "the driver for CUDA 12.6 finds none")],
)
def test_a_driver_that_cannot_be_used(
    libcuda: LibCuda, capsys: pytest.CaptureFixture[str], version: int, devices: int, problem: str
) -> None:
    libcuda.driver(version, devices=devices)
    assert probe.main(["cuda"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert problem in err
    assert err.count("\n") == 1


def fake_tensorrt(monkeypatch: pytest.MonkeyPatch, calls: list[str], *, starts: bool = True) -> None:
    module = types.ModuleType("tensorrt")
    module.__version__ = "10.3.0"  # type: ignore[attr-defined]

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None:
            calls.append("Logger")

    def builder(logger: Logger) -> None:
        calls.append("Builder")
        if not starts:
            raise TypeError("pybind11::init(): factory function returned nullptr")

    module.Logger, module.Builder = Logger, builder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)


@pytest.mark.usefixtures("libcuda")
def test_tensorrt_starts_after_devices_were_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fake_tensorrt(monkeypatch, calls)
    assert PROBES["tensorrt"]() == {"version": "10.3.0"}
    assert calls == ["Logger", "Builder"]


def test_tensorrt_is_not_called_without_a_device(libcuda: LibCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    libcuda.driver(12060, devices=0)
    fake_tensorrt(monkeypatch, calls)
    with pytest.raises(EnvironmentNotAbleError, match="finds none"):
        PROBES["tensorrt"]()
    assert calls == []


@pytest.mark.usefixtures("libcuda")
def test_a_tensorrt_of_a_newer_cuda_than_the_drivers_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_tensorrt(monkeypatch, [], starts=False)
    assert probe.main(["tensorrt"]) == 1
    assert capsys.readouterr().err.startswith("TensorRT 10.3.0 does not start on a driver for CUDA 12.6, as happens")
