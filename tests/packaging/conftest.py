"""Wheels built once, and environments to install them into."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment in a folder."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin/python"

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment, away from the checkout, with nothing of the outer environment."""
        program = str(self.folder / "bin" / command[0])
        outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, check=False, cwd=self.folder, env=outer
        )

    def check(self, *command: str) -> str:
        """Run a command that must succeed, and return what it wrote to stdout."""
        done = self.run(*command)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def install(self, *arguments: str) -> None:
        """Install with the pip of the running interpreter, so that the environment needs none."""
        command = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "--quiet",
            "--no-compile",
            *arguments,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def make_environment(folder: Path, *, python: str) -> Environment:
    """Make an empty environment without pip."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
    return Environment(folder=folder)


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


def _pythons(version: str) -> Iterator[str]:
    found = shutil.which(f"python{version}")
    if found:
        yield found
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(map(str, root.glob(f"versions/{version}.*/bin/python{version}")))


def _runs(python: str, version: str) -> bool:
    """Tell whether an interpreter really starts: pyenv has a shim for versions that are not selected."""
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() == version


@pytest.fixture(scope="session")
def runtime_environment(
    repository: Path, wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    """The runtime's wheel alone on Python 3.10, as on JetPack 6, at the pinned versions."""
    python = next((python for python in _pythons("3.10") if _runs(python, "3.10")), None)
    if python is None:
        pytest.skip("needs a Python 3.10 on PATH or in pyenv")
    environment = make_environment(tmp_path_factory.mktemp("device") / "venv", python=python)
    constraints: Sequence[str] = ("--constraint", str(repository / "tools/constraints.txt"))
    environment.install(*constraints, f"{wheels['p4q-edge-runtime']}[onnxruntime]")
    return environment
