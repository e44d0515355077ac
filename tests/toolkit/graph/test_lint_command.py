"""`p4q-edge inspect --lint`."""

import json
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path

import onnx
import pytest

from p4q_edge.command import lint_graph
from p4q_edge.runtime.cli import main
from p4q_edge.runtime.command import inspect


@pytest.fixture(autouse=True)
def _entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint(name="lint-graph", value="p4q_edge.command.lint_graph:COMMAND", group="p4q_edge.commands")
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
    assert "breaks 1 rules" in shown.err


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
    assert (
        f'{inspect.LINT_ENTRY_POINT} = "{lint_graph.__name__}:COMMAND"' in (repository / "pyproject.toml").read_text()
    )
