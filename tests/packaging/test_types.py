"""What mypy sees of the public names of both wheels, as their users install them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mypy")

REVEALED = {
    'runtime.build_engine("a.p4q", "a.onnx")': "Card",
    'runtime.build_engine("a.p4q", "a.onnx").precision': "Precision",
    'runtime.build_engine("a.p4q", "a.onnx").head': "BuiltInHead",
    'runtime.read_card("a.onnx")': "Card",
    'runtime.read_bundle("a.p4q")': "Bundle",
    'runtime.read_bundle("a.p4q").manifest.parity': "GraphParity",
    'runtime.selftest("a.onnx")': "GoldenResult",
    'runtime.load_head("a.safetensors")': "Head",
    "runtime.BuildOptions().tensorrt": "TensorRTOptions | None",
    'runtime.ZeroShotClassifier("a.onnx").classify("a.jpg")': "Prediction | list[Prediction]",
    'runtime.ZeroShotClassifier("a.onnx").iterate(["a.jpg"])': "Iterator[Prediction]",
    'api.read_recipe("p4q.toml")': "Recipe",
    "api.demo_recipe()": "Recipe",
    'api.calibrate(api.demo_recipe(), "a.run")': "Prepared",
    'api.learn(api.demo_recipe(), "a.run")': "Learned",
    'api.export(api.learn(api.demo_recipe(), "a.run"), "a.p4q")': "Bundle",
    'api.validate("a.onnx")': "Report",
    'api.validate("a.onnx").built.precision.weight_bits': "int",
}
"""What is written, and its type without the modules' names."""
CONFIGURATION = """
[mypy]
strict = true
[mypy-torch.*,torchvision.*,open_clip.*,timm.*,onnx.*,onnx_ir.*,jinja2.*]
follow_imports = skip
"""


def test_both_wheels_are_typed_for_their_users(
    sharing_environment: Any, wheels: dict[str, Path], tmp_path: Path
) -> None:
    sharing_environment.install("--no-deps", "--no-index", *map(str, wheels.values()))
    lines = ["from p4q_edge import api, runtime", *(f"reveal_type({expression})" for expression in REVEALED)]
    (tmp_path / "user.py").write_text("\n".join([*lines, "runtime.build_engine(3, 4)"]) + "\n")
    (tmp_path / "mypy.ini").write_text(CONFIGURATION)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "user.py"]
    command += ["--python-executable", str(sharing_environment.python), "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    seen = re.findall(r'user\.py:\d+: note: Revealed type is "(.*)"', done.stdout)
    assert [_short(kind) for kind in seen] == [*REVEALED.values()], done.stdout + done.stderr
    # Without `py.typed` everything would be `Any`, and nothing an error.
    errors = re.findall(r"user\.py:\d+: error: .*", done.stdout)
    assert len(errors) == 2, done.stdout
    assert all('expected "str | Path"' in error for error in errors)


def _short(kind: str) -> str:
    return re.sub(r"[\w.]+\.(\w+)", r"\1", kind)
