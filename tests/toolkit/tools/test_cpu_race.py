"""The benches of CPU engines: the race of processes, and the table by operator."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


def _run(repository: Path, tool: str, *arguments: str) -> str:
    bundle = repository / "tests" / "runtime" / "data" / "tiny.p4q"
    command = [sys.executable, str(repository / "tools" / "bench" / tool), str(bundle), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_candidates_race_in_turns_and_say_what_they_compute(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "race.json"
    kinds = ["ort-fp32", "ort-int8", "torch-eager", *(["openvino-f32"] if find_spec("openvino") else [])]
    arguments = ("--kinds", ",".join(kinds), "--settings", "3x1", "--rounds", "4", "--output", str(output))
    text = _run(repository, "cpu_race.py", *arguments)
    document = json.loads(output.read_text())
    (setting,) = document["settings"]
    rows = setting["rows"]
    assert list(rows) == kinds
    assert rows["torch-eager"] == {"problem": "no --model was named"}
    timed = [kind for kind in kinds if kind != "torch-eager"]
    for kind in timed:
        assert rows[kind]["n"] == 4
        assert set(rows[kind]["times_as_fast_as"]) == set(timed) - {kind}
    assert rows["ort-int8"]["cosine_quantized"] > 0.9999
    assert rows["ort-fp32"]["cosine_float"] > 0.999
    assert "| 3 x 1 | torch-eager | not run: no --model was named" in text
    product = rows["ort-int8"]["images_per_second"] * rows["ort-int8"]["p50_ms"]
    assert product == pytest.approx(3000)


def test_a_table_by_operator_for_each_library(repository: Path) -> None:
    if find_spec("openvino") is None:
        pytest.skip("pip install './runtime[openvino]'")
    text = _run(repository, "cpu_profile.py", "--runs", "3")
    assert "## ONNX Runtime: " in text
    assert "| MatMulIntegerToFloat | 2 |" in text
    assert "## OpenVINO, f32: " in text
    assert "FullyConnected" in text.partition("## OpenVINO, f32")[2]
