"""The stated Python API: its names, and the example of calibration/README.md as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p4q_edge import api
from p4q_edge.cli.documents import DOCUMENTS
from p4q_edge.runtime.cli.registry import RUNTIME_HELP

RECIPE = """
schema_version = 1
[model]
name = "demo"
[data]
train = "demo:digits"
shots = 2
test_limit = 40
templates = ["a photo of the {}."]
[learn]
epochs = 1
[export]
golden_samples = 2
"""


def test_functions_have_the_names_of_commands() -> None:
    functions = {name for name in api.__all__ if name.islower()} - {"read_recipe", "demo_recipe"}
    assert functions <= {*DOCUMENTS, *RUNTIME_HELP}


@pytest.mark.parametrize("name", api.__all__)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(api, name).__name__ == name


def test_the_example_runs_as_it_stands_in_the_readme(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"(?s)```python\n(.*?)```", (repository / "calibration/README.md").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("P4Q_EDGE_CACHE", str(tmp_path / "cache"))
    Path("p4q.toml").write_text(RECIPE)
    exec(compile(code, "calibration/README.md", "exec"), {})
    label, size, passed = re.fullmatch(r"(W8A8 executed) (\d+) (True|False)\n", capsys.readouterr().out).groups()  # type: ignore[union-attr]
    assert (label, passed) == ("W8A8 executed", "True")
    assert int(size) == Path("model.onnx").stat().st_size
