"""Wheels built once, and environments to install them into."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest
from environments import Environment, make_environment, pythons, runs


@pytest.fixture
def sharing_environment(tmp_path: Path) -> Environment:
    """An environment with all dependencies of this one, but neither of the two distributions."""
    environment = make_environment(tmp_path / "sharing", python=sys.executable)
    site = next((environment.folder / "lib").glob("python3*/site-packages"))
    # A folder that comes from a .pth file adds its modules, not its own .pth files: no editable install leaks in.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return environment


@pytest.fixture(scope="session")
def wheels(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of both distributions by name, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheels")
    for source in (repository / "runtime", repository):
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


@pytest.fixture(scope="session")
def runtime_environment(
    repository: Path, wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    """The runtime's wheel alone on Python 3.10, as on JetPack 6, at the pinned versions."""
    python = next((python for python in pythons("3.10") if runs(python, "3.10")), None)
    if python is None:
        pytest.skip("needs a Python 3.10 on PATH or in pyenv")
    environment = make_environment(tmp_path_factory.mktemp("device") / "venv", python=python)
    constraints: Sequence[str] = ("--constraint", str(repository / "tools/constraints.txt"))
    environment.install(*constraints, f"{wheels['p4q-edge-runtime']}[onnxruntime]")
    return environment
