"""Modules of the toolkit that import ONNX Runtime themselves find its telemetry switched off."""

import os
import subprocess
import sys

import pytest

SPY = """
import importlib, os, sys
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            sys.stdout.write(os.environ.get("ORT_DISABLE_TELEMETRY", "unset"))
            os._exit(0)
sys.meta_path.insert(0, Spy())
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize("module", ["layer_debug", "bench_candidates"])
def test_telemetry_is_off_before_the_library_is_looked_for(module: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", SPY, f"p4q_edge.evaluation.{module}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert result.stdout == "1", result.stderr
