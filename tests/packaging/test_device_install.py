"""The runtime's wheel alone in a fresh Python 3.10, as on a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

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
        # What only a device with a GPU has, and what is asked for by an extra.
        absent = ("cuda", "pycuda", "tensorrt", "starlette", "uvicorn")
        assert error.name.partition(".")[0] in absent, (name, error)
print(len(names))
"""
    assert int(runtime_environment.check("python", "-c", code)) > 20


def test_the_command_starts(runtime_environment: Any) -> None:
    assert "usage: p4q-edge SUBCOMMAND" in runtime_environment.check("p4q-edge", "--help")
    assert "p4q-edge not installed" in runtime_environment.check("p4q-edge", "--version")


@pytest.mark.parametrize("arguments", [("learn",), ("export", "run/"), ("models", "--search", "siglip")])
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


def test_a_bundle_is_built_checked_and_used(runtime_environment: Any, repository: Path, tmp_path: Path) -> None:
    bundle, engine = repository / "tests/runtime/data/tiny.p4q", tmp_path / "tiny.onnx"
    image = tmp_path / "image.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(image)
    built = json.loads(runtime_environment.check("p4q-edge", "build", str(bundle), "--engine", str(engine), "--json"))
    assert built["backend"] == "onnxruntime"
    runtime_environment.check("p4q-edge", "selftest", str(engine))
    answer = json.loads(runtime_environment.check("p4q-edge", "classify", str(engine), str(image), "--json"))
    assert answer["schema_version"] == 1
    assert "label" in json.dumps(answer)


@pytest.mark.slow
def test_the_tests_of_the_runtime_pass_on_the_oldest_python(
    runtime_environment: Any, repository: Path, tmp_path: Path
) -> None:
    constraints = str(repository / "tools/constraints.txt")
    server = ("starlette", "uvicorn", "python-multipart", "httpx2")
    runtime_environment.install("--constraint", constraints, "pytest", "hypothesis", *server)
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", str(repository), "-c", str(repository / "pyproject.toml"))
    done = runtime_environment.run(
        "python", "-m", "pytest", *options, "--basetemp", str(tmp_path / "inner"), str(repository / "tests/runtime")
    )
    assert done.returncode == 0, done.stdout[-5000:]
