"""An engine on a medium that nothing can be written to is validated and used all the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fixed(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The engine in a folder that is read-only, for a superuser too."""
    access = os.access
    folder = tiny_engine.parent

    def denied(path: str | Path, mode: int) -> bool:
        return access(path, mode) and not (mode & os.W_OK and Path(path) == folder)

    monkeypatch.setattr(os, "access", denied)
    return tiny_engine


def test_an_engine_in_a_read_only_folder_is_validated(fixed: Path, run: Run) -> None:
    before = sorted(fixed.parent.iterdir())
    code, out, err = run("validate", fixed, "--json")
    assert code == 0
    assert f"{fixed.parent} is read-only: tiny.report.json is not written. For a report: --report FILE" in err
    document = json.loads(out)
    assert document["passed"]
    assert document["reports"] == []
    assert sorted(fixed.parent.iterdir()) == before


def test_the_report_may_go_elsewhere(fixed: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    report = tmp_path_factory.mktemp("reports") / "out.json"
    code, out, _ = run("validate", fixed, "--report", report)
    assert code == 0
    assert f"report: {report}" in out
    assert json.loads(report.read_bytes())["passed"]


def test_a_report_that_was_asked_for_there_is_refused(fixed: Path, run: Run) -> None:
    code, _, err = run("validate", fixed, "--report", fixed.with_name("mine.json"))
    assert code == 2
    assert f"the folder {fixed.parent} is not writable" in err


def test_an_engine_in_a_read_only_folder_classifies(fixed: Path, photo: Path, run: Run) -> None:
    code, out, _ = run("classify", fixed, photo)
    assert code == 0
    assert str(photo) in out


def test_a_folder_that_can_be_written_gets_its_report(tiny_engine: Path, run: Run) -> None:
    code, out, err = run("validate", tiny_engine, "--json")
    assert code == 0
    assert "read-only" not in err
    assert json.loads(out)["reports"] == [str(tiny_engine.with_name("tiny.report.json"))]
