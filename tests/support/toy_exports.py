"""Toys exported once a session, and what holds of their graphs whatever the format of their weights is."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from p4q_edge.graph import ExportedGraphs, export_classifier
from p4q_edge.graph.parity import run_in_onnxruntime
from p4q_edge.graph.proof.bypass import without_activation_grids
from p4q_edge.models import FoldedClassifier
from p4q_edge.runtime import BuildOptions, build_engine
from p4q_edge.runtime.builders import describe_build
from p4q_edge.runtime.engines.onnxruntime import float_weights
from p4q_edge.runtime.errors import EnvironmentNotAbleError

Exported = tuple[ExportedGraphs, FoldedClassifier]
Model = onnx.ModelProto
LINEAR = "encoder.trunk.transformer.resblocks.0.mlp.c_fc"
FINE = 1e-6  # two orders of a sum in float32


def export_once(
    kept: dict[str, Exported], name: str, make: Callable[[], FoldedClassifier], images: NDArray[np.uint8]
) -> Exported:
    """Export what `make` returns, or return what was exported under this name before; not to be changed."""
    if name not in kept:
        model = make()
        kept[name] = export_classifier(model, images), model
    return kept[name]


def single(graphs: ExportedGraphs) -> Model:
    """The complete graph with FP32 remainder."""
    return onnx.load_from_string(graphs.fp32 + graphs.weights)


def half(graphs: ExportedGraphs) -> Model:
    """The complete graph with FP16 remainder."""
    return onnx.load_from_string(graphs.fp16 + graphs.weights)


def stored(model: Model) -> dict[str, TensorProto]:
    """The constants of a graph by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def set_tensor(model: Model, name: str, array: np.ndarray) -> None:
    """Store another constant under its name."""
    stored(model)[name].CopyFrom(numpy_helper.from_array(array, name))


def check_float_profile(graphs: ExportedGraphs, images: NDArray[np.uint8]) -> bytes:
    """Hold the CPU profile `float` against the graph without grids of activations, and return it."""
    plain = without_activation_grids(single(graphs)).SerializeToString()
    found = float_weights(graphs.fp32 + graphs.weights)
    assert "DequantizeLinear" not in {node.op_type for node in onnx.load_from_string(found).graph.node}
    expected, given = (run_in_onnxruntime(model, images, optimized=False)["features"] for model in (plain, found))
    np.testing.assert_allclose(given, expected, atol=FINE * np.abs(expected).max())
    return found


def refusal_of_jetpack_6(bundle: Path, engine: Path, monkeypatch: pytest.MonkeyPatch, *, dry: bool) -> str:
    """What TensorRT 10.3, that of JetPack 6, is told when a bundle is built with it; nothing is left behind."""
    installed = types.ModuleType("tensorrt")
    installed.__version__ = "10.3.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", installed)
    act = describe_build if dry else build_engine
    with pytest.raises(EnvironmentNotAbleError) as caught:
        act(bundle, engine, options=BuildOptions())
    assert not engine.exists()
    return str(caught.value)
