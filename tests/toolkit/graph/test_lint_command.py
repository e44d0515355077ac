"""`p4q-edge inspect --lint`."""

import json
from collections.abc import Callable
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from p4q_edge.cli import lint_graph
from p4q_edge.graph.export import export_classifier
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.runtime.artifacts.bundle import GRAPH_FP16, GRAPH_FP32, WEIGHTS, read_bundle, write_bundle
from p4q_edge.runtime.cli.commands import inspect
from p4q_edge.runtime.cli.main import main


@pytest.fixture(autouse=True)
def _entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint(name="lint_artifact", value="p4q_edge.cli.lint_graph:lint_artifact", group="p4q_edge.toolkit")
    monkeypatch.setattr(metadata, "entry_points", lambda **_: (entry,))


def test_a_clean_graph(fp16_model: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(fp16_model, tmp_path / "good.onnx")
    assert main(["inspect", "--lint", str(tmp_path / "good.onnx"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["findings"] == []


def test_a_broken_rule_is_listed_with_graph_rule_and_node(
    fp16_model: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fp16_model.opset_import[0].version = 21
    onnx.save(fp16_model, tmp_path / "new.onnx")
    assert main(["inspect", "--lint", str(tmp_path / "new.onnx")]) == 5
    shown = capsys.readouterr()
    assert "new.onnx  opset  model: expected opset 17 to 20" in shown.out
    assert "breaks 1 rule." in shown.err


@pytest.mark.parametrize(("told", "code"), [(1, 0), (0, 5)])
def test_quantized_attention_is_right_where_the_manifest_tells_of_it(
    fold_toy: Callable[[QuantScheme], FoldedClassifier],
    images: NDArray[np.uint8],
    repository: Path,
    tmp_path: Path,
    told: int,
    code: int,
) -> None:
    graphs = export_classifier(fold_toy(QuantScheme(quantize_attention=True)), images)
    tiny = read_bundle(repository / "tests" / "runtime" / "data" / "tiny.p4q")
    members = {name: tiny.read(name) for name in tiny.manifest.members}
    members |= {GRAPH_FP16: graphs.fp16, GRAPH_FP32: graphs.fp32, WEIGHTS: graphs.weights}
    precision = msgspec.structs.replace(tiny.manifest.precision, quantized_attentions=told)
    write_bundle(tmp_path / "toy.p4q", msgspec.structs.replace(tiny.manifest, precision=precision), members)
    assert main(["inspect", "--lint", str(tmp_path / "toy.p4q")]) == code


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("plan.plan", b"", 2, "--lint reads a bundle"),
        ("noise.onnx", b"\xff\xff not protobuf", 4, "is not an ONNX model"),
    ],
)
def test_what_cannot_be_linted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, code: int, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(["inspect", "--lint", str(tmp_path / name)]) == code
    assert message in capsys.readouterr().err


def test_without_the_toolkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda **_: ())
    assert main(["inspect", "--lint", "model.p4q"]) == 3
    assert "--lint needs the toolkit" in capsys.readouterr().err


def test_the_entry_point_is_declared(repository: Path) -> None:
    line = f'{inspect.LINT_FUNCTION} = "{lint_graph.__name__}:{lint_graph.lint_artifact.__name__}"'
    assert line in (repository / "pyproject.toml").read_text()
