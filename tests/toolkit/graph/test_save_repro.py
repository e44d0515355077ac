"""The model that is cut around a diverging linear: it is the linear, and polygraphy sees the difference."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from p4q_edge.evaluation.layer_debug import BUNDLE_GRAPH, run_graph
from p4q_edge.evaluation.save_repro import (
    CANDIDATE,
    MODEL,
    README,
    Divergence,
    command,
    cut_linear,
    save_engine_repro,
    save_repro,
)
from p4q_edge.graph.analysis.linears import linear_nodes
from p4q_edge.runtime.errors import ArtifactError, UsageError
from p4q_edge.runtime.evaluation.report.document import DebugReport
from p4q_edge.runtime.machine import cpu

pytest.importorskip("polygraphy")


@pytest.fixture
def graph(fp32_model: onnx.ModelProto) -> onnx.ModelProto:
    return fp32_model


@pytest.fixture
def divergence(graph: onnx.ModelProto, images: np.ndarray) -> Divergence:
    values = run_graph(graph, images[:2])
    layer = linear_nodes(graph)[1].path
    return Divergence(
        layer=layer,
        reference_name="the bundle's graph",
        candidate_name="the engine",
        read=values.inputs[layer],
        gave=values.outputs[layer],
    )


def polygraphy(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run polygraphy's own command, as the README of a folder says."""
    program, *words = shlex.split(line)
    return subprocess.run(
        [sys.executable, str(Path(sys.executable).with_name(program)), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_cut_is_one_linear_with_its_quantization(graph: onnx.ModelProto, divergence: Divergence) -> None:
    cut = cut_linear(graph, divergence.layer)
    kinds = sorted(node.op_type for node in cut.graph.node)
    assert kinds == ["DequantizeLinear", "DequantizeLinear", "MatMul", "QuantizeLinear"]
    onnx.checker.check_model(cut)
    with pytest.raises(ArtifactError, match="expected a quantized linear 'nowhere' in the graph, found none"):
        cut_linear(graph, "nowhere")


def test_the_command_of_the_readme_shows_a_difference_and_only_then(
    graph: onnx.ModelProto, divergence: Divergence, tmp_path: Path
) -> None:
    save_repro(tmp_path, graph, divergence)
    assert command("--onnxrt") in (tmp_path / README).read_text()
    same = polygraphy(tmp_path, command("--onnxrt"))
    assert same.returncode == 0, same.stdout + same.stderr
    broken = onnx.load(tmp_path / MODEL)
    scale = next(tensor for tensor in broken.graph.initializer if tensor.name.endswith("weight_scale"))
    doubled = onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(scale), scale.name)
    scale.CopyFrom(doubled)
    onnx.save(broken, tmp_path / MODEL)
    assert polygraphy(tmp_path, command("--onnxrt")).returncode != 0


def test_the_command_runs_no_kernels_that_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for saturates in (False, True):
        monkeypatch.setattr(cpu, "saturates", lambda saturates=saturates: saturates)
        assert ("--graph-optimization-level ORT_DISABLE_ALL" in command("--onnxrt")) is saturates
        assert "--graph-optimization-level" not in command("--trt")


def test_both_outputs_are_kept(graph: onnx.ModelProto, divergence: Divergence, tmp_path: Path) -> None:
    from polygraphy.comparator import RunResults

    save_repro(tmp_path / "repro", graph, divergence)
    results = RunResults.load(str(tmp_path / "repro" / CANDIDATE))
    ((name, iterations),) = results.items()
    assert name == "the engine"
    (output,) = iterations[0].values()
    np.testing.assert_array_equal(output, divergence.gave)
    with pytest.raises(UsageError, match="is not empty; add --force"):
        save_repro(tmp_path / "repro", graph, divergence)


def test_an_engine_with_a_doubled_scale_is_cut_at_that_layer(
    graph: onnx.ModelProto, images: np.ndarray, tmp_path: Path
) -> None:
    layer = linear_nodes(graph)[1]
    engine = onnx.ModelProto()
    engine.CopyFrom(graph)
    scale = next(tensor for tensor in engine.graph.initializer if tensor.name == layer.weight_scale)
    scale.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(scale), scale.name))
    onnx.save(engine, tmp_path / "out.onnx")
    report = DebugReport(
        reference=BUNDLE_GRAPH,
        n=2,
        tolerance=1e-4,
        first=layer.path,
        operator=layer.operator,
        layers=(),
        keep_float=(),
    )
    save_engine_repro(
        tmp_path / "repro", tmp_path / "out.onnx", report, graph=graph.SerializeToString(), images=images[:2]
    )
    text = (tmp_path / "repro" / README).read_text()
    assert text.startswith(f"# {layer.path}\n")
    assert "out.onnx in ONNX Runtime" in text
    save_engine_repro(
        tmp_path / "none", tmp_path / "out.onnx", replace(report, first=None), graph=None, images=images[:2]
    )
    assert not (tmp_path / "none").exists()
