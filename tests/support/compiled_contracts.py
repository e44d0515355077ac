"""Runs of a real library's parser and builder, each in a process of its own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from wheels import FETCH_S

LIBRARIES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin")


def compile_stubs(compiler: str, source: Path, folder: Path, *, major: str) -> None:
    """Compile one source under the file names of all three TensorRT libraries."""
    for library in LIBRARIES:
        name = f"{library}.so.{major}"
        target = ["-o", str(folder / name), str(source)]
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", *target]
        subprocess.run(command, check=True, capture_output=True, text=True)


def run_python(program: str, *arguments: str, path: Path, environment: Sequence[tuple[str, str]] = ()) -> str:
    """Return the stdout of a program; its stderr is in the error if it fails."""
    known = {**os.environ, "PYTHONPATH": str(path), **dict(environment)}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=known, check=False, timeout=FETCH_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def module_of(name: str, source: Path) -> ModuleType:
    """Import a file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while it is imported.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def environment_of(repository: Path, *, cuda: str) -> dict[str, str]:
    """Return the environment of a process with NVIDIA's compiler for a CUDA; skip the test where it cannot be had."""
    toolchain = module_of("compile_check_toolchain", repository / "tools" / "compile_check" / "toolchain.py")
    try:
        environment: dict[str, str] = toolchain.find_toolchain(cuda=cuda).environment()
    except toolchain.ToolchainError as error:
        pytest.skip(f"contract: {error}")
    return environment
