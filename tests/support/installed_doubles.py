"""Installs doubles of libraries for a test."""

from __future__ import annotations

import sys

import pytest

from doubles.cuda import RecordingCuda
from doubles.tensorrt import TensorRTDouble


def install_double(monkeypatch: pytest.MonkeyPatch, double: TensorRTDouble) -> None:
    def open_double(backend: str = "auto", *, device: int = 0) -> RecordingCuda:
        double.calls.append("open_cuda")
        return double.cuda

    builders = [f"builders.tensorrt.{name}" for name in ("builder", "worker", "ahead_of_time")]
    for module in ("engines.tensorrt.engine", *builders):
        monkeypatch.setattr(f"p4q_edge.runtime.{module}.open_cuda", open_double)
    monkeypatch.setitem(sys.modules, "tensorrt", double.trt)
