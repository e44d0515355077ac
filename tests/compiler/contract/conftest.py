"""NVIDIA's own Python bindings, without NVIDIA's libraries: fetched once into the user's cache, imported over stubs.

Nothing of them is kept in the repository. Where a wheel cannot be had the tests skip and say so.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from compiled_contracts import LIBRARIES, compile_stubs, environment_of, run_python
from wheels import fetch, unpacked

BINDINGS = {
    "10.3.0": "tensorrt-cu12-bindings==10.3.0",
    "10.13.3.9": "tensorrt-cu12-bindings==10.13.3.9",
    "10.16.1.11": "tensorrt-cu13-bindings==10.16.1.11",
    "11.4.0.106": "tensorrt-cu13-bindings==11.4.0.106",
}
CUDA_BINDINGS = ("cuda-bindings==12.9.10", "cuda-bindings==13.5.0")
PYCUDA = "pycuda==2026.1"

# Imports the bindings over the stubs and describes every class: its members, and the text of each.
DESCRIBE = """
import ctypes, json, sys
folder, major = sys.argv[1], sys.argv[2]
for library in sys.argv[3:]:
    ctypes.CDLL(f"{folder}/{library}.so.{major}", ctypes.RTLD_GLOBAL)
import tensorrt_bindings as trt
def describe(kind):
    return {name: (getattr(kind, name).__doc__ or "") for name in dir(kind)}
classes = {name: describe(kind) for name, kind in vars(trt.tensorrt).items() if isinstance(kind, type)}
refused = ""
try:
    trt.Builder(trt.Logger())
except TypeError as error:
    refused = str(error)
json.dump({"version": trt.__version__, "classes": classes, "refused": refused}, sys.stdout)
"""


# RTX counts versions of its own; its API is that of TensorRT 11.
ALIAS = (
    "import sys, tensorrt_rtx_bindings\n"
    "tensorrt_rtx_bindings.__version__ = '11.4.0.106'\n"
    "sys.modules['tensorrt'] = tensorrt_rtx_bindings\n"
)


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stub libraries of both major versions."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("contract: no C compiler for the stub libraries")
    folder = tmp_path_factory.mktemp("stubs")
    for major in ("10", "11"):
        compile_stubs(compiler, Path(__file__).with_name("stubs.c"), folder, major=major)
    return folder


@pytest.fixture(scope="session")
def real_environment(repository: Path) -> dict[str, str]:
    """The environment of a process in which `ALIAS` makes `tensorrt` NVIDIA's own parser and builder, without a GPU."""
    return environment_of(repository, cuda="13")


@pytest.fixture(scope="session")
def cuda_12_environment(repository: Path) -> dict[str, str]:
    """The same of the wheels for drivers of CUDA 12."""
    return environment_of(repository, cuda="12")


@pytest.fixture(scope="session")
def real_command(real_environment: dict[str, str]) -> Callable[[str], list[str]]:
    """Return the command that runs such a program, for tests that start it themselves."""
    settings = [f"{name}={value}" for name, value in real_environment.items() if os.environ.get(name) != value]
    return lambda program: ["env", *settings, sys.executable, "-c", ALIAS + program]


@pytest.fixture(scope="session")
def real_builder(real_environment: dict[str, str]) -> Callable[..., str]:
    """Run a program in which `tensorrt` is NVIDIA's own parser and builder (TensorRT-RTX), which need no GPU."""

    def run(program: str, *arguments: str) -> str:
        bindings = Path(real_environment["PYTHONPATH"])
        return run_python(ALIAS + program, *arguments, path=bindings, environment=list(real_environment.items()))

    return run


Describe = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="session")
def describe_arguments(stubs: Path) -> Callable[[str], tuple[Path, list[str]]]:
    """Return the folder of the bindings of a version, and what a program needs to import them over the stubs."""
    return lambda version: (unpacked(BINDINGS[version]), [str(stubs), version.split(".")[0], *LIBRARIES])


@pytest.fixture(scope="session")
def describe(describe_arguments: Callable[[str], tuple[Path, list[str]]]) -> Describe:
    """Return what the real bindings of a version offer: their classes, members and the text of each."""
    known: dict[str, dict[str, Any]] = {}

    def describe(version: str) -> dict[str, Any]:
        if version not in known:
            folder, arguments = describe_arguments(version)
            known[version] = json.loads(run_python(DESCRIBE, *arguments, path=folder))
        return known[version]

    return describe


@pytest.fixture(params=list(BINDINGS))
def bindings(request: pytest.FixtureRequest, describe: Describe) -> dict[str, Any]:
    """The real bindings, every version in turn."""
    return describe(request.param)


@pytest.fixture(params=CUDA_BINDINGS)
def cuda_bindings_folder(request: pytest.FixtureRequest) -> Path:
    """The real cuda.bindings, every version in turn."""
    return unpacked(request.param)


@pytest.fixture(scope="session")
def pycuda_archive() -> Path:
    """The sources of pycuda, which has no wheels."""
    # pip prepares metadata even for a download; in this environment it takes seconds, in one of its own a minute.
    return fetch(PYCUDA, "--no-binary=pycuda", "--no-build-isolation")


@pytest.fixture(scope="session")
def python() -> Callable[..., str]:
    """Run a program in a fresh interpreter with a folder in front of its path; returns its stdout."""
    return run_python


@pytest.fixture(scope="session")
def doubles() -> ModuleType:
    """The doubles that the runtime's tests use."""
    return importlib.import_module("doubles.tensorrt")


@pytest.fixture(scope="session")
def surface(doubles: ModuleType) -> dict[str, Any]:
    """The part of TensorRT that our code uses."""
    surface: dict[str, Any] = json.loads(doubles.SURFACE.read_text(encoding="utf-8"))
    return surface
