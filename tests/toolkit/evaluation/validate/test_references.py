"""A bundle and its run folder lie together: naming either of them finds both, wherever the engine is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from p4q_edge.runtime.artifacts.card import card_path
from p4q_edge.runtime.cli.main import main


@pytest.fixture
def alone(built: Path, tmp_path: Path) -> Path:
    """An engine with its card, and nothing else of the run beside it."""
    engine = tmp_path / "device" / "demo.onnx"
    engine.parent.mkdir()
    for path in (built / "demo.onnx", card_path(built / "demo.onnx")):
        shutil.copy(path, engine.parent)
    return engine


@pytest.mark.parametrize("named", ["demo.p4q", "demo.run"])
def test_naming_one_finds_the_other(
    alone: Path, built: Path, named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    shutil.copy(built / "demo.p4q", made)
    shutil.copytree(built / "demo.run", made / "demo.run")
    assert main(["validate", str(alone), "--reference", str(made / named), "--limit", "20", "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in document["chain"]["stages"]] == ["float", "fake_quant", "onnx", "engine"]
    assert document["not_checked"] == []


def test_without_either_the_missing_ones_are_named(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(alone), "--json", "-q"]) == 0
    missing = json.loads(capsys.readouterr().out)["not_checked"]
    assert any(f"no run folder {alone.with_suffix('.run')}" in line for line in missing)
    assert any(line.startswith("the ONNX graph: no bundle beside") for line in missing)
