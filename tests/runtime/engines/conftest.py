"""An engine of OpenVINO, and the model in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from machines import openvino_profile

from p4q_edge.runtime import BuildOptions, build_engine
from p4q_edge.runtime.artifacts.bundle import read_bundle


@pytest.fixture
def openvino_built(tiny_bundle: Path, tmp_path: Path) -> Path:
    engine = tmp_path / "openvino" / "tiny.onnx"
    engine.parent.mkdir()
    options = BuildOptions(threads=1, remainder="f32", cpu_profile=openvino_profile())
    build_engine(tiny_bundle, engine, backend="openvino", options=options)
    return engine


@pytest.fixture
def model(tiny_bundle: Path) -> bytes:
    return read_bundle(tiny_bundle).model("fp32")
