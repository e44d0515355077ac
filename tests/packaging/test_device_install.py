"""The runtime's wheel alone in a fresh Python 3.10, as on a device."""

from __future__ import annotations

import json
from typing import Any

import pytest

FRAMEWORKS = ("torch", "torchvision", "open_clip", "timm", "onnx")


def test_the_runtime_is_imported_without_any_framework(runtime_environment: Any) -> None:
    code = f"""
import sys
from p4q_edge.runtime import ZeroShotClassifier
assert sys.version_info[:2] == (3, 10)
assert not set(sys.modules) & set({FRAMEWORKS!r})
print(ZeroShotClassifier.__name__)
"""
    assert runtime_environment.check("python", "-c", code) == "ZeroShotClassifier\n"


def test_every_module_of_the_runtime_is_imported_on_the_oldest_python(runtime_environment: Any) -> None:
    code = """
import importlib, pkgutil, p4q_edge.runtime as package
names = [found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        # What only a device with a GPU has.
        assert error.name.partition(".")[0] in ("cuda", "pycuda", "tensorrt"), (name, error)
print(len(names))
"""
    assert int(runtime_environment.check("python", "-c", code)) > 20


def test_the_command_starts(runtime_environment: Any) -> None:
    assert "usage: p4q-edge SUBCOMMAND" in runtime_environment.check("p4q-edge", "--help")
    assert "p4q-edge not installed" in runtime_environment.check("p4q-edge", "--version")


@pytest.mark.parametrize("arguments", [("learn",), ("export", "run/"), ("validate", "out.onnx")])
def test_subcommands_of_the_toolkit_say_how_to_install_it(runtime_environment: Any, arguments: tuple[str, ...]) -> None:
    done = runtime_environment.run("p4q-edge", *arguments)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == (
        f"error: p4q-edge {arguments[0]} needs the toolkit (Python 3.11 or newer, torch), which is not installed "
        "here. Run, in a checkout of P4Q Edge: pip install ./runtime .\n"
    )


def test_the_doctor_finds_the_cpu_engine_able(runtime_environment: Any) -> None:
    report = json.loads(runtime_environment.check("p4q-edge", "doctor", "--json", "--backend", "onnxruntime"))
    assert report["backends"]["onnxruntime"] is True
    messages = {finding["subject"]: finding["message"] for finding in report["findings"]}
    assert messages["Python"].startswith("3.10.")
    assert messages["Toolkit"].startswith("not installed")


def test_a_recipe_needs_the_toolkit(runtime_environment: Any) -> None:
    done = runtime_environment.run("p4q-edge", "build", "--engine", "out.onnx")
    assert done.returncode == 3
    assert done.stderr.startswith("error: building from a recipe needs the toolkit, which is not installed. Run: ")
    assert done.stderr.count("\n") == 1
