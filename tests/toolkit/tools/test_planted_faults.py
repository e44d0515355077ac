"""The bench of planted faults, on the demo: all are found, and a proof that says nothing is told of."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from bench_modules import bench_modules

from p4q_edge.demo import MODEL_DIR


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    with bench_modules(["planted_faults"]) as modules:
        return modules["planted_faults"]


def run(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, output: Path, *options: str) -> int:
    arguments = ["--model", str(MODEL_DIR), "--images", "demo:leaves", "--width", "W8A8", "--count", "4", *options]
    monkeypatch.setattr("sys.argv", ["planted_faults.py", *arguments, "--output", str(output)])
    code: int = bench.main()
    return code


@pytest.mark.slow
def test_every_fault_of_the_demo_is_found(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "faults.json"
    assert run(bench, monkeypatch, output) == 0
    rows = json.loads(output.read_bytes())
    assert {(row["remainder"], row["linears"], row["faults"]) for row in rows} == {("fp32", 19, 57), ("fp16", 19, 57)}
    assert all(row["missed"] == row["misnamed"] == row["false_alarms"] == 0 for row in rows)
    assert "| W8A8 | fp16 | 19 | 57 | 0 | 0 | 0 |" in output.with_suffix(".md").read_text()


@pytest.mark.slow
def test_a_proof_that_sees_nothing_fails(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "wrong_layers", lambda records, graph: {})
    output = tmp_path / "faults.json"
    assert run(bench, monkeypatch, output) == 1
    assert [row["missed"] for row in json.loads(output.read_bytes())] == [57, 57]


def test_an_unknown_width_is_refused(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bench, monkeypatch, tmp_path / "x.json", "--width", "W8A8,W9A9") == 2
    assert "--width knows W8A8, W6A6, W4A8, W4A4; got 'W9A9'" in capsys.readouterr().err
