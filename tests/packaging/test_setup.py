"""`make` finds a Python that really runs, and says what to do where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Stands for Python: answers the question whether it is usable, makes an environment, installs nothing.
PYTHON = """#!/bin/sh
case "$*" in
  "-c import ensurepip"*) exit {usable} ;;
  "--version") echo {name} ;;
  "-m venv --clear "*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
  *) echo "$@" >> "{log}" ;;
esac
"""
SHIM = "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n"


@pytest.fixture
def setup_venv(tmp_path: Path, repository: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run tools/setup_venv.sh with these stand-ins for Python on PATH: name to script."""

    def run(scripts: dict[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for tool in ("bash", "dirname", "env", "mkdir", "cp"):
            (folder / tool).unlink(missing_ok=True)
            (folder / tool).symlink_to(
                next(path for path in (Path("/bin") / tool, Path("/usr/bin") / tool) if path.exists())
            )
        for name, script in scripts.items():
            (folder / name).write_text(script.format(name=name, usable=0, log=tmp_path / "log"))
            (folder / name).chmod(0o755)
        environment = {"PATH": str(folder), **variables}
        command = [str(repository / "tools/setup_venv.sh"), str(tmp_path / "venv")]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return run


def test_the_first_python_that_runs_is_taken(
    setup_venv: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = setup_venv({"python3.12": SHIM, "python3.11": PYTHON, "python3.13": PYTHON})
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("/venv with python3.11\n")
    calls = (tmp_path / "log").read_text()
    assert "pip install --quiet --disable-pip-version-check --constraint tools/constraints.txt" in calls
    assert calls.endswith(" --no-build-isolation --editable ./runtime --editable .[dev]\n")


def test_an_environment_that_works_is_kept(
    setup_venv: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert setup_venv({"python3.12": PYTHON}).returncode == 0
    marker = tmp_path / "venv/marker"
    marker.touch()
    again = setup_venv({"python3.12": PYTHON})
    assert (again.returncode, again.stderr) == (0, "")
    assert marker.exists()


def test_python_can_be_named(setup_venv: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = setup_venv({"python3.12": PYTHON, "mine": PYTHON}, P4Q_PYTHON="mine")
    assert done.stderr.endswith("/venv with mine\n")


@pytest.mark.parametrize(
    ("scripts", "variables", "message"),
    [
        (
            {"python3.12": SHIM},
            {},
            "error: no Python 3.11 to 3.13 with venv was found. On Debian or Ubuntu: apt install",
        ),
        (
            {"python3.12": PYTHON, "old": SHIM},
            {"P4Q_PYTHON": "old"},
            "error: P4Q_PYTHON=old is not a Python 3.11 to 3.13",
        ),
    ],
)
def test_no_python(
    setup_venv: Callable[..., subprocess.CompletedProcess[str]],
    scripts: dict[str, str],
    variables: dict[str, str],
    message: str,
) -> None:
    done = setup_venv(scripts, **variables)
    assert done.returncode == 3
    assert done.stderr.startswith(message)


def test_the_scripts_can_be_run(repository: Path) -> None:
    for name in ("tools/setup_venv.sh", "tools/check.sh", "tools/fresh.sh", "tools/arm_check.sh", ".ci/run"):
        assert os.access(repository / name, os.X_OK), f"{name} is not executable"


def test_the_check_on_arm_says_what_it_takes_and_needs(repository: Path, tmp_path: Path) -> None:
    script = str(repository / "tools" / "arm_check.sh")
    done = subprocess.run(["/bin/bash", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "usage: tools/arm_check.sh model.p4q [IMAGE...]\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("dirname", "mkdir"):
        (tools / name).symlink_to(shutil.which(name) or name)
    environment = {"PATH": str(tools), "ARM_FOLDER": str(tmp_path / "arm")}
    done = subprocess.run(["/bin/bash", script, "model.p4q"], capture_output=True, text=True, env=environment)
    assert done.returncode == 3
    assert done.stderr.startswith("arm_check: expected Debian or Ubuntu with apt-get.")


MAKEFILE = """test:
\t@echo "$$HOME $$P4Q_PYTHON cache:$$XDG_CACHE_HOME" > made; echo '3 passed, 1 skipped'
demo:
\t@echo 'error: no demo'; exit 1
"""


def test_a_fresh_clone_is_tried_for_each_python(repository: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "Makefile").write_text(MAKEFILE)
    git = ["git", "-C", str(project), "-c", "user.name=t", "-c", "user.email=t@t"]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "a"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    kept = tmp_path / "kept"
    environment = {
        **os.environ,
        "FRESH_TARGETS": "",  # of a run of the script that this test is a part of
        "FRESH_FROM": str(project),
        "FRESH_FOLDER": str(kept),
        "XDG_CACHE_HOME": str(tmp_path / "warm"),
    }
    command = [str(repository / "tools/fresh.sh"), sys.executable, "no-such-python"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    version = ".".join(map(str, sys.version_info[:3]))
    assert done.returncode == 1
    header, _, row, absent = done.stdout.splitlines()
    assert header == "| Python | version | test | demo |"
    assert row.startswith(f"| {sys.executable} | {version} | test: passed in ")
    assert "(3 passed 1 skipped)" in row
    assert "demo: FAILED after " in row
    assert "error: no demo" in row
    assert absent == "| no-such-python | - | does not start |"
    assert "no-such-python does not start. Install it: apt install" in done.stderr
    # An empty home and no cache of the caller's.
    assert (kept / version / "made").read_text() == f"{kept / version}.home {sys.executable} cache:\n"
