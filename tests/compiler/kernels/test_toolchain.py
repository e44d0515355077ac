"""What the compile check says where NVIDIA's compiler cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

PIN = "tensorrt-rtx-cu13-libs"


def _is_installed() -> bool:
    try:
        metadata.distribution(PIN)
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(_is_installed(), reason="the extra `compiler` is installed, nothing is downloaded")
def test_without_the_wheels_one_line_and_exit_code_3(repository: Path, tmp_path: Path) -> None:
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [sys.executable, str(repository / "tools" / "compile_check"), "model.onnx"],
        env={**os.environ, **offline, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "the wheels of NVIDIA's compiler cannot be downloaded" in done.stderr
    assert not list((tmp_path / "p4q-edge" / "compiler").iterdir())  # nothing half made stays


@pytest.mark.parametrize("arguments", [[], ["model.onnx", "--batch", "many"], ["model.onnx", "--capability", "SM87"]])
def test_wrong_arguments(repository: Path, arguments: list[str]) -> None:
    command = [sys.executable, str(repository / "tools" / "compile_check"), *arguments]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
