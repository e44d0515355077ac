"""Wheels of other projects: the cache of one Python is not another's, and one missing wheel skips its tests alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wheels

NO_FILE = (
    "ERROR: Could not find a version that satisfies the requirement a==1 (from versions: 2)\n"
    "ERROR: No matching distribution found for a==1\n"
)
NO_INDEX = "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n" + NO_FILE


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What pip was asked for; nothing can be fetched: `b` has no file here, of `c` no index is reached."""
    requirements: list[str] = []

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        name = command[-1]
        requirements.append(name)
        if name.startswith("a"):
            (Path(command[command.index("--dest") + 1]) / "a-1-py3-none-any.whl").touch()
        errors = {"a": "", "b": NO_FILE, "c": NO_INDEX}[name[0]]
        return subprocess.CompletedProcess(command, int(bool(errors)), "", errors)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(wheels.subprocess, "run", pip)
    monkeypatch.setattr(wheels, "UNREACHABLE", [])
    monkeypatch.setattr(wheels, "MISSING", {})
    return requirements


def skipped(requirement: str) -> str:
    with pytest.raises(pytest.skip.Exception) as caught:
        wheels.fetch(requirement)
    return str(caught.value)


def test_a_missing_wheel_skips_its_own_tests_alone(asked: list[str]) -> None:
    assert "contract: b==1 has no file for" in skipped("b==1")
    assert wheels.fetch("a==1").name == "a-1-py3-none-any.whl"
    skipped("b==1")
    wheels.fetch("a==1")
    assert asked == ["b==1", "a==1"]  # each once


def test_an_index_that_is_not_reached_skips_all(asked: list[str]) -> None:
    assert "the real libraries cannot be fetched" in skipped("c==1")
    assert "pip says of c==1" in skipped("b==1")
    assert asked == ["c==1"]


def test_the_cache_is_that_of_one_python(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = wheels.fetch("a==1")
    assert sys.implementation.cache_tag in str(path)
    monkeypatch.setattr(wheels.sys.implementation, "cache_tag", "cpython-399")
    assert wheels.fetch("a==1") != path
    assert asked == ["a==1", "a==1"]
