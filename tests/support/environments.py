"""Virtual environments of other Pythons with the wheels of this checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


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


def pythons(version: str) -> Iterator[str]:
    found = shutil.which(f"python{version}")
    if found:
        yield found
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(map(str, root.glob(f"versions/{version}.*/bin/python{version}")))


def runs(python: str, version: str) -> bool:
    """Tell whether an interpreter really starts: pyenv has a shim for versions that are not selected."""
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() == version
